"""Computes bootstrap intervals: clusters of rows are drawn with replacement, and estimates hold the resampled values.

Every metric is a function of column sums over rows, so that a resample is one row of a matrix product. Rows that
share a source recording are drawn together, in all files where the recording occurs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class BootstrapEstimate:
    """A number with the rows it rests on and its values over the resamples (empty without intervals)."""

    value: float  # nan if undefined
    n: int
    replicates: Array

    def interval(self) -> tuple[float, float] | None:
        """Return the percentile interval at 95 %; None without resamples or if the value is undefined."""
        defined = self.replicates[np.isfinite(self.replicates)]
        if not defined.size or not np.isfinite(self.value):
            return None
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return float(low), float(high)


def mean(estimates: Iterable[BootstrapEstimate]) -> BootstrapEstimate:
    """Return the unweighted mean of estimates made on the same draws; undefined ones are left out."""
    defined = [estimate for estimate in estimates if np.isfinite(estimate.value)]
    if not defined:
        return BootstrapEstimate(float("nan"), 0, np.empty(0))
    return BootstrapEstimate(
        float(np.mean([estimate.value for estimate in defined])),
        sum(estimate.n for estimate in defined),
        np.mean([estimate.replicates for estimate in defined], axis=0),
    )


def total(estimates: Iterable[BootstrapEstimate]) -> BootstrapEstimate:
    """Return the sum of estimates made on the same draws."""
    defined = list(estimates)
    return BootstrapEstimate(
        float(sum(estimate.value for estimate in defined)),
        sum(estimate.n for estimate in defined),
        np.sum([estimate.replicates for estimate in defined], axis=0),
    )


def _components(clusters: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the files in groups, so that no recording occurs in two of them."""
    parent = {file: file for file in clusters}

    def root(file: str) -> str:
        while parent[file] != file:
            parent[file] = parent[parent[file]]
            file = parent[file]
        return file

    first: dict[str, str] = {}
    for file, names in clusters.items():
        for name in names:
            parent[root(file)] = root(first.setdefault(name, file))
    groups: dict[str, list[str]] = {}
    for file in sorted(clusters):
        groups.setdefault(root(file), []).append(file)
    return list(groups.values())


class Resampler:
    """Draws of source recordings for a set of files.

    Args:
        clusters: file -> the source recording of each of its rows.
        resamples: how many draws; 0 for none.
        seed: of the draws. They depend on the seed and the recordings alone, so two systems that answered the same
            rows are drawn alike.
    """

    BLOCK = 500  # draws held in memory at a time, at most this many times the recordings of one group

    def __init__(self, clusters: Mapping[str, Sequence[str]], resamples: int, seed: int) -> None:
        if resamples < 0:
            raise ValueError(f"resamples must not be negative, found {resamples}")
        self.resamples = resamples
        self.seed = seed
        self._group: dict[str, int] = {}
        self._rows: dict[str, NDArray[np.intp]] = {}
        self._sizes: list[int] = []
        self._keys: list[int] = []
        for number, files in enumerate(_components(clusters)):
            names = sorted({name for file in files for name in clusters[file]})
            index = {name: position for position, name in enumerate(names)}
            for file in files:
                self._group[file] = number
                self._rows[file] = np.array([index[name] for name in clusters[file]], dtype=np.intp)
            self._sizes.append(len(names))
            self._keys.append(zlib.crc32("\n".join(names).encode()))

    def sums(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Return resampled column sums.

        Args:
            columns: file -> statistics, (rows, k).

        Returns:
            file -> (resamples, k).
        """
        sums = {file: np.empty((self.resamples, matrix.shape[1])) for file, matrix in columns.items()}
        for number, size in enumerate(self._sizes):
            files = [file for file in columns if self._group[file] == number]
            if not files or not self.resamples:
                continue
            by_cluster = []
            for file in files:
                matrix = np.zeros((size, columns[file].shape[1]))
                np.add.at(matrix, self._rows[file], columns[file])
                by_cluster.append(matrix)
            statistics = np.hstack(by_cluster)
            random = np.random.default_rng([self.seed, self._keys[number]])
            edges = np.cumsum([matrix.shape[1] for matrix in by_cluster])[:-1]
            for start in range(0, self.resamples, self.BLOCK):
                stop = min(start + self.BLOCK, self.resamples)
                drawn = random.integers(size, size=(stop - start, size))
                drawn += np.arange(stop - start)[:, None] * size
                counts = np.bincount(drawn.ravel(), minlength=(stop - start) * size).reshape(stop - start, size)
                for file, block in zip(files, np.split(counts @ statistics, edges, axis=1), strict=True):
                    sums[file][start:stop] = block
        return sums
