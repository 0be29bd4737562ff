"""The protocol `strict`: every answer is parsed into an outcome, every row counts, every metric has a baseline.

This module reads rows: out come, for each, its outcome, the value read, and the quantities that `metrics` adds up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rapidfuzz.distance import Levenshtein

from .parsing import (
    ABSTAINED,
    ANSWERED,
    ERROR,
    Parsed,
    find_sentence_scores,
    find_slots,
    find_word_scores,
    parse_number,
    parse_phonemes,
    parse_pronunciation,
    parse_slots,
    parse_text,
)
from .phonemes import ipa_symbols
from .readers import AnsweredRow, label_set
from .task_metrics import TASKS, Scale
from .text_normalization import fold, normalizer

_SPACES = re.compile(r"\s\s+")


class Reading(NamedTuple):
    """One row as it was read.

    Args:
        outcome: what became of the answer, one of `parsing.OUTCOMES`.
        parsed: the value read, as JSON holds it; None if there is none.
        quantities: what the metrics add up, by name.
        normalized: (reference, answer) as they were compared, if they were normalized first.
    """

    outcome: str
    parsed: Any
    quantities: dict[str, Any]
    normalized: tuple[str, str] | None = None


def raw_text(text: str) -> str:
    """Return a text as jiwer's default transforms leave it: runs of blanks folded, nothing else changed."""
    return _SPACES.sub(" ", text).strip()


def raw_words(text: str) -> list[str]:
    """Return the words of a text as jiwer cuts it: no normalization, blanks between them."""
    return [word for word in raw_text(text).split(" ") if word]


def read_rows(rows: Sequence[AnsweredRow], normalization: str = "whisper_english") -> list[Reading]:
    """Parse and measure the rows of one file, hence of one task.

    Args:
        rows: of one file.
        normalization: of transcripts, one of `text_normalization.NORMALIZATIONS`.

    Raises:
        ValueError: a reference that cannot be scored; the message names file and line.
    """
    kind = TASKS[rows[0].task].kind
    if kind == "transcript":
        normalize = normalizer(normalization)
        readings = [_transcript(row, normalize) for row in rows]
    elif kind in ("closed", "label"):
        readings = _labels(rows)
    else:
        readings = [_READERS[kind](row) for row in rows]
    judged = kind == "open" or any(row.judge_score is not None for row in rows)
    for row, reading in zip(rows, readings, strict=True):
        reading.quantities["answered"] = int(reading.outcome == ANSWERED)
        if judged:
            reading.quantities["judge_score"] = row.judge_score
    return readings


def _parse(row: AnsweredRow, parse: Callable[[str], Parsed]) -> Parsed:
    """Parse an answer; a failed generation is an error."""
    return Parsed(ERROR) if row.error is not None else parse(row.prediction or "")


def _said(row: AnsweredRow) -> str:
    """Return the text that counts as the answer: nothing if the generation failed."""
    return "" if row.error is not None else row.prediction or ""


def _transcript(row: AnsweredRow, normalize: Callable[[str], str]) -> Reading:
    parsed, answer = _parse(row, parse_text), _said(row)
    reference, hypothesis = normalize(row.reference), normalize(answer)
    words = reference.split()
    edits = Counter(operation.tag for operation in Levenshtein.editops(words, hypothesis.split()))
    raw_reference, raw_answer = raw_text(row.reference), raw_text(answer)
    raw_reference_words = raw_words(row.reference)
    quantities = {
        "words": len(words),
        "word_errors": edits.total(),
        "insertions": edits["insert"],
        "deletions": edits["delete"],
        "substitutions": edits["replace"],
        "characters": len(reference),
        "character_errors": Levenshtein.distance(reference, hypothesis),
        "raw_words": len(raw_reference_words),
        "raw_word_errors": Levenshtein.distance(raw_reference_words, raw_words(answer)),
        "raw_characters": len(raw_reference),
        "raw_character_errors": Levenshtein.distance(raw_reference, raw_answer),
    }
    return Reading(parsed.outcome, parsed.value, quantities, (reference, hypothesis))


def _phonemes(row: AnsweredRow) -> Reading:
    parsed, reference = _parse(row, parse_phonemes), ipa_symbols(row.reference)
    symbols = parsed.value or ()
    errors = Levenshtein.distance(reference, symbols)
    return Reading(
        parsed.outcome,
        " ".join(symbols),
        {"symbols": len(reference), "symbol_errors": errors},
        (" ".join(reference), " ".join(symbols)),
    )


def _labels(rows: Sequence[AnsweredRow]) -> list[Reading]:
    if all(row.choices for row in rows):
        readings = []
        for row in rows:
            labels = label_set(row.task, row.choices)
            parsed = _parse(row, labels.parse)
            quantities = {
                "label": labels.canonical(row.reference),
                "answer": parsed.value,
                "choices": len(row.choices),
            }
            readings.append(Reading(parsed.outcome, parsed.value, quantities))
        return readings
    # No label set is declared: an answer is its folded text, right if it equals the reference.
    references = [fold(row.reference) for row in rows]
    readings = []
    for row, reference in zip(rows, references, strict=True):
        parsed = _parse(row, lambda text: Parsed(ANSWERED, fold(text)) if fold(text) else Parsed(ABSTAINED))
        quantities = {"label": reference, "answer": parsed.value, "choices": len(set(references))}
        readings.append(Reading(parsed.outcome, parsed.value, quantities))
    return readings


def worst_error(truth: float, scale: Scale) -> float:
    """Return what a missing number is charged: the largest error possible on the scale."""
    return max(truth - scale.low, scale.high - truth)


def _numbers(parsed: Parsed, pairs: list[tuple[str, float, float | None]], value: Any, scale: Scale) -> Reading:
    """Return the reading of a row whose answer holds numbers: the kind, the truth and the number read of each."""
    errors = [worst_error(truth, scale) if given is None else abs(given - truth) for _, truth, given in pairs]
    return Reading(parsed.outcome, value, {"numbers": pairs, "error": sum(errors)})


def _number(row: AnsweredRow) -> Reading:
    scale = TASKS[row.task].scale
    assert scale is not None
    parsed = _parse(row, lambda text: parse_number(text, scale.usable))
    return _numbers(parsed, [("", float(row.reference), parsed.value)], parsed.value, scale)


def _pronunciation(row: AnsweredRow) -> Reading:
    """Read the scores of a pronunciation: one that the answer lacks counts at its worst."""
    scale = TASKS[row.task].scale
    assert scale is not None
    word_level = row.task == "PSWL"
    wanted = (find_word_scores if word_level else find_sentence_scores)(row.reference)
    if not wanted:
        raise ValueError(f"{row.where}: the reference of {row.task} holds no scores: {row.reference[:80]!r}")
    parsed = _parse(row, lambda text: parse_pronunciation(text, word_level, scale.usable))
    scores = parsed.value or {}
    pairs = [(key[-1], truth, scores.get(key)) for key, truth in wanted.items()]
    reading = _numbers(parsed, pairs, {"/".join(key): score for key, score in scores.items()}, scale)
    reading.quantities["exact_numbers"] = sum(truth == given for _, truth, given in pairs)
    return reading


def _slots(row: AnsweredRow) -> Reading:
    parsed, wanted = _parse(row, parse_slots), find_slots(row.reference)
    given = parsed.value or Counter()
    quantities = {"slots": [(wanted & given).total(), given.total(), wanted.total()], "exact": _exact(row)}
    return Reading(parsed.outcome, sorted(given.elements()), quantities)


def _open(row: AnsweredRow) -> Reading:
    parsed = _parse(row, parse_text)
    return Reading(parsed.outcome, parsed.value, {"label": fold(row.reference), "exact": _exact(row)})


def _exact(row: AnsweredRow) -> int:
    """Return 1 if the folded answer is the folded reference."""
    return int(row.error is None and fold(row.prediction or "") == fold(row.reference))


_READERS: dict[str, Callable[[AnsweredRow], Reading]] = {
    "phonemes": _phonemes,
    "number": _number,
    "slots": _slots,
    "pronunciation": _pronunciation,
    "open": _open,
}
