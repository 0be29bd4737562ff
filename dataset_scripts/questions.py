"""Sets of questions and answers in text, which the build speaks: Alpaca's shape and its relatives.

A row is an instruction, often with an input to work on, and an answer. Each becomes an AQA item without a sound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import draw
from .files import records
from .sources.base import Fact, Item, Reject


def read_questions(
    root: Path,
    pattern: str,
    instruction: str = "instruction",
    input: str = "input",
    output: str = "output",
    id: str = "",
) -> Iterator[Item | Reject]:
    """Yield the items of question-and-answer files in Alpaca's shape: Parquet, JSON lines, or one JSON list.

    Args:
        root: the folder.
        pattern: which files to read.
        instruction, input, output: names of the fields; the input may be missing.
        id: name of the id field; "" numbers the rows.

    Raises:
        ValueError: a file is broken, or its first row has no question or answer by these names.
    """
    files = sorted(file for file in root.glob(pattern) if file.suffix in (".json", ".jsonl", ".parquet"))
    for file in files:
        numbered, checked = f"{file.stem}-" * (len(files) > 1), False
        for number, row in records(file):
            if isinstance(row, Reject):
                yield row
                continue
            if not checked and not {instruction, output} <= set(row):
                raise ValueError(
                    f"{file}:{number}: no field {instruction!r} or {output!r}; the row has {', '.join(row)}"
                )
            checked = True
            name = str(row.get(id) or "") or f"{numbered}{number:07d}"
            yield question(name, f"{file}:{number}", row.get(instruction), row.get(input), row.get(output))


def distinct(found: Iterable[Item | Reject]) -> Iterator[Item | Reject]:
    """Yield questions; reject those that equal an earlier one with its input and answer.

    It remembers every question as a number: for corpora of some hundred thousand.
    """
    seen = set[int]()
    for item in found:
        if isinstance(item, Item):
            fact = item.facts[0]
            said = draw.integer(0, "\0".join((fact.instruction, fact.input, fact.target)), "question")
            if said in seen:
                item = Reject(item.where, "question and answer of an earlier row")
            seen.add(said)
        yield item


def question(id: str, where: str, instruction: Any, input: Any, output: Any) -> Item | Reject:
    """Make an AQA item without a sound: the build speaks the question, the input or both.

    If there is an input alone (a prompt without OpenOrca's system message, say), that is the question.
    """
    fields = ["" if value is None else value for value in (instruction, input, output)]
    if not all(isinstance(value, (str, int, float)) for value in fields):
        return Reject(where, "question, input or answer is not text")
    asked, given, answer = (str(value).strip() for value in fields)
    if given.casefold() in ("none", "<noinput>"):
        given = ""
    if not asked:
        asked, given = given, ""
    if not asked or not answer:
        return Reject(where, "no question" if not asked else "no answer")
    fact = Fact("AQA", answer, instruction=asked, input=given)
    return Item(id.replace(" ", "_"), (fact,), sentence=f"{asked} {given}".strip(), where=where)
