"""The metrics, each declared once: its name, formula, direction, perfect value, baseline, and the answers it ranks.

`METRICS` is the whole table. Scores, skill, the panel, the report, `compare` and the module's card read it, and
no other module names a metric. A metric is a function of column sums over rows (errors and words, hits per
label, …), so that one code path gives a value, its bootstrap distribution, a subset, and a row's own share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .intervals import Array

PROTOCOLS = ("strict", "paper")
RUNAWAY_FACTOR, RUNAWAY_WORDS = 2, 10
"""A transcript is a run-away output with more than FACTOR times the reference's words, and WORDS on top of that."""


class Quantities:
    """The quantities that were measured on the rows of one file, as columns.

    Args:
        rows: each row's quantities by name, as `strict.read_rows` and `paper.read_rows` write them.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def values(self, name: str) -> list[Any] | None:
        """Return the quantity of every row; None if a row does not have it."""
        return [row[name] for row in self._rows] if all(name in row for row in self._rows) else None

    def numbers(self, name: str) -> Array | None:
        """Return the quantity of every row as numbers, (rows,), with nan for null; None if a row does not have it."""
        values = self.values(name)
        return None if values is None else np.array(values, dtype=np.float64)

    @cached_property
    def pairs(self) -> Pairs | None:
        """Return the true and given numbers of all rows, one after another; None if a row has none."""
        if (values := self.values("numbers")) is None:
            return None
        flat = [(row, *pair) for row, pairs in enumerate(values) for pair in pairs]
        owners, names, truth, given = zip(*flat, strict=True)
        return Pairs(
            len(self),
            np.array(owners, np.intp),
            np.array(names),
            np.array(truth, float),
            np.array(given, dtype=np.float64),
        )


@dataclass(frozen=True)
class Pairs:
    """Numbers to be read from answers: `owner` is the row of each, `given` is nan if the answer does not have it."""

    rows: int
    owner: NDArray[np.intp]
    name: NDArray[np.str_]
    truth: Array
    given: Array

    def by_row(self, values: ArrayLike) -> Array:
        """Return the sums of `values` over the numbers of each row, (rows,)."""
        return np.bincount(self.owner, weights=np.asarray(values, dtype=np.float64), minlength=self.rows).astype(
            np.float64
        )


@dataclass(frozen=True)
class Statistic:
    """A metric of one file.

    `columns` (rows, k) hold what is added up over rows, `compute` turns sums (resamples, k) into values (resamples,),
    and `n` is the number of rows that the value rests on.
    """

    columns: Array
    compute: Callable[[Array], Array]
    n: int

    def by_row(self) -> Array:
        """Return what the metric would be of each row alone; nan if that is undefined."""
        return self.compute(self.columns)


Compute = Callable[[Quantities], Statistic | None]
"""Returns None if the rows do not have the quantities that the metric needs."""


def divide(numerator: Array, denominator: Array) -> Array:
    """Return the quotient; nan if the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)


# Statistics ----------------------------------------------------------------------------------------------------


def ratio_of(numerator: ArrayLike, denominator: ArrayLike, n: int | None = None) -> Statistic:
    """Return sum(numerator) / sum(denominator) over rows; `n` is all rows by default."""
    columns = np.stack([np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)], axis=1)
    return Statistic(columns, lambda sums: divide(sums[:, 0], sums[:, 1]), len(columns) if n is None else n)


def mean_of(values: ArrayLike, used: ArrayLike | None = None) -> Statistic:
    """Return the mean of `values` over the rows in `used`, all rows by default."""
    numbers = np.asarray(values, dtype=np.float64)
    mask = np.ones(len(numbers), dtype=bool) if used is None else np.asarray(used, dtype=bool)
    return ratio_of(np.where(mask, numbers, 0.0), mask, int(mask.sum()))


def rate(errors: str, lengths: str) -> Compute:
    """Return the metric "errors over the corpus divided by the corpus's length"."""

    def compute(rows: Quantities) -> Statistic | None:
        counts, sizes = rows.numbers(errors), rows.numbers(lengths)
        return None if counts is None or sizes is None else ratio_of(counts, sizes)

    return compute


def macro_rate(errors: str, lengths: str) -> Compute:
    """Return the metric "mean over rows of errors / length"; rows of length 0 have no rate."""

    def compute(rows: Quantities) -> Statistic | None:
        counts, sizes = rows.numbers(errors), rows.numbers(lengths)
        return None if counts is None or sizes is None else mean_of(divide(counts, sizes), sizes > 0)

    return compute


def mean(name: str) -> Compute:
    """Return the metric "mean of a quantity over the rows in which it is not null"."""

    def compute(rows: Quantities) -> Statistic | None:
        values = rows.numbers(name)
        return None if values is None else mean_of(values, np.isfinite(values))

    return compute


def count(name: str) -> Compute:
    """Return the metric "sum of a quantity over rows"."""

    def compute(rows: Quantities) -> Statistic | None:
        values = rows.numbers(name)
        return None if values is None else Statistic(values[:, None], lambda sums: sums[:, 0], len(values))

    return compute


def _empty(rows: Quantities) -> Statistic | None:
    """Return what an empty answer scores: it deletes every word or symbol, and finds no slot."""
    for name in ("words", "symbols"):
        if (lengths := rows.numbers(name)) is not None:
            return ratio_of(lengths, lengths)
    return mean_of(np.zeros(len(rows))) if rows.values("slots") is not None else None


def _runaways(rows: Quantities) -> Statistic | None:
    counts = [rows.numbers(name) for name in ("words", "insertions", "deletions")]
    if any(values is None for values in counts):
        return None
    words, insertions, deletions = counts  # type: ignore[misc]
    too_long = words + insertions - deletions > RUNAWAY_FACTOR * words + RUNAWAY_WORDS  # type: ignore[operator]
    return Statistic(too_long[:, None].astype(np.float64), lambda sums: sums[:, 0], len(rows))


# Labels


@dataclass(frozen=True)
class Labels:
    """The labels of a closed set's rows as numbers; `guess` is -1 if an answer names no single label."""

    names: list[str]
    truth: NDArray[np.intp]
    guess: NDArray[np.intp]

    @classmethod
    def of(cls, rows: Quantities) -> Labels | None:
        """Read the labels; None if the rows have none or were not asked for any."""
        references, answers = rows.values("label"), rows.values("answer")
        if references is None or answers is None:
            return None
        names = sorted(set(references) | {answer for answer in answers if answer is not None})
        index = {name: position for position, name in enumerate(names)}
        truth = np.array([index[label] for label in references], dtype=np.intp)
        return cls(names, truth, np.array([index.get(answer, -1) for answer in answers], dtype=np.intp))

    def one_hot(self, which: NDArray[np.intp], where: NDArray[np.bool_] | None = None) -> Array:
        """Return one column a label: 1 if the row has it, and 0 in rows outside of `where`."""
        columns = np.eye(len(self.names))[which]
        return columns if where is None else np.where(where[:, None], columns, 0.0)

    def confusion(self) -> dict[str, Any]:
        """Return the rows by right label and label read, and those without a label read."""
        size = len(self.names)
        matrix = np.zeros((size, size + 1), dtype=int)
        np.add.at(matrix, (self.truth, np.where(self.guess >= 0, self.guess, size)), 1)
        return {"labels": self.names, "counts": matrix[:, :-1].tolist(), "unanswered": matrix[:, -1].tolist()}


def _of_labels(statistic: Callable[[Labels], Statistic]) -> Compute:
    def compute(rows: Quantities) -> Statistic | None:
        labels = Labels.of(rows)
        return None if labels is None else statistic(labels)

    return compute


def _accuracy(labels: Labels) -> Statistic:
    return mean_of(labels.guess == labels.truth)


def _accuracy_answered(labels: Labels) -> Statistic:
    return mean_of(labels.guess == labels.truth, labels.guess >= 0)


def _nan_mean(values: Array) -> Array:
    """Return the mean over labels, leaving out undefined ones."""
    defined = np.isfinite(values)
    return divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def _balanced(labels: Labels) -> Statistic:
    size = len(labels.names)
    truth, hit = labels.one_hot(labels.truth), labels.one_hot(labels.truth, labels.guess == labels.truth)
    return Statistic(
        np.hstack([truth, hit]), lambda sums: _nan_mean(divide(sums[:, size:], sums[:, :size])), len(truth)
    )


def _macro_f1(labels: Labels) -> Statistic:
    size = len(labels.names)
    truth, hit = labels.one_hot(labels.truth), labels.one_hot(labels.truth, labels.guess == labels.truth)

    def compute(sums: Array) -> Array:
        true, hits, guessed = sums[:, :size], sums[:, size : 2 * size], sums[:, 2 * size :]
        return _nan_mean(np.where(true > 0, divide(2 * hits, true + guessed), np.nan))

    return Statistic(np.hstack([truth, hit, labels.one_hot(labels.guess, labels.guess >= 0)]), compute, len(truth))


def _top_answer(labels: Labels) -> Statistic:
    guess = labels.one_hot(labels.guess, labels.guess >= 0)
    columns = np.hstack([guess, np.ones((len(guess), 1))])
    return Statistic(columns, lambda sums: divide(sums[:, :-1].max(axis=1), sums[:, -1]), len(guess))


def _majority(rows: Quantities) -> Statistic | None:
    """Return what always giving the commonest label, or the commonest number of each kind, would score."""
    if (references := rows.values("label")) is not None:
        # Ties: of a closed set the first label in the alphabet counts, of open answers the first to occur.
        ordered = sorted(references) if rows.values("answer") is not None else references
        commonest = Counter(ordered).most_common(1)[0][0]
        return mean_of([reference == commonest for reference in references])
    if rows.values("exact_numbers") is None or (pairs := rows.pairs) is None:
        return None
    hit = np.zeros(len(pairs.truth), dtype=bool)
    for name in np.unique(pairs.name):
        chosen = pairs.name == name
        values, counts = np.unique(pairs.truth[chosen], return_counts=True)
        hit[chosen] = pairs.truth[chosen] == values[counts.argmax()]
    return ratio_of(pairs.by_row(hit), pairs.by_row(np.ones_like(pairs.truth)))


def _chance(rows: Quantities) -> Statistic | None:
    choices = rows.numbers("choices")
    return None if choices is None else mean_of(1 / choices)


# Numbers


def _mae(rows: Quantities) -> Statistic | None:
    errors, pairs = rows.numbers("error"), rows.pairs
    if errors is None or pairs is None:
        return None
    return ratio_of(errors, pairs.by_row(np.ones_like(pairs.truth)))


def _mae_answered(rows: Quantities) -> Statistic | None:
    if (pairs := rows.pairs) is None:
        return None
    read = np.isfinite(pairs.given)
    errors = pairs.by_row(np.where(read, np.abs(pairs.given - pairs.truth), 0.0))
    return ratio_of(errors, pairs.by_row(read), len(set(pairs.owner[read].tolist())))


def _constant(rows: Quantities) -> Statistic | None:
    """Return what always giving the median of each kind of number would score."""
    if (pairs := rows.pairs) is None:
        return None
    median = np.empty_like(pairs.truth)
    for name in np.unique(pairs.name):
        chosen = pairs.name == name
        median[chosen] = np.median(pairs.truth[chosen])
    return ratio_of(pairs.by_row(np.abs(pairs.truth - median)), pairs.by_row(np.ones_like(median)))


def _exact(rows: Quantities) -> Statistic | None:
    if (exact := rows.numbers("exact")) is not None:
        return mean_of(exact)
    equal = rows.numbers("exact_numbers")
    if equal is None or (pairs := rows.pairs) is None:
        return None
    return ratio_of(equal, pairs.by_row(np.ones_like(pairs.truth)))


def _pearson(rows: Quantities) -> Statistic | None:
    if rows.values("exact_numbers") is None or (pairs := rows.pairs) is None:
        return None
    read = np.isfinite(pairs.given)
    x, y, owner = pairs.truth[read], pairs.given[read], pairs.owner[read]
    columns = np.zeros((len(rows), 6))
    np.add.at(columns, owner, np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1))

    def compute(sums: Array) -> Array:
        n, sx, sy, sxx, syy, sxy = np.moveaxis(sums, 1, 0)
        spread = np.sqrt(np.maximum(n * sxx - sx * sx, 0) * np.maximum(n * syy - sy * sy, 0))
        return divide(n * sxy - sx * sy, np.where(spread < 1e-9, 0.0, spread))

    return Statistic(columns, compute, len(set(owner.tolist())))


# Slots and the authors' own


def _slot_f1(rows: Quantities) -> Statistic | None:
    if (slots := rows.values("slots")) is None:
        return None
    hits, given, wanted = np.array(slots, dtype=np.float64).T
    return ratio_of(2 * hits, given + wanted)


def _slot_share(of: int) -> Compute:
    def compute(rows: Quantities) -> Statistic | None:
        if (slots := rows.values("slots")) is None:
            return None
        columns = np.array(slots, dtype=np.float64)
        return ratio_of(columns[:, 0], columns[:, of])

    return compute


def _abstention(rows: Quantities) -> Statistic | None:
    if (silent := rows.numbers("silent")) is None:
        return None
    shares = mean_of(silent)
    return Statistic(shares.columns, lambda sums: np.round(100 * shares.compute(sums), 4), shares.n)


def _used(rows: Quantities) -> Statistic | None:
    if (errors := rows.numbers("paper_error")) is None:
        return None
    return Statistic(np.isfinite(errors)[:, None].astype(np.float64), lambda sums: sums[:, 0], len(errors))


def _paper_exact(dimension: str) -> Compute:
    """Return the exact-match rate of one score over the rows in which all three parse in both texts; 0 if none do."""

    def compute(rows: Quantities) -> Statistic | None:
        equal = rows.numbers(dimension)
        if equal is None:
            return None
        rates = mean_of(equal, np.isfinite(equal))
        return Statistic(rates.columns, lambda sums: np.nan_to_num(rates.compute(sums), nan=0.0), rates.n)

    return compute


# Declarations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: in files and tables.
        formula: for the module's card.
        strict: how it is computed under the protocol strict; None if strict does not have it.
        paper: the same under the authors' protocol.
        title: how sentences name it; the name by default.
        better: which way it gets better.
        perfect: its best value; metrics that rank a task have one.
        baseline: what a trivial system gets under strict: the name of the metric that says so, or a fixed value.
        describes_data: whether it describes the data rather than the answers, as baselines do.
        adds_up: whether a task's value is the sum over its files; it is their mean otherwise.
        unit: what a difference of 1 means when differences of several metrics are set alike: a number of this
            metric, or the name of the metric that gives it.
        ranks: by protocol, the kinds of answers that it ranks. If several rank a kind, the first of the table
            that has a value does.
        source: of the formula.
        change: what strict does otherwise than paper, for the report.
    """

    name: str
    formula: str = ""
    strict: Compute | None = None
    paper: Compute | None = None
    title: str = ""
    better: Literal["higher", "lower"] = "higher"
    perfect: float | None = None
    baseline: str | float | None = None
    describes_data: bool = False
    adds_up: bool = False
    unit: str | float = 1.0
    ranks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    source: str = ""
    change: str = ""

    def statistic(self, rows: Quantities, protocol: str) -> Statistic | None:
        """Return the metric of some rows; None if `protocol` or these rows do not have it."""
        compute = self.strict if protocol == "strict" else self.paper
        return compute(rows) if compute is not None else None


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "wer",
            "Σ (S + D + I) / Σ reference words, after Whisper's English normalizer, over all rows",
            strict=rate("word_errors", "words"),
            paper=rate("word_errors", "words"),
            title="WER",
            better="lower",
            perfect=0.0,
            baseline="empty_baseline",
            ranks={"strict": ("transcript",), "paper": ("transcript",)},
            source="Levenshtein 1966; Radford et al. 2022, appendix C",
            change="paper: no normalization, and answer and reference exchanged, so that the answer's words are the "
            "denominator. strict: Whisper's English normalizer, errors over the reference's words.",
        ),
        Metric(
            "wer_macro",
            "mean over rows of word edits / reference words",
            strict=macro_rate("word_errors", "words"),
            better="lower",
        ),
        Metric(
            "cer",
            "as `wer`, over characters",
            strict=rate("character_errors", "characters"),
            paper=rate("character_errors", "characters"),
            better="lower",
        ),
        Metric(
            "cer_macro",
            "mean over rows of character edits / reference characters",
            strict=macro_rate("character_errors", "characters"),
            better="lower",
        ),
        Metric("wer_raw", "`wer` without normalization", strict=rate("raw_word_errors", "raw_words"), better="lower"),
        Metric(
            "cer_raw",
            "`cer` without normalization",
            strict=rate("raw_character_errors", "raw_characters"),
            better="lower",
        ),
        Metric("insertions", "Σ I of `wer`", strict=count("insertions"), better="lower", adds_up=True),
        Metric("deletions", "Σ D of `wer`", strict=count("deletions"), better="lower", adds_up=True),
        Metric("substitutions", "Σ S of `wer`", strict=count("substitutions"), better="lower", adds_up=True),
        Metric(
            "runaway_outputs",
            f"rows with more than {RUNAWAY_FACTOR} × reference words + {RUNAWAY_WORDS}",
            strict=_runaways,
            better="lower",
            adds_up=True,
        ),
        Metric(
            "per",
            "as `wer`, over IPA symbols: NFD; blanks, punctuation and stress marks dropped; combining marks and "
            "ː ˑ ʰ ʲ ʷ ᵊ join the symbol before them; ARPAbet answers are written as IPA first",
            strict=rate("symbol_errors", "symbols"),
            paper=mean("per"),
            title="PER",
            better="lower",
            perfect=0.0,
            baseline="empty_baseline",
            ranks={"strict": ("phonemes",), "paper": ("phonemes",)},
            change="paper: keeps only A–Z of an IPA string, mean over rows, answer and reference exchanged. strict: "
            "IPA symbols, errors over the reference's symbols of the whole file; ARPAbet answers are mapped first.",
        ),
        Metric(
            "per_macro",
            "mean over rows of symbol edits / reference symbols",
            strict=macro_rate("symbol_errors", "symbols"),
            better="lower",
        ),
        Metric(
            "accuracy",
            "Σ [ŷ = y] / N",
            strict=_of_labels(_accuracy),
            paper=mean("correct"),
            perfect=1.0,
            baseline="majority_baseline",
            ranks={"strict": ("closed", "label"), "paper": ("closed",)},
            change='paper: labels found as substrings ("male" in "female"), label set taken from the test file. '
            "strict: the row's own choices, on word boundaries, longest first, inflections as aliases; every row "
            "counts.",
        ),
        Metric("accuracy_answered", "Σ [ŷ = y] / \\|*A*\\|", strict=_of_labels(_accuracy_answered)),
        Metric(
            "balanced_accuracy",
            "mean over labels of recall",
            strict=_of_labels(_balanced),
            source="Brodersen et al. 2010",
        ),
        Metric(
            "macro_f1",
            "mean over labels of 2 TP / (2 TP + FP + FN); labels are those that occur as references",
            strict=_of_labels(_macro_f1),
        ),
        Metric("top_answer_share", "share of rows that got the commonest answer", strict=_of_labels(_top_answer)),
        Metric(
            "abstention_rate",
            "percent of rows that do not name exactly one label of the file",
            paper=_abstention,
            better="lower",
        ),
        Metric(
            "slot_f1",
            "2 hits / (slots given + slots wanted) over `[type : value]` slots as folded multisets, micro-averaged",
            strict=_slot_f1,
            title="slot F1",
            perfect=1.0,
            baseline="empty_baseline",
            ranks={"strict": ("slots",)},
            change="paper: a judge that never sees the question. strict: slots compared as type and value, "
            "micro-averaged F1.",
        ),
        Metric("slot_precision", "hits / slots given", strict=_slot_share(1)),
        Metric("slot_recall", "hits / slots wanted", strict=_slot_share(2)),
        Metric(
            "mae",
            "mean \\|ŷ − y\\| over **all** rows; a row without a usable number counts max(y − lo, hi − y), with "
            "0..127 for pitch, 18..80 for age, 0..10 for pronunciation scores",
            strict=_mae,
            paper=mean("paper_error"),
            title="mean absolute error",
            better="lower",
            perfect=0.0,
            baseline="constant_baseline",
            unit="constant_baseline",
            ranks={"strict": ("number", "pronunciation"), "paper": ("number",)},
            change='paper: rows that do not parse are dropped, "C4" reads as 4. strict: note names are notes, and a '
            "row without a usable number counts the worst error its scale allows.",
        ),
        Metric("mae_answered", "mean \\|ŷ − y\\| over rows with a number", strict=_mae_answered, better="lower"),
        Metric("n_used", "rows that `mae` could read", paper=_used, adds_up=True),
        Metric("pearson", "correlation of given and true scores over those given", strict=_pearson),
        *(
            Metric(f"{dimension}_exact", f"share of equal {dimension} scores", paper=_paper_exact(dimension))
            for dimension in ("accuracy", "prosodic", "fluency")
        ),
        Metric("coverage", "\\|*A*\\| / N", strict=mean("answered")),
        Metric(
            "judge_score",
            "mean of a language model's 1..5 over judged rows; missing judgements are counted, and are never zero",
            strict=mean("judge_score"),
            paper=mean("judge_score"),
            title="judge score",
            perfect=5.0,
            baseline=1.0,
            unit=4.0,
            ranks={"strict": ("open",), "paper": ("label", "slots", "pronunciation", "open")},
            change="the same judge texts; strict counts missing judgements and never turns one into a number.",
        ),
        Metric(
            "exact_match",
            "equality after folding (NFKC, lower case, blanks, final full stop); for pronunciation, of each score",
            strict=_exact,
            title="exact match",
            perfect=1.0,
            baseline="majority_baseline",
            ranks={"strict": ("open",)},
            change="paper: a judge. strict: the folded text equals the reference.",
        ),
        Metric(
            "majority_baseline",
            "accuracy of always giving the commonest reference",
            strict=_majority,
            describes_data=True,
        ),
        Metric("chance_baseline", "mean of 1 / number of choices", strict=_chance, describes_data=True),
        Metric("constant_baseline", "mean \\|median(y) − y\\|", strict=_constant, better="lower", describes_data=True),
        Metric("empty_baseline", "what an empty answer scores", strict=_empty, describes_data=True),
    )
}


def ranking_metrics(kind: str, protocol: str) -> list[Metric]:
    """Return the metrics that may rank answers of a kind; the first that has a value does."""
    return [metric for metric in METRICS.values() if kind in metric.ranks.get(protocol, ())]


def card_table(protocol: str) -> str:
    """Return the metrics of a protocol as the Markdown table of the module's card."""
    lines = ["| metric | formula | source |", "|---|---|---|"]
    for metric in METRICS.values():
        if (metric.strict if protocol == "strict" else metric.paper) is not None:
            lines.append(f"| `{metric.name}` | {metric.formula} | {metric.source} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


class FileMetrics:
    """The metrics of the rows of one file.

    Args:
        rows: each row's quantities.
        protocol: "strict" or "paper".
        only: compute these metrics alone.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], protocol: str, only: Sequence[str] | None = None):
        self.rows = len(rows)
        quantities = Quantities(rows)
        self.statistics: dict[str, Statistic] = {}
        for metric in METRICS.values() if only is None else [METRICS[name] for name in only]:
            if (statistic := metric.statistic(quantities, protocol)) is not None:
                self.statistics[metric.name] = statistic

    def matrix(self) -> Array:
        """Return all columns side by side, (rows, k)."""
        columns = [statistic.columns for statistic in self.statistics.values()]
        return np.hstack(columns) if columns else np.empty((self.rows, 0))

    def evaluate(self, sums: Array) -> dict[str, Array]:
        """Return every metric on sums of the columns, (resamples, k)."""
        values, start = {}, 0
        for name, statistic in self.statistics.items():
            stop = start + statistic.columns.shape[1]
            values[name] = statistic.compute(sums[:, start:stop])
            start = stop
        return values

    def values(self) -> dict[str, float]:
        """Return every metric of the rows themselves."""
        return {name: float(value[0]) for name, value in self.evaluate(self.matrix().sum(axis=0)[None]).items()}

    def ranking(self, kind: str, protocol: str) -> str | None:
        """Return the metric that ranks these rows, the first that has a value; None if none has."""
        values = self.values()
        names = (metric.name for metric in ranking_metrics(kind, protocol))
        return next((name for name in names if math.isfinite(values.get(name, math.nan))), None)
