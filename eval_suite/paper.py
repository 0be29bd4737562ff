"""The protocol `paper`: the authors' arithmetic with its faults, kept to reproduce the published figures.

Never use it to rank systems; `docs` and the benchmark's card say what is wrong with each step. The overall 0.72 of
the paper is not reproducible from the released answers: min-max over the released systems gives LLaSO-Base .932,
112 variants of the formula give .79 to .94, and the paper's radar is a ratio to the best system, not min-max.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import numpy as np
from rapidfuzz.distance import Levenshtein

from . import metrics
from .metrics import Table
from .parsing import ABSTAINED, ANSWERED, ERROR, MALFORMED
from .phonemes import paper_letters
from .readers import Row
from .strict import add_judgements, raw_text, raw_words
from .task_metrics import TASKS

PITCH_RANGE = (0, 127)
ADULT = 22
"""The age the authors read from an answer that says "adult" and has no digits."""


def measure(rows: Sequence[Row]) -> Table:
    """Measure the rows of one file as the authors' scripts do; a failed generation is an empty answer."""
    kind = TASKS[rows[0].task].kind
    answers = ["" if row.error is not None else row.prediction or "" for row in rows]
    references = [row.reference for row in rows]
    outcomes = [ERROR if row.error is not None else ANSWERED for row in rows]
    table = Table(len(rows), outcomes, list(answers))
    if kind == "transcript":
        _transcripts(table, references, answers)
    elif kind == "phonemes":
        rates = [phoneme_error_rate(answer, label) for answer, label in zip(answers, references, strict=True)]
        metrics.add_mean(table, "per", rates)
        table.row_scores = np.array(rates)
    elif kind in ("closed", "label"):
        hits = correct_answers(references, answers)
        metrics.add_mean(table, "accuracy", hits)
        table.row_scores = np.array(hits, dtype=np.float64)
        if kind == "closed":
            silent = abstentions(references, answers)
            table.add("silent", silent)
            table.add("rows", np.ones(len(rows)))
            table.metrics["abstention_rate"] = metrics.Metric(
                lambda sums: np.round(100 * metrics.divide(sums["silent"], sums["rows"]), 4), len(rows)
            )
            for position, quiet in enumerate(silent):
                if quiet and outcomes[position] == ANSWERED:
                    outcomes[position] = ABSTAINED
    elif kind == "number":
        _numbers(table, rows[0].task, references, answers)
    elif kind == "pronunciation":
        _pronunciation(table, references, answers)
    if any(row.judge_score is not None for row in rows):
        add_judgements(table, rows)
        if not table.row_scores.size:
            table.row_scores = np.array([np.nan if row.judge_score is None else row.judge_score for row in rows])
    if not table.row_scores.size:
        table.row_scores = np.full(len(rows), np.nan)
    return table


def _transcripts(table: Table, references: Sequence[str], answers: Sequence[str]) -> None:
    """WER and CER with the arguments exchanged: edits over the *answer's* words."""
    words = [
        _exchanged(raw_words(answer), raw_words(label)) for answer, label in zip(answers, references, strict=True)
    ]
    letters = [
        _exchanged(raw_text(answer), raw_text(label)) for answer, label in zip(answers, references, strict=True)
    ]
    metrics.add_corpus_rate(table, "wer", *zip(*words, strict=True))
    metrics.add_corpus_rate(table, "cer", *zip(*letters, strict=True))
    table.row_scores = metrics.divide(*np.array(words, dtype=np.float64).T)


def _exchanged(answer: Sequence[str], label: Sequence[str]) -> tuple[int, int]:
    return Levenshtein.distance(answer, label), len(answer)


def phoneme_error_rate(answer: str, label: str) -> float:
    """Edits over the mapped letters divided by the answer's; an empty one counts 0 if the label is empty, else 1."""
    given, wanted = paper_letters(answer), paper_letters(label)
    if not given:
        return 0.0 if not wanted else 1.0
    return Levenshtein.distance(given, wanted) / len(given)


def _clean(text: str) -> str:
    return text.lower().replace(".", "")


def correct_answers(references: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Right where the answer equals the label, or contains it and no other of the file's labels as a substring."""
    labels = sorted({_clean(reference) for reference in references})
    hits = []
    for reference, answer in zip(references, answers, strict=True):
        label, text = _clean(reference), _clean(answer)
        alone = label in text and not any(other in text for other in labels if other != label)
        hits.append(text == label or alone)
    return hits


def abstentions(references: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """A row abstains unless exactly one of the file's labels occurs with no letter or digit next to it."""
    labels = sorted({reference.strip().lower().rstrip(". ") for reference in references})
    patterns = [re.compile(rf"(?<![a-z0-9]){re.escape(label)}(?![a-z0-9])") for label in labels]
    return [sum(bool(pattern.search(answer.lower())) for pattern in patterns) != 1 for answer in answers]


def read_age(text: str) -> int | None:
    """The authors' reading of an age: the whole string, digit groups, "adult", or nothing."""
    try:
        return int(text)
    except ValueError:
        pass
    groups = [int(group) for group in re.findall(r"\d+", text)]
    if groups:
        return round((groups[0] + groups[1]) / 2) if "-" in text and len(groups) >= 2 else groups[0]
    return ADULT if "adult" in text.lower() else None


def read_pitch(text: str) -> int | None:
    """The authors' reading of a pitch: int, rounded float, or numbers with optional decimals by the "-" rule."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return round(float(text))
    except (ValueError, OverflowError):
        pass
    groups = [float(group) for group in re.findall(r"\d+(?:\.\d+)?", text)]
    if not groups:
        return None
    value = (groups[0] + groups[1]) / 2 if "-" in text and len(groups) >= 2 else groups[0]
    return round(value) if np.isfinite(value) else None


def _numbers(table: Table, task: str, references: Sequence[str], answers: Sequence[str]) -> None:
    """MAE over the rows that could be read; the others are dropped."""
    read = read_pitch if task == "PP" else read_age
    errors = np.full(len(answers), np.nan)
    for position, (reference, answer) in enumerate(zip(references, answers, strict=True)):
        label, value = read(reference), read(answer)
        table.parsed[position] = value
        usable = label is not None and value is not None
        if usable and task == "PP":
            usable = all(PITCH_RANGE[0] <= number <= PITCH_RANGE[1] for number in (label, value))  # type: ignore[operator]
        if usable:
            errors[position] = float(abs(label - value))  # type: ignore[operator]
        elif table.outcomes[position] == ANSWERED:
            table.outcomes[position] = MALFORMED
    used = np.isfinite(errors)
    metrics.add_mean(table, "mae", np.where(used, errors, 0.0), used)
    metrics.add_count(table, "n_used", used)
    table.row_scores = errors


PRONUNCIATION_DIMENSIONS = ("accuracy", "prosodic", "fluency")
_PRONUNCIATION = tuple(
    re.compile(
        rf"""{name}['"]?\s*(?::|=|-|is also|is|score is)\s*['"]?(\d+)|(\d+)\s*for\s*{name}""",
        re.IGNORECASE,
    )
    for name in ("accuracy", "prosod(?:ic|y)", "fluency")
)
"""The authors' patterns are not published; these find their counts and rates in the answers of all six systems."""


def read_pronunciation(text: str) -> tuple[int, ...] | None:
    """The three scores of a sentence, each beside its name; None unless all are there."""
    found = [pattern.search(text) for pattern in _PRONUNCIATION]
    return tuple(int(match[1] or match[2]) for match in found if match) if all(found) else None


def _pronunciation(table: Table, references: Sequence[str], answers: Sequence[str]) -> None:
    """Exact-match rate of each score over the rows where all three parse in both texts; 0 where none does."""
    pairs = [
        (read_pronunciation(label), read_pronunciation(answer))
        for label, answer in zip(references, answers, strict=True)
    ]
    both = [label is not None and answer is not None for label, answer in pairs]
    table.add("both", both)
    for index, dimension in enumerate(PRONUNCIATION_DIMENSIONS):
        equal = [bool(label and answer and label[index] == answer[index]) for label, answer in pairs]
        table.add(dimension, equal)
        table.metrics[f"{dimension}_exact"] = metrics.Metric(partial(_rate_or_zero, dimension), sum(both))


def _rate_or_zero(dimension: str, sums: metrics.Sums) -> metrics.Array:
    return np.nan_to_num(metrics.divide(sums[dimension], sums["both"]), nan=0.0)
