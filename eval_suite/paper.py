"""The protocol `paper`: the authors' arithmetic with its faults, kept to reproduce the published figures.

Never use it to rank systems: the report and `docs/evaluate.md` say what is wrong with each step. The overall 0.72 of
the paper cannot be reproduced from the released answers: min-max over the released systems gives LLaSO-Base .932,
112 variants of the formula give .79 to .94, and the paper's radar is a ratio to the best system, not min-max.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from .parsing import ABSTAINED, ANSWERED, ERROR, MALFORMED
from .phonemes import paper_letters
from .readers import AnsweredRow
from .strict import Reading, raw_text, raw_words
from .task_metrics import TASKS

PITCH_RANGE = (0, 127)
ADULT = 22
"""The age the authors read from an answer that says "adult" and has no digits."""


def read_rows(rows: Sequence[AnsweredRow]) -> list[Reading]:
    """Read the rows of one file as the authors' scripts do; a failed generation is an empty answer."""
    kind = TASKS[rows[0].task].kind
    answers = ["" if row.error is not None else row.prediction or "" for row in rows]
    pairs = [(row.reference, answer) for row, answer in zip(rows, answers, strict=True)]
    outcomes = [ERROR if row.error is not None else ANSWERED for row in rows]
    parsed: list[object] = list(answers)
    quantities: list[dict[str, object]] = [{} for _ in rows]
    if kind == "transcript":
        quantities = [_transcript(*pair) for pair in pairs]
    elif kind == "phonemes":
        quantities = [{"per": phoneme_error_rate(answer, label)} for label, answer in pairs]
    elif kind in ("closed", "label"):
        quantities = [{"correct": int(right)} for right in correct_answers([row.reference for row in rows], answers)]
    if kind == "closed":
        for position, silent in enumerate(abstentions([row.reference for row in rows], answers)):
            quantities[position]["silent"] = int(silent)
            if silent and outcomes[position] == ANSWERED:
                outcomes[position] = ABSTAINED
    elif kind == "number":
        for position, (label, answer) in enumerate(pairs):
            parsed[position], error = _number(rows[0].task, label, answer)
            quantities[position] = {"paper_error": error}
            if error is None and outcomes[position] == ANSWERED:
                outcomes[position] = MALFORMED
    elif kind == "pronunciation":
        quantities = [_pronunciation(*pair) for pair in pairs]
    if any(row.judge_score is not None for row in rows):
        for row, measured in zip(rows, quantities, strict=True):
            measured["judge_score"] = row.judge_score
    return [Reading(*one) for one in zip(outcomes, parsed, quantities, strict=True)]


def _transcript(label: str, answer: str) -> dict[str, object]:
    """Count edits with the arguments exchanged: the lengths are the *answer's*."""
    return {
        "words": len(raw_words(answer)),
        "word_errors": Levenshtein.distance(raw_words(answer), raw_words(label)),
        "characters": len(raw_text(answer)),
        "character_errors": Levenshtein.distance(raw_text(answer), raw_text(label)),
    }


def phoneme_error_rate(answer: str, label: str) -> float:
    """Return edits over the answer's mapped letters; without any, 0 if the label has none either, else 1."""
    given, wanted = paper_letters(answer), paper_letters(label)
    if not given:
        return 0.0 if not wanted else 1.0
    return Levenshtein.distance(given, wanted) / len(given)


def _clean(text: str) -> str:
    return text.lower().replace(".", "")


def correct_answers(references: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Return whether each answer equals its label, or contains it and no other of the file's labels as a substring."""
    labels = sorted({_clean(reference) for reference in references})
    hits = []
    for reference, answer in zip(references, answers, strict=True):
        label, text = _clean(reference), _clean(answer)
        alone = label in text and not any(other in text for other in labels if other != label)
        hits.append(text == label or alone)
    return hits


def abstentions(references: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Return whether each row abstains: not exactly one label of the file occurs with no letter or digit beside it."""
    labels = sorted({reference.strip().lower().rstrip(". ") for reference in references})
    patterns = [re.compile(rf"(?<![a-z0-9]){re.escape(label)}(?![a-z0-9])") for label in labels]
    return [sum(bool(pattern.search(answer.lower())) for pattern in patterns) != 1 for answer in answers]


def read_age(text: str) -> int | None:
    """Read an age as the authors do: the whole string, digit groups, "adult", or nothing."""
    try:
        return int(text)
    except ValueError:
        pass
    groups = [int(group) for group in re.findall(r"\d+", text)]
    if groups:
        return round((groups[0] + groups[1]) / 2) if "-" in text and len(groups) >= 2 else groups[0]
    return ADULT if "adult" in text.lower() else None


def read_pitch(text: str) -> int | None:
    """Read a pitch as the authors do: int, rounded float, or numbers with optional decimals by the "-" rule."""
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
    return round(value) if math.isfinite(value) else None


def _number(task: str, reference: str, answer: str) -> tuple[int | None, float | None]:
    """Return the number read of an answer and its error; no error if a number is missing or outside of its range."""
    read = read_pitch if task == "PP" else read_age
    label, value = read(reference), read(answer)
    usable = label is not None and value is not None
    if usable and task == "PP":
        usable = all(PITCH_RANGE[0] <= number <= PITCH_RANGE[1] for number in (label, value))  # type: ignore[operator]
    return value, float(abs(label - value)) if usable else None  # type: ignore[operator]


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
    """Return the three scores of a sentence, each beside its name; None unless all are there."""
    found = [pattern.search(text) for pattern in _PRONUNCIATION]
    return tuple(int(match[1] or match[2]) for match in found if match) if all(found) else None


def _pronunciation(label: str, answer: str) -> dict[str, object]:
    """Return for each score whether both texts agree on it; None unless all three parse in both."""
    wanted, given = read_pronunciation(label), read_pronunciation(answer)
    return {
        dimension: int(wanted[index] == given[index]) if wanted and given else None
        for index, dimension in enumerate(PRONUNCIATION_DIMENSIONS)
    }
