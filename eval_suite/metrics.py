"""Metrics as functions of column sums.

A `Table` holds statistics of one file's rows (errors and words, hits per label, …) and the metrics that can be
computed from their sums; so one code path gives a value, its bootstrap distribution, and any subset. Everything is
vectorized over the resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from rapidfuzz.distance import Levenshtein

from .intervals import Array


class Sums:
    """Column sums of one or many resamples, by the columns' names."""

    def __init__(self, matrix: Array, slices: Mapping[str, slice]) -> None:
        self._matrix = matrix
        self._slices = slices

    def __getitem__(self, name: str) -> Array:
        """The sums of column `name`: (resamples,), or (resamples, classes) where it has several."""
        part = self._matrix[:, self._slices[name]]
        return part[:, 0] if part.shape[1] == 1 else part

    def classes(self, name: str) -> Array:
        """The sums of a column with one entry a class: (resamples, classes), also for a single class."""
        return self._matrix[:, self._slices[name]]


@dataclass(frozen=True)
class Metric:
    """A function of sums and the number of rows it rests on."""

    compute: Callable[[Sums], Array]
    n: int


@dataclass
class Table:
    """One file's rows as statistics, with the metrics over them.

    `outcomes` and `parsed` say row by row what was read; `row_scores` is each row's share in the primary metric
    (nan where it has none).
    """

    rows: int
    outcomes: list[str]
    parsed: list[object]
    metrics: dict[str, Metric] = field(default_factory=dict)
    row_scores: Array = field(default_factory=lambda: np.empty(0))
    confusion: dict[str, object] | None = None
    _columns: list[Array] = field(default_factory=list)
    _slices: dict[str, slice] = field(default_factory=dict)
    _width: int = 0

    def add(self, name: str, values: ArrayLike) -> Array:
        """Add a statistic: one number a row, or one a class and row."""
        column = np.asarray(values, dtype=np.float64).reshape(self.rows, -1)
        assert name not in self._slices
        self._columns.append(column)
        self._slices[name] = slice(self._width, self._width + column.shape[1])
        self._width += column.shape[1]
        return column

    def matrix(self) -> Array:
        """All statistics, (rows, k)."""
        return np.hstack(self._columns) if self._columns else np.empty((self.rows, 0))

    def ratio(self, metric: str, numerator: str, denominator: str, n: int | None = None) -> None:
        """Add the metric sum(numerator) / sum(denominator)."""
        self.metrics[metric] = Metric(
            lambda sums: divide(sums[numerator], sums[denominator]), self.rows if n is None else n
        )

    def subset(self, rows: Sequence[int]) -> Table:
        """The same statistics and metrics on some of the rows; a metric's n is then at most their number."""
        part = Table(
            len(rows),
            [self.outcomes[row] for row in rows],
            [self.parsed[row] for row in rows],
            {name: Metric(metric.compute, min(metric.n, len(rows))) for name, metric in self.metrics.items()},
            self.row_scores[rows],
        )
        part._columns = [column[rows] for column in self._columns]
        part._slices, part._width = self._slices, self._width
        return part

    def evaluate(self, sums: Array) -> dict[str, Array]:
        """Every metric on column sums of shape (resamples, k)."""
        view = Sums(sums, self._slices)
        return {name: metric.compute(view) for name, metric in self.metrics.items()}

    def values(self) -> dict[str, float]:
        """Every metric on the rows themselves."""
        return {name: float(value[0]) for name, value in self.evaluate(self.matrix().sum(axis=0)[None]).items()}


def divide(numerator: Array, denominator: Array) -> Array:
    """The quotient; nan where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)


# Edits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Edits:
    """Edits that turn a reference into a hypothesis."""

    insertions: int
    deletions: int
    substitutions: int
    length: int  # of the reference

    @property
    def errors(self) -> int:
        return self.insertions + self.deletions + self.substitutions


def count_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """Minimal insertions, deletions and substitutions between two sequences of words."""
    counts = {"insert": 0, "delete": 0, "replace": 0}
    for operation in Levenshtein.editops(reference, hypothesis):
        counts[operation.tag] += 1
    return Edits(counts["insert"], counts["delete"], counts["replace"], len(reference))


def add_corpus_rate(table: Table, name: str, errors: ArrayLike, lengths: ArrayLike) -> None:
    """Add `name`: errors over the corpus divided by the references' length (nan for references without any)."""
    table.add(f"{name}:errors", errors)
    table.add(f"{name}:length", lengths)
    table.ratio(name, f"{name}:errors", f"{name}:length")


def add_macro_rate(table: Table, name: str, errors: ArrayLike, lengths: ArrayLike) -> None:
    """Add `name`: the mean over rows of errors / length; rows with an empty reference have no rate."""
    rates = divide(np.asarray(errors, dtype=np.float64), np.asarray(lengths, dtype=np.float64))
    defined = np.isfinite(rates)
    table.add(f"{name}:rates", np.where(defined, rates, 0.0))
    table.add(f"{name}:rows", defined)
    table.ratio(name, f"{name}:rates", f"{name}:rows", int(defined.sum()))


def add_count(table: Table, name: str, values: ArrayLike) -> None:
    """Add `name`: a plain sum over rows."""
    table.add(name, values)
    table.metrics[name] = Metric(lambda sums: sums[name], table.rows)


def add_mean(table: Table, name: str, values: ArrayLike, used: ArrayLike | None = None) -> None:
    """Add `name`: the mean of `values` over the rows in `used` (all rows by default)."""
    mask = np.ones(table.rows, dtype=bool) if used is None else np.asarray(used, dtype=bool)
    table.add(f"{name}:sum", np.where(mask, np.asarray(values, dtype=np.float64), 0.0))
    table.add(f"{name}:rows", mask)
    table.ratio(name, f"{name}:sum", f"{name}:rows", int(mask.sum()))


# Labels --------------------------------------------------------------------------------------------------------


def add_classification(
    table: Table, references: Sequence[str], answers: Sequence[str | None], choices: Sequence[int]
) -> None:
    """Add the metrics of a closed set.

    accuracy over all rows; accuracy over answered rows; balanced accuracy (mean recall over the labels that occur
    as references); macro F1 over the same labels; what always giving the commonest label and drawing one of the
    row's choices would score; the share of rows that got the commonest answer.

    Args:
        table: of the rows.
        references: the rows' labels.
        answers: the labels read; None where a row has none.
        choices: how many labels each row offered.
    """
    labels = sorted(set(references) | {answer for answer in answers if answer is not None})
    index = {label: position for position, label in enumerate(labels)}
    one_hot = np.eye(len(labels))
    truth = np.array([index[label] for label in references], dtype=np.intp)
    guess = np.array([-1 if answer is None else index[answer] for answer in answers], dtype=np.intp)
    answered, correct = guess >= 0, guess == truth
    table.add("rows", np.ones(table.rows))
    table.add("answered", answered)
    table.add("correct", correct)
    table.add("truth", one_hot[truth])
    table.add("guess", np.where(answered[:, None], one_hot[guess], 0.0))
    table.add("hit", np.where(correct[:, None], one_hot[truth], 0.0))
    counts = np.bincount(truth, minlength=len(labels))
    table.add("majority", truth == counts.argmax())
    table.add("chance", 1 / np.asarray(choices, dtype=np.float64))

    def balanced(sums: Sums) -> Array:
        recall = divide(sums.classes("hit"), sums.classes("truth"))
        return _nan_mean(recall)

    def macro_f1(sums: Sums) -> Array:
        true = sums.classes("truth")
        f1 = divide(2 * sums.classes("hit"), true + sums.classes("guess"))
        return _nan_mean(np.where(true > 0, f1, np.nan))

    table.ratio("accuracy", "correct", "rows")
    table.ratio("accuracy_answered", "correct", "answered", int(answered.sum()))
    table.metrics["balanced_accuracy"] = Metric(balanced, table.rows)
    table.metrics["macro_f1"] = Metric(macro_f1, table.rows)
    table.ratio("majority_baseline", "majority", "rows")
    table.ratio("chance_baseline", "chance", "rows")
    table.metrics["top_answer_share"] = Metric(
        lambda sums: divide(sums.classes("guess").max(axis=1), sums["rows"]), table.rows
    )
    table.row_scores = correct.astype(np.float64)
    matrix = np.zeros((len(labels), len(labels) + 1), dtype=int)
    np.add.at(matrix, (truth, np.where(answered, guess, len(labels))), 1)
    table.confusion = {
        "labels": labels,
        "counts": matrix[:, :-1].tolist(),
        "unanswered": matrix[:, -1].tolist(),
    }


def _nan_mean(values: Array) -> Array:
    """The mean over classes, leaving out undefined ones; nan where all are."""
    defined = np.isfinite(values)
    return divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


# Numbers -------------------------------------------------------------------------------------------------------


def worst_error(reference: Array, low: float, high: float) -> Array:
    """What a missing number is charged: the largest error possible on the scale."""
    return np.maximum(reference - low, high - reference)


def add_numbers(
    table: Table, references: Sequence[float], answers: Sequence[float | None], low: float, high: float
) -> None:
    """Add the metrics of a number: mae over all rows (missing ones at worst), over answered rows, and of the median.

    Args:
        table: of the rows.
        references: the true numbers.
        answers: the numbers read; None where a row has none.
        low: of the scale.
        high: of the scale.
    """
    truth = np.array(references, dtype=np.float64)
    answered = np.array([answer is not None for answer in answers], dtype=bool)
    guess = np.array([np.nan if answer is None else answer for answer in answers], dtype=np.float64)
    errors = np.where(answered, np.abs(guess - truth), worst_error(truth, low, high))
    add_mean(table, "mae", errors)
    add_mean(table, "mae_answered", errors, answered)
    add_mean(table, "constant_baseline", np.abs(truth - np.median(truth)))
    table.row_scores = errors


def add_pearson(table: Table, rows: Sequence[int], truth: Sequence[float], guess: Sequence[float]) -> None:
    """Add `pearson`: the correlation over pairs, each belonging to one of the rows."""
    columns = np.zeros((table.rows, 6))
    x, y = np.asarray(truth, dtype=np.float64), np.asarray(guess, dtype=np.float64)
    np.add.at(columns, np.asarray(rows, dtype=np.intp), np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1))
    table.add("pearson:moments", columns)

    def pearson(sums: Sums) -> Array:
        n, sx, sy, sxx, syy, sxy = np.moveaxis(sums.classes("pearson:moments"), 1, 0)
        spread = np.sqrt(np.maximum(n * sxx - sx * sx, 0) * np.maximum(n * syy - sy * sy, 0))
        return divide(n * sxy - sx * sy, np.where(spread < 1e-9, 0.0, spread))

    table.metrics["pearson"] = Metric(pearson, len(set(rows)))


# Slots ---------------------------------------------------------------------------------------------------------


def add_slot_scores(table: Table, hits: ArrayLike, given: ArrayLike, wanted: ArrayLike) -> None:
    """Add micro-averaged slot precision, recall and F1."""
    table.add("hits", hits)
    table.add("given", given)
    table.add("wanted", wanted)
    table.ratio("slot_precision", "hits", "given")
    table.ratio("slot_recall", "hits", "wanted")
    table.metrics["slot_f1"] = Metric(
        lambda sums: divide(2 * sums["hits"], sums["given"] + sums["wanted"]), table.rows
    )
