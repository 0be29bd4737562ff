"""The protocol `strict`: every answer is parsed into an outcome, every row counts, every metric has a baseline."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from . import metrics
from .metrics import Table
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
from .readers import JUDGE_SCALE, Row, label_set
from .task_metrics import TASKS
from .text_normalization import fold, normalizer

RUNAWAY_FACTOR, RUNAWAY_WORDS = 2, 10
"""A transcript is a run-away output with more than FACTOR times the reference's words, and WORDS on top of that."""

_SPACES = re.compile(r"\s\s+")


def raw_text(text: str) -> str:
    """A text as jiwer's default transforms leave it: runs of blanks folded, nothing else changed."""
    return _SPACES.sub(" ", text).strip()


def raw_words(text: str) -> list[str]:
    """The words of a text as jiwer cuts it: no normalization, blanks between them."""
    return [word for word in raw_text(text).split(" ") if word]


def measure(rows: Sequence[Row], normalization: str = "whisper_english") -> Table:
    """Parse and measure the rows of one file.

    Args:
        rows: of one file, hence of one task.
        normalization: of transcripts, one of `normalization.NORMALIZATIONS`.

    Returns:
        Their statistics, metrics and outcomes.
    """
    kind = TASKS[rows[0].task].kind
    table = _MEASURES[kind](rows) if kind != "transcript" else _transcripts(rows, normalization)
    answered = [outcome == ANSWERED for outcome in table.outcomes]
    metrics.add_mean(table, "coverage", answered)
    if kind == "open" or any(row.judge_score is not None for row in rows):
        add_judgements(table, rows)
    return table


def add_judgements(table: Table, rows: Sequence[Row]) -> None:
    """Add the mean judge score over judged rows; rows without a judgement are missing, and counted as such."""
    judged = [row.judge_score is not None for row in rows]
    scores = [JUDGE_SCALE[0] if row.judge_score is None else row.judge_score for row in rows]
    metrics.add_mean(table, "judge_score", scores, judged)


def _parse(rows: Sequence[Row], parse: Callable[[Row, str], Parsed]) -> list[Parsed]:
    """Parse every answer; a row whose generation failed keeps its place."""
    return [
        Parsed(ERROR) if row.error is not None else parse(row, row.prediction)  # type: ignore[arg-type]
        for row in rows
    ]


def _table(parsed: Sequence[Parsed]) -> Table:
    return Table(len(parsed), [one.outcome for one in parsed], [one.value for one in parsed])


def _transcripts(rows: Sequence[Row], normalization: str) -> Table:
    normalize = normalizer(normalization)
    parsed = _parse(rows, lambda row, text: parse_text(text))
    table = _table(parsed)
    answers = ["" if row.error is not None else row.prediction or "" for row in rows]
    edits, characters = [], []
    for row, answer in zip(rows, answers, strict=True):
        reference, hypothesis = normalize(row.reference), normalize(answer)
        edits.append(metrics.count_edits(reference.split(), hypothesis.split()))
        characters.append((metrics.Levenshtein.distance(reference, hypothesis), len(reference)))
    errors, words = [edit.errors for edit in edits], [edit.length for edit in edits]
    metrics.add_corpus_rate(table, "wer", errors, words)
    metrics.add_macro_rate(table, "wer_macro", errors, words)
    metrics.add_corpus_rate(table, "cer", *zip(*characters, strict=True))
    metrics.add_macro_rate(table, "cer_macro", *zip(*characters, strict=True))
    raw = [_distance(raw_words(row.reference), raw_words(answer)) for row, answer in zip(rows, answers, strict=True)]
    metrics.add_corpus_rate(table, "wer_raw", *zip(*raw, strict=True))
    raw = [_distance(raw_text(row.reference), raw_text(answer)) for row, answer in zip(rows, answers, strict=True)]
    metrics.add_corpus_rate(table, "cer_raw", *zip(*raw, strict=True))
    metrics.add_count(table, "insertions", [edit.insertions for edit in edits])
    metrics.add_count(table, "deletions", [edit.deletions for edit in edits])
    metrics.add_count(table, "substitutions", [edit.substitutions for edit in edits])
    given = [edit.length + edit.insertions - edit.deletions for edit in edits]
    metrics.add_count(
        table,
        "runaway_outputs",
        [length > RUNAWAY_FACTOR * edit.length + RUNAWAY_WORDS for length, edit in zip(given, edits, strict=True)],
    )
    # An empty transcript deletes every word.
    metrics.add_corpus_rate(table, "empty_baseline", words, words)
    table.row_scores = metrics.divide(np.array(errors, dtype=np.float64), np.array(words, dtype=np.float64))
    return table


def _distance(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[int, int]:
    """Edits and the reference's length."""
    return metrics.Levenshtein.distance(reference, hypothesis), len(reference)


def _phonemes(rows: Sequence[Row]) -> Table:
    parsed = _parse(rows, lambda row, text: parse_phonemes(text))
    table = _table(parsed)
    counts = [_distance(ipa_symbols(row.reference), one.value or ()) for row, one in zip(rows, parsed, strict=True)]
    errors, lengths = zip(*counts, strict=True)
    metrics.add_corpus_rate(table, "per", errors, lengths)
    metrics.add_macro_rate(table, "per_macro", errors, lengths)
    metrics.add_corpus_rate(table, "empty_baseline", lengths, lengths)
    table.row_scores = metrics.divide(np.array(errors, dtype=np.float64), np.array(lengths, dtype=np.float64))
    return table


def _labels(rows: Sequence[Row]) -> Table:
    if not all(row.choices for row in rows):
        return _exact_labels(rows)
    parsed = _parse(rows, lambda row, text: label_set(row.task, row.choices).parse(text))
    table = _table(parsed)
    references = [label_set(row.task, row.choices).canonical(row.reference) for row in rows]
    metrics.add_classification(table, references, [one.value for one in parsed], [len(row.choices) for row in rows])
    return table


def _exact_labels(rows: Sequence[Row]) -> Table:
    """Labels whose set nobody declared: an answer is its folded text, right where it equals the reference."""

    def parse(row: Row, text: str) -> Parsed:
        folded = fold(text)
        return Parsed(ANSWERED, folded) if folded else Parsed(ABSTAINED)

    parsed = _parse(rows, parse)
    table = _table(parsed)
    references = [fold(row.reference) for row in rows]
    metrics.add_classification(table, references, [one.value for one in parsed], [len(set(references))] * len(rows))
    table.confusion = None  # answers are open text: their matrix says nothing
    return table


def _numbers(rows: Sequence[Row]) -> Table:
    scale = TASKS[rows[0].task].scale
    assert scale is not None
    parsed = _parse(rows, lambda row, text: parse_number(text, scale.usable))
    table = _table(parsed)
    metrics.add_numbers(
        table, [float(row.reference) for row in rows], [one.value for one in parsed], scale.low, scale.high
    )
    return table


def _slots(rows: Sequence[Row]) -> Table:
    parsed = _parse(rows, lambda row, text: parse_slots(text))
    table = _table(parsed)
    wanted = [find_slots(row.reference) for row in rows]
    given = [one.value or Counter() for one in parsed]
    hits = [(want & give).total() for want, give in zip(wanted, given, strict=True)]
    metrics.add_slot_scores(table, hits, [give.total() for give in given], [want.total() for want in wanted])
    _add_exact_match(table, rows)
    # A system that names no entity finds none.
    metrics.add_mean(table, "empty_baseline", np.zeros(len(rows)))
    table.row_scores = metrics.divide(
        2 * np.array(hits, dtype=np.float64),
        np.array([give.total() + want.total() for give, want in zip(given, wanted, strict=True)], dtype=np.float64),
    )
    return table


def _add_exact_match(table: Table, rows: Sequence[Row]) -> list[bool]:
    """Add exact match after folding, over all rows; returns it row by row."""
    exact = [row.error is None and fold(row.prediction or "") == fold(row.reference) for row in rows]
    metrics.add_mean(table, "exact_match", exact)
    return exact


def _pronunciation(rows: Sequence[Row]) -> Table:
    """Scores of a pronunciation: every score of the reference counts, one the answer lacks counts at its worst."""
    scale = TASKS[rows[0].task].scale
    assert scale is not None
    word_level = rows[0].task == "PSWL"
    find = find_word_scores if word_level else find_sentence_scores
    parsed = _parse(rows, lambda row, text: parse_pronunciation(text, word_level, scale.usable))
    table = _table(parsed)
    owners: list[int] = []
    dimensions: list[str] = []
    truth: list[float] = []
    guess: list[float] = []
    for position, (row, one) in enumerate(zip(rows, parsed, strict=True)):
        wanted = find(row.reference)
        if not wanted:
            raise ValueError(f"{row.where}: the reference of {row.task} holds no scores: {row.reference[:80]!r}")
        for key, value in wanted.items():
            owners.append(position)
            dimensions.append(key[-1])
            truth.append(value)
            guess.append((one.value or {}).get(key, np.nan))
    x, y, owner = np.array(truth), np.array(guess), np.array(owners)
    read = np.isfinite(y)
    errors = np.where(read, np.abs(y - x), metrics.worst_error(x, scale.low, scale.high))
    constant, commonest = np.empty_like(x), np.empty_like(x)
    for dimension in set(dimensions):
        chosen = np.array([name == dimension for name in dimensions])
        constant[chosen] = np.median(x[chosen])
        values, counts = np.unique(x[chosen], return_counts=True)
        commonest[chosen] = values[counts.argmax()]

    def over_rows(values: metrics.ArrayLike) -> metrics.Array:
        weights = np.asarray(values, dtype=np.float64)
        return np.bincount(owner, weights=weights, minlength=len(rows)).astype(np.float64)

    table.add("scores", over_rows(np.ones_like(x)))
    table.add("read", over_rows(read))
    for name, values, denominator in (
        ("exact_match", x == y, "scores"),
        ("mae", errors, "scores"),
        ("mae_answered", np.where(read, errors, 0.0), "read"),
        ("constant_baseline", np.abs(x - constant), "scores"),
        ("majority_baseline", x == commonest, "scores"),
    ):
        table.add(f"{name}:sum", over_rows(values))
        n = len(rows) if denominator == "scores" else len(set(owner[read].tolist()))
        table.ratio(name, f"{name}:sum", denominator, n)
    metrics.add_pearson(table, owner[read].tolist(), x[read].tolist(), y[read].tolist())
    table.row_scores = over_rows(errors) / over_rows(np.ones_like(x))
    return table


def _open(rows: Sequence[Row]) -> Table:
    parsed = _parse(rows, lambda row, text: parse_text(text))
    table = _table(parsed)
    exact = _add_exact_match(table, rows)
    references = [fold(row.reference) for row in rows]
    commonest = Counter(references).most_common(1)[0][0]
    metrics.add_mean(table, "majority_baseline", [reference == commonest for reference in references])
    judged = [np.nan if row.judge_score is None else row.judge_score for row in rows]
    table.row_scores = np.array(exact if np.isnan(judged).all() else judged, dtype=np.float64)
    return table


_MEASURES: dict[str, Callable[[Sequence[Row]], Table]] = {
    "phonemes": _phonemes,
    "closed": _labels,
    "label": _labels,
    "number": _numbers,
    "slots": _slots,
    "pronunciation": _pronunciation,
    "open": _open,
}
