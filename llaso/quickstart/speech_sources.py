"""People's speech for a model of real parts: a sources file, written for a manifest or a folder of manifests.

Beside transcripts it asks for what the columns tell (gender, age) and for questions made from transcripts by rule.
What was written lies beside the run, to be looked at and changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dataset_scripts import draw, inspect_source
from dataset_scripts.files import json_lines
from dataset_scripts.own_rows import MANIFESTS
from dataset_scripts.row_items import SPLIT_OF, pick
from dataset_scripts.sources.base import Reject
from llaso_common.atomic_write import write_atomically

SOURCES, AGE_FILE, AGE = "sources.yaml", "age.txt", "AGE"
AGES = (0, 110)
AGE_ASKED = (
    "How old is the speaker, in years?",
    "Guess the age of the speaker and answer with a number of years.",
    "Give the speaker's age in years.",
)
QUESTIONS = {"WORDS": 0.15, "SAID": 0.15, "SPOT": 0.15, "AFTER": 0.15, "ABOUT": 1.0}
"""Share of the clips that get each question; few transcripts have a clause to ask about."""
IN_INSTRUCT = {"ASR": 1.0, "SGC": 0.25, "AGE": 0.25}
"""Share of the clips whose transcript, gender and age are in Instruct. The LLM does not run in Stage 1, so that it
learns to write transcripts in Stage 2. Gender and age are one word each and would be most of the rows."""
JOINED = 0.5
"""Share of the clips that stand in a longer one as well, without which the LLM repeats itself on long clips."""
SEEN = 200
"""Rows looked at to guess whether transcripts are in lower case, and whether there are ages."""


def speech_sources(said: str, out: Path) -> Path:
    """Return the sources file for people's speech, written once into `out` unless it is one already.

    Args:
        said: a sources file; a folder of manifests named by split (`train.jsonl`, `dev.jsonl`, …); or a manifest, a
            folder of recordings or a data set, whose columns are guessed.
        out: folder for what is written.

    Raises:
        ValueError: there is nothing by this name, or it cannot be read.
    """
    place = Path(said).expanduser()
    if place.suffix in (".yaml", ".yml"):
        return place
    file = out / SOURCES
    if file.exists():
        return file
    out.mkdir(parents=True, exist_ok=True)
    manifests = _manifests(place)
    guess = yaml.safe_load(inspect_source.inspect(str(next(iter(manifests.values()))) if manifests else said))
    ((name, block),) = guess["sources"].items()
    if "text" not in block.get("tasks", {}).values():
        raise ValueError(f"{said}: no column with transcripts was found; write a sources file, and name that")
    columns = block.get("columns", {})
    speaker, text = columns.get("speaker", "speaker"), columns.get("text", "text")
    if manifests:
        if "test" not in manifests and "validation" in manifests:
            manifests |= _halved(manifests["validation"], out, speaker, text)
        name = place.name.replace(".", "_")
        block |= {
            "manifest": {split: str(path) for split, path in manifests.items()},
            "audio_root": str(place.absolute()),
        }
    rows = _first_rows(block)
    if any(isinstance(row.get("age"), int | float) for row in rows):
        block["tasks"][AGE] = "age"
    texts = [value for row in rows if isinstance(value := pick(row, text), str) and value]
    if texts and sum(each == each.lower() for each in texts) > len(texts) / 2:
        block["lowercase"] = True
    block["in_instruct"] = {code: share for code, share in IN_INSTRUCT.items() if code in block["tasks"]}
    block |= {"questions": dict(QUESTIONS), "joined": JOINED}
    content: dict[str, Any] = {"sources": {name: block}}
    if AGE in block["tasks"]:
        (out / AGE_FILE).write_text("\n".join(AGE_ASKED) + "\n", encoding="utf-8")
        task = {"kind": "number", "name": "age in years", "bounds": list(AGES), "instructions": AGE_FILE}
        content["tasks"] = {AGE: task}
    head = f"# Guessed from {said}. To change it, edit it and name it as SPEECH in a new run.\n"
    write_atomically(file, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return file


def _manifests(place: Path) -> dict[str, Path]:
    """Return the manifests of a folder by split; none if it has no manifest named by one."""
    found = sorted(place.iterdir()) if place.is_dir() else []
    named = (
        (SPLIT_OF.get(file.name.split(".")[0].casefold()), file) for file in found if file.name.endswith(MANIFESTS)
    )
    return {split: file.absolute() for split, file in named if split is not None}


def _halved(file: Path, out: Path, speaker: str, text: str) -> dict[str, Path]:
    """Write the two halves of a development part: one to watch training by, one for the report.

    Args:
        file: the manifest.
        out: folder for the halves.
        speaker, text: columns; rows of one speaker stay together, or of one text if the speaker is unknown.

    Raises:
        ValueError: it is not JSON lines.
    """
    if not file.name.endswith(".jsonl"):
        raise ValueError(f"{file}: without a test part it has to be JSON lines, which are halved by speaker")
    halves: dict[str, list[str]] = {"validation": [], "test": []}
    for number, row in json_lines(file):
        if isinstance(row, Reject):
            raise ValueError(f"{row.where}: {row.reason}; mend or remove the line")
        said = [value for name in (speaker, text) if isinstance(value := pick(row, name), str | int | float)]
        key = next((str(value) for value in said if str(value).strip()), f"line {number}")
        halves["test" if draw.unit(0, key, "half") < 0.5 else "validation"].append(json.dumps(row))
    written = {}
    for split, lines in halves.items():
        written[split] = (out / f"{split}.jsonl").absolute()
        written[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


def _first_rows(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the first rows of a block's JSON-lines manifests, from each; none of other kinds."""
    said = block.get("manifest", {})
    paths = list(said.values()) if isinstance(said, Mapping) else [said]
    return [row for path in paths for row in _json_rows(Path(str(path)))]


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    rows = [row for _, row in json_lines(path) if isinstance(row, dict)] if path.name.endswith(".jsonl") else []
    yield from rows[:: max(1, len(rows) // SEEN)]
