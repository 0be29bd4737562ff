"""Says how far two judges agree on the same answers: two models, a model and people, or two people.

In come folders of judgements, or tables of ratings; out come shares of equal scores, quadratic weighted kappa,
correlation and mean difference, each with a bootstrap interval over source recordings.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import readers
from .intervals import Array, BootstrapEstimate, Resampler

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = readers.JUDGE_SCALE
SIZE = HIGHEST - LOWEST + 1
Ratings = dict[tuple[str, str], int]
"""Scores from 1 to 5 by (file, id) of the answer."""


def read_ratings(path: Path) -> Ratings:
    """Read scores of answers.

    Args:
        path: a folder of judgements (`judge` of ours, or a released `gpt_result`); or a table of people's ratings,
            `.csv` or `.jsonl`, with the columns `file`, `id` and `score`.

    Returns:
        Scores by (file, id). Lines of a folder without a score are left out; in a table they are an error.

    Raises:
        ValueError: there is no score here, a table's line cannot be used, or an answer is rated twice.
    """
    if not path.is_dir():
        return _read_table(path)
    scores = {}
    for file in sorted(path.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8-sig").split("\n"):
            try:
                record = json.loads(line) if line.strip() else None
            except ValueError:
                logger.warning("%s: a line that is not JSON is left out", file)
                continue
            if not isinstance(record, dict):
                continue
            score = readers.judge_score(record["score"] if "score" in record else record.get("evaluation"))
            name = str(record.get("id", record.get("index")))
            if score is not None and score.is_integer():
                scores[file.stem, name] = int(score)
            elif score is not None:
                logger.warning("%s: the score %g of %s is no whole number and is left out", file, score, name)
    if not scores:
        raise ValueError(f"{path}: no judgement here; expected the <file>.jsonl of a judge or gpt_result folder")
    return scores


def _read_table(path: Path) -> Ratings:
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: neither a folder of judgements nor a .csv or .jsonl of ratings")
    scores: Ratings = {}
    for number, record in _table_lines(path):
        where = f"{path}:{number}"
        if missing := [name for name in ("file", "id", "score") if record.get(name) in (None, "")]:
            raise ValueError(f"{where}: no {', '.join(missing)}; a rating has file, id and score")
        try:
            score = int(str(record["score"]))
        except ValueError:
            score = LOWEST - 1
        if not LOWEST <= score <= HIGHEST:
            raise ValueError(f"{where}: the score {record['score']!r} is no whole number from {LOWEST} to {HIGHEST}")
        key = (str(record["file"]), str(record["id"]))
        if key in scores:
            raise ValueError(f"{where}: {key[1]} of {key[0]} is rated twice; give each rater a file of their own")
        scores[key] = score
    if not scores:
        raise ValueError(f"{path}: no rating here")
    return scores


def _table_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    with io.StringIO(text, newline="") as lines:
        if path.suffix == ".csv":
            reader = csv.DictReader(lines, strict=True)
            names = list(reader.fieldnames or ())
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{path}: its header names {', '.join(twice)} twice")
            try:
                for record in reader:
                    if None in record:
                        raise ValueError(f"{path}:{reader.line_num}: more cells than the header has")
                    yield reader.line_num, record
            except csv.Error as error:
                raise ValueError(
                    f"{path}:{reader.reader.line_num}: {error}; write a quote within a cell twice"
                ) from None
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}:{number}: expected an object with file, id and score")
            yield number, record


def agreement(
    first: Mapping[tuple[str, str], int],
    second: Mapping[tuple[str, str], int],
    clusters: Mapping[tuple[str, str], str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how two judges agree on the answers that both rated.

    Args:
        first: scores from 1 to 5 by (file, id).
        second: the other judge's.
        clusters: the source recording of every answer.
        resamples: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.

    Returns:
        `n`, the answers; `equal` and `within_one`, shares of scores that are equal and at most one apart;
        `kappa_quadratic` (Cohen 1968); `pearson`; `mean_difference`, second - first: each with `value`, `low` and
        `high`, None if undefined, as kappa is if both judges gave one score to everything. `counts` is 5 x 5, the
        first judge by row.
    """
    shared = sorted(first.keys() & second.keys() & clusters.keys())
    cells = np.zeros((len(shared), SIZE * SIZE))
    for number, key in enumerate(shared):
        cells[number, (first[key] - LOWEST) * SIZE + second[key] - LOWEST] = 1
    table = cells.sum(axis=0)
    found: dict[str, Any] = {"n": len(shared), "counts": table.reshape(SIZE, SIZE).astype(int).tolist()}
    if not shared:
        return found
    drawn = Resampler({"": [clusters[key] for key in shared]}, resamples, seed).sums({"": cells})[""]
    for name, statistic in STATISTICS.items():
        value = float(statistic(table[None])[0])
        estimate = BootstrapEstimate(value, len(shared), statistic(drawn))
        low, high = estimate.interval() or (None, None)
        found[name] = {"value": value if np.isfinite(value) else None, "low": low, "high": high}
    return found


_STEP = np.arange(SIZE, dtype=np.float64)
_APART = np.abs(_STEP[:, None] - _STEP[None, :])


def _shares(tables: Array) -> tuple[Array, Array, Array]:
    """Return tables of counts (k, 25) as shares (k, 5, 5), with the shares of their rows and columns (k, 5)."""
    shares = tables.reshape(-1, SIZE, SIZE) / tables.sum(axis=1)[:, None, None]
    return shares, shares.sum(axis=2), shares.sum(axis=1)


def _kappa(tables: Array) -> Array:
    shares, rows, columns = _shares(tables)
    expected = np.einsum("ki,ij,kj->k", rows, _APART**2, columns)
    return _ratio(expected - (shares * _APART**2).sum(axis=(1, 2)), expected)


def _pearson(tables: Array) -> Array:
    shares, rows, columns = _shares(tables)
    one, two = rows @ _STEP, columns @ _STEP
    spread = (rows @ _STEP**2 - one**2) * (columns @ _STEP**2 - two**2)
    return _ratio(np.einsum("i,kij,j->k", _STEP, shares, _STEP) - one * two, np.sqrt(np.maximum(spread, 0)))


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 1e-12)


STATISTICS: dict[str, Callable[[Array], Array]] = {
    "equal": lambda tables: (_shares(tables)[0] * (_APART == 0)).sum(axis=(1, 2)),
    "within_one": lambda tables: (_shares(tables)[0] * (_APART <= 1)).sum(axis=(1, 2)),
    "kappa_quadratic": _kappa,
    "pearson": _pearson,
    "mean_difference": lambda tables: _shares(tables)[2] @ _STEP - _shares(tables)[1] @ _STEP,
}


def row_clusters(answers: readers.SystemAnswers) -> dict[tuple[str, str], str]:
    """Return the source recording of every answer, by (file, id)."""
    return {(row.file, row.id): row.cluster for rows in answers.files.values() for row in rows}


def compare_ratings(
    answers: Path | str, first: Path, second: Path, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return how two sets of ratings of one system's answers agree; see `agreement`.

    Args:
        answers: the folder of the answers that were rated.
        first: a folder of judgements or a table of ratings, see `read_ratings`.
        second: the other.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        What `agreement` gives, and how many ratings of each are of the first or second alone, or of no answer here.

    Raises:
        ValueError: ratings cannot be read, or no answer has both.
    """
    clusters = row_clusters(readers.read(answers))
    one, two = read_ratings(first), read_ratings(second)
    found = agreement(one, two, clusters, resamples=resamples, seed=seed)
    if not found["n"]:
        raise ValueError(
            f"{first} and {second} rate no answer of {answers} both; file and id must be those of its rows"
        )
    return found | {
        "first": str(first),
        "second": str(second),
        "only_first": len(one.keys() - two.keys()),
        "only_second": len(two.keys() - one.keys()),
        "unknown": len((one.keys() | two.keys()) - clusters.keys()),
    }
