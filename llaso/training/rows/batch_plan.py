"""Plans which rows form which micro-batch, for the whole run, before any audio is read.

The input is the rows' expanded lengths (or a stream of rows with their lengths) and a seed. The order of micro-batches
depends on the seed alone, not on workers, restarts or the number of processes: a killed run resumes by skipping
micro-batches without reading them, and two processes train on the same rows as one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from torch.utils.data import Sampler

Item = TypeVar("Item")
Batch = list[tuple[Item, int]]
"""A micro-batch: rows, or their numbers, with their lengths in tokens."""


def seeded(*parts: object) -> np.random.Generator:
    """Return a random generator that depends on the values of `parts` only."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


@dataclass(frozen=True)
class BatchRule:
    """How a window of rows is cut into micro-batches.

    Attributes:
        per_device: rows of a micro-batch, at most.
        max_tokens: tokens that a micro-batch computes, at most; 0 means no limit. A single row may exceed it.
        group_by_length: sort a window by length before cutting it.
        window: micro-batches' worth of rows that are sorted together.
        parallel: micro-batches of one optimizer step, all processes together.
        packing: a micro-batch computes the tokens of its rows; without it, rows x longest row.
    """

    per_device: int
    max_tokens: int = 0
    group_by_length: bool = True
    window: int = 64
    parallel: int = 1
    packing: bool = False

    def cut(self, lengths: Sequence[int], random: np.random.Generator) -> list[list[int]]:
        """Cut one window into micro-batches.

        Args:
            lengths: tokens of each row of the window, in the order the rows came.
            random: shuffles the finished micro-batches, so that length does not follow time.

        Returns:
            Positions in the window, one list a micro-batch; every position once.
        """
        order = np.argsort(np.asarray(lengths), kind="stable") if self.group_by_length else range(len(lengths))
        batches: list[list[int]] = []
        batch: list[int] = []
        longest = total = 0
        for position in map(int, order):
            longest, total = max(longest, lengths[position]), total + lengths[position]
            computed = total if self.packing else (len(batch) + 1) * longest
            too_long = self.max_tokens > 0 and computed > self.max_tokens
            if batch and (len(batch) == self.per_device or too_long):
                batches.append(batch)
                batch, longest, total = [], lengths[position], lengths[position]
            batch.append(position)
        if batch:
            batches.append(batch)
        if self.group_by_length:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches

    def computed_tokens(self, batch: Batch[Any]) -> int:
        """Return the tokens that a micro-batch computes, padding included."""
        lengths = [length for _, length in batch]
        return sum(lengths) if self.packing else len(batch) * max(lengths)

    def epoch(self, windows: Iterable[list[tuple[Item, int]]], seed: int, epoch: int) -> Iterator[Batch[Item]]:
        """Yield one epoch's micro-batches of `(row, length)`, window by window."""
        for number, window in enumerate(windows):
            for batch in self.cut([length for _, length in window], seeded(seed, epoch, number)):
                yield [window[position] for position in batch]


class Plan(Sampler[list[Item]], Generic[Item]):
    """The micro-batches of this process, from `start_step` to the end of the run.

    Every optimizer step holds exactly `accumulation` micro-batches for each of `world` processes. Within a step the
    micro-batches are ordered by length, so that processes work at the same time on batches of similar size.

    Args:
        windows: called with an epoch; yields windows of `(row, length)` in that epoch's order.
        rule: how windows become micro-batches; `rule.parallel` is accumulation x world.
        steps: optimizer steps of the run.
        seed: of the run.
        rank: this process.
        world: processes.
        start_step: steps already trained.
    """

    def __init__(
        self,
        windows: Callable[[int], Iterable[list[tuple[Item, int]]]],
        rule: BatchRule,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
    ) -> None:
        assert rule.parallel % world == 0
        self.windows, self.rule, self.steps, self.seed = windows, rule, steps, seed
        self.rank, self.world, self.start_step = rank, world, start_step

    def __len__(self) -> int:
        """Return the number of this process's micro-batches, those before `start_step` included."""
        return self.steps * self.rule.parallel // self.world

    def __iter__(self) -> Iterator[list[Item]]:
        for step in itertools.islice(self.global_steps(), self.start_step, self.steps):
            yield from ([row for row, _ in batch] for batch in step[self.rank :: self.world])

    def global_steps(self) -> Iterator[list[Batch[Item]]]:
        """Yield every step's micro-batches for all processes together, epoch after epoch, without end.

        Raises:
            ValueError: an epoch has too few rows for a single step.
        """
        for epoch in itertools.count():
            empty = True
            for step in epoch_steps(self.windows(epoch), self.rule, self.seed, epoch):
                empty = False
                yield step
            if empty:
                raise ValueError(
                    f"the recipe's data section admits fewer rows than the {self.rule.parallel} micro-batches of one "
                    "step need; take a smaller batch.accumulation, fewer processes or more data"
                )


def epoch_steps(
    windows: Iterable[list[tuple[Item, int]]], rule: BatchRule, seed: int, epoch: int
) -> Iterator[list[Batch[Item]]]:
    """Yield one epoch's steps, each of `rule.parallel` micro-batches ordered by their size."""
    step: list[Batch[Item]] = []
    for batch in rule.epoch(windows, seed, epoch):
        step.append(batch)
        if len(step) == rule.parallel:
            yield sorted(step, key=rule.computed_tokens)
            step = []
    if step and (split := _split_to(step, rule.parallel)):
        yield sorted(split, key=rule.computed_tokens)


def shuffled_windows(
    lengths: Sequence[int] | np.ndarray, rule: BatchRule, seed: int, drawn_from: int | None = None, drawn: int = 0
) -> Callable[[int], Iterator[list[tuple[int, int]]]]:
    """Return windows of a corpus whose rows are numbered, shuffled anew each epoch.

    Args:
        lengths: tokens of every row.
        rule: tells how many rows a window holds.
        seed: of the run.
        drawn_from: rows from this number on are not all read each epoch; `drawn` of them are, drawn anew.
        drawn: how many.

    Returns:
        A function from the epoch to its windows of `(row number, length)`.
    """
    table = np.asarray(lengths, dtype=np.int64)
    always = len(table) if drawn_from is None else drawn_from
    size = rule.per_device * rule.window

    def windows(epoch: int) -> Iterator[list[tuple[int, int]]]:
        random = seeded(seed, epoch, "order")
        extra = always + random.permutation(len(table) - always)[:drawn]
        order = random.permutation(np.concatenate([np.arange(always), extra]))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield list(zip(chosen.tolist(), table[chosen].tolist(), strict=True))

    return windows


def stream_windows(
    stream: Callable[[int], Iterable[Item]], length_of: Callable[[Item], int], rule: BatchRule
) -> Callable[[int], Iterator[list[tuple[Item, int]]]]:
    """Return windows of a streamed corpus, in the stream's order of the epoch."""
    size = rule.per_device * rule.window

    def windows(epoch: int) -> Iterator[list[tuple[Item, int]]]:
        rows = ((row, length_of(row)) for row in stream(epoch))
        while window := list(itertools.islice(rows, size)):
            yield window

    return windows


def steps_per_epoch(windows: Callable[[int], Iterable[list[tuple[Any, int]]]], rule: BatchRule, seed: int) -> int:
    """Count the optimizer steps of the first epoch; with a token limit, later epochs differ by a few."""
    return max(1, sum(1 for _ in epoch_steps(windows(0), rule, seed, 0)))


def padding_share(batches: Iterable[Batch[Any]], rule: BatchRule) -> float:
    """Return the share of padding among all tokens, over micro-batches of `(row, length)`."""
    used = padded = 0
    for batch in batches:
        used += sum(length for _, length in batch)
        padded += rule.computed_tokens(batch)
    return 1 - used / padded if padded else 0.0


def _split_to(step: list[Batch[Item]], parallel: int) -> list[Batch[Item]]:
    """Split the micro-batches of an epoch's last step until every process has its share.

    Returns an empty list if fewer rows are left than micro-batches are needed; the next epoch shuffles them again.
    """
    step = list(step)
    while len(step) < parallel:
        step.sort(key=len)
        largest = step.pop()
        if len(largest) < 2:
            return []
        half = len(largest) // 2
        step += [largest[:half], largest[half:]]
    return step
