"""Plans which rows form which micro-batch, for the whole run, before any audio is read.

Rows lie in row groups, the units in which Parquet is read. An epoch shuffles twice: the row groups, and then the rows
of a window, which spans several of them and in which batches are formed by length. The shuffled groups, end to end,
are cut into lanes, as many as a step has micro-batches; every step takes one micro-batch from each lane. A process
reads its own lanes only: neighbouring ones, so that it shares at most the row groups at the two ends of its part with
other processes.

Every order is a function of seed, epoch and position, not of workers, restarts or the number of processes: a killed
run finds its place without reading what came before it, and the processes of a run train on the rows of one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Step = list[np.ndarray]
"""The micro-batches of a step, one for each lane, as numbers of rows."""


def seeded(*parts: object) -> np.random.Generator:
    """Return a random generator that depends on the values of `parts` only."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


@dataclass(frozen=True)
class BatchRule:
    """How rows become micro-batches.

    Attributes:
        per_device: rows of a micro-batch, at most.
        max_tokens: tokens that a micro-batch computes, at most; 0 means no limit. A single row may exceed it.
        group_by_length: sort a lane's rows of a window by length before cutting them.
        window: micro-batches of a lane that are sorted together.
        parallel: micro-batches of one optimizer step, all processes together.
        packing: a micro-batch computes the tokens of its rows; without it, rows x longest row.
    """

    per_device: int
    max_tokens: int = 0
    group_by_length: bool = True
    window: int = 64
    parallel: int = 1
    packing: bool = False

    def cut(self, lengths: np.ndarray) -> list[slice]:
        """Cut rows, in the order given, into micro-batches; return their places."""
        if not self.max_tokens:
            return [slice(at, at + self.per_device) for at in range(0, len(lengths), self.per_device)]
        cuts, start, longest, total = [], 0, 0, 0
        for at, length in enumerate(lengths.tolist()):
            longest, total = max(longest, length), total + length
            computed = total if self.packing else (at - start + 1) * longest
            if at > start and (at - start == self.per_device or computed > self.max_tokens):
                cuts.append(slice(start, at))
                start, longest, total = at, length, length
        return [*cuts, slice(start, len(lengths))]

    def computed_tokens(self, lengths: np.ndarray) -> int:
        """Return the tokens that a micro-batch computes, padding included."""
        return int(lengths.sum()) if self.packing else len(lengths) * int(lengths.max())


@dataclass(frozen=True)
class RowGroups:
    """The rows of a run as they lie in row groups.

    Attributes:
        lengths: `(rows,)`, tokens after audio expansion.
        starts: `(groups + 1,)`, the number of each group's first row, and of one after the last.
        drawn_from: groups from this one on are not all read each epoch; some rows of them are, drawn anew and spread
            evenly among the others. None: every row is read.
        drawn: how many.
    """

    lengths: np.ndarray
    starts: np.ndarray
    drawn_from: int | None = None
    drawn: int = 0

    @property
    def always(self) -> int:
        """Rows that every epoch reads."""
        return len(self.lengths) if self.drawn_from is None else int(self.starts[self.drawn_from])


class Plan:
    """The steps of a run, found by their number.

    Args:
        groups: the rows.
        rule: how they become micro-batches.
        seed: of the run.

    Raises:
        ValueError: there are too few rows for a single step.
    """

    def __init__(self, groups: RowGroups, rule: BatchRule, seed: int) -> None:
        self.groups, self.rule, self.seed = groups, rule, seed
        self.rows = groups.always + groups.drawn
        """Rows of an epoch."""
        lane = self.rows // rule.parallel
        if not lane:
            raise ValueError(
                f"the recipe's data section admits {self.rows:,} rows, fewer than the {rule.parallel} micro-batches "
                "of one step need; take a smaller batch.accumulation (or batch.rows), a larger batch.per_device, "
                "fewer processes or more data"
            )
        self.windows = max(1, min(lane // rule.per_device, round(lane / (rule.per_device * rule.window))))
        """Windows of an epoch."""
        self._order = functools.lru_cache(maxsize=4)(self._shuffled_groups)
        self._steps_in = functools.lru_cache(maxsize=None)(self._count_steps)

    def steps(self, epoch: int, window: int) -> list[Step]:
        """Return the steps of a window.

        Micro-batches of a step come from the same place in the order of length of their lanes, so that processes work
        at the same time on batches of similar size. At most lanes - 1 rows of an epoch are left out.
        """
        lanes = [self._lane_rows(epoch, window, lane) for lane in range(self.rule.parallel)]
        cuts = [self.rule.cut(self.groups.lengths[rows]) for rows in lanes]
        fewest, counts = min(map(len, lanes)), {len(places) for places in cuts}
        if len(counts) > 1 and not (self.rule.max_tokens and max(counts) <= fewest):  # for lanes with a row more
            lanes = [rows[:fewest] for rows in lanes]
            cuts = [self.rule.cut(self.groups.lengths[rows]) for rows in lanes]
        count = max(map(len, cuts))
        order = range(count)
        if self.rule.group_by_length:
            order = seeded(self.seed, epoch, window, "batches").permutation(count).tolist()
        cuts = [_split_to(places, count) for places in cuts]
        return [[rows[places[at]] for rows, places in zip(lanes, cuts, strict=True)] for at in order]

    def steps_in(self, epoch: int, window: int) -> int:
        """Count the steps of a window. Only a limit in tokens makes them differ from one epoch to the next."""
        return self._steps_in(epoch if self.rule.max_tokens else 0, window)

    def epoch_steps(self, epoch: int = 0) -> int:
        """Count the steps of an epoch."""
        return sum(self.steps_in(epoch, window) for window in range(self.windows))

    def epoch(self, epoch: int) -> Iterator[Step]:
        """Yield the steps of an epoch."""
        return itertools.chain.from_iterable(self.steps(epoch, window) for window in range(self.windows))

    def windows_from(self, step: int) -> Iterator[tuple[int, int, int]]:
        """Yield epoch, window and the first step in it, from a step of the run on, without end."""
        for epoch in itertools.count():
            for window in range(self.windows):
                steps = self.steps_in(epoch, window)
                if step < steps:
                    yield epoch, window, step
                step = max(0, step - steps)

    def _count_steps(self, epoch: int, window: int) -> int:
        if self.rule.max_tokens:
            return len(self.steps(epoch, window))
        sizes = [stop - start for start, stop in (self._places(window, lane) for lane in range(self.rule.parallel))]
        return -(-min(sizes) // self.rule.per_device)

    def _places(self, window: int, lane: int) -> tuple[int, int]:
        """Return the part of the epoch's order that a lane has in a window.

        Every window but the last holds only full micro-batches; the last takes the remainder. Every second lane goes
        from its end to its beginning, so that two lanes that share a row group come to it at the same time.
        """
        lanes, of_batch = self.rule.parallel, self.rule.per_device
        first, end = (lane * self.rows // lanes, (lane + 1) * self.rows // lanes)
        full = self.rows // lanes // of_batch
        start, stop = (number * full // self.windows * of_batch for number in (window, window + 1))
        if window == self.windows - 1:
            stop = end - first
        return (end - stop, end - start) if lane % 2 else (first + start, first + stop)

    def _lane_rows(self, epoch: int, window: int, lane: int) -> np.ndarray:
        """Return the numbers of a lane's rows in a window: in the order in which they are cut into micro-batches."""
        start, stop = self._places(window, lane)
        always = self.groups.always
        # Of `rows` places, `always` are those of rows that every epoch reads, evenly among those that are drawn.
        first, last = start * always // self.rows, stop * always // self.rows
        rows = np.concatenate(
            [self._rows_at(epoch, False, first, last), self._rows_at(epoch, True, start - first, stop - last)]
        )
        rows = seeded(self.seed, epoch, window, lane).permutation(rows)
        if self.rule.group_by_length:
            rows = rows[np.argsort(self.groups.lengths[rows], kind="stable")]
        return rows

    def _rows_at(self, epoch: int, drawn: bool, start: int, stop: int) -> np.ndarray:
        """Return the numbers of the rows in a part of the order of the shuffled groups."""
        order, ends = self._order(epoch, drawn)
        found = [np.zeros(0, dtype=np.int64)]
        place = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            group = int(order[place])
            first, last = self.groups.starts[group : group + 2].tolist()
            begins = int(ends[place]) - (last - first)
            inside = seeded(self.seed, epoch, "group", group).permutation(last - first)
            found.append(first + inside[start - begins : stop - begins])
            start, place = int(ends[place]), place + 1
        return np.concatenate(found)

    def _shuffled_groups(self, epoch: int, drawn: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of the groups, and where each of them ends in the order of the rows.

        Groups of similar tokens are dealt one to each lane, so that lanes have as much to read and to compute.
        """
        number = len(self.groups.starts) - 1
        border = number if self.groups.drawn_from is None else self.groups.drawn_from
        random = seeded(self.seed, epoch, "drawn groups" if drawn else "groups")
        order = random.permutation(np.arange(border, number) if drawn else border)
        if not drawn:
            lanes = self.rule.parallel
            spare, order = order[: border % lanes], order[border % lanes :]
            lengths = self.groups.lengths[: self.groups.always]
            tokens = np.add.reduceat(lengths, self.groups.starts[:border], dtype=np.int64)
            dealt = random.permuted(order[np.argsort(tokens[order], kind="stable")].reshape(-1, lanes), axis=1)
            parts = np.split(spare, np.arange(1, lanes) * len(spare) // lanes)  # none or one for each lane
            order = np.concatenate(
                [random.permutation(np.append(dealt[:, lane], parts[lane])) for lane in range(lanes)]
            )
        return order, np.cumsum((self.groups.starts[1:] - self.groups.starts[:-1])[order])


def padding_share(steps: Iterable[Step], lengths: np.ndarray, rule: BatchRule) -> float:
    """Return the share of padding among all tokens of some steps."""
    used = padded = 0
    for batch in itertools.chain.from_iterable(steps):
        used += int(lengths[batch].sum())
        padded += rule.computed_tokens(lengths[batch])
    return 1 - used / padded if padded else 0.0


def _split_to(places: Sequence[slice], count: int) -> list[slice]:
    """Split the largest micro-batches until there are `count`, in the same order of rows."""
    places = list(places)
    while len(places) < count:
        at = max(range(len(places)), key=lambda number: places[number].stop - places[number].start)
        start, stop = places[at].start, places[at].stop
        places[at : at + 1] = [slice(start, (start + stop) // 2), slice((start + stop) // 2, stop)]
    return places
