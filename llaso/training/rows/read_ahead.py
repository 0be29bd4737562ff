"""Yields one process's micro-batches as rows, while threads read the row groups that come next.

The plan says which rows are needed when. A row group is read when the first of its rows is due in this process or in
the window after the one under way, whose reading is spread over that window's steps; it is dropped with its last row.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from llaso.alignment.alignment import is_transcribed
from llaso_common.schema import Row

from .batch_plan import Plan, seeded
from .corpora import Corpus, TrainingRow

THREADS = 4
"""Row groups that are read at the same time."""
HEAD_START = 0.75
"""Part of a window's steps after which the reading of the next window has been asked for whole."""

Key = tuple[int, int]
"""Epoch and number of a row group."""


@dataclass
class Held:
    """A row group that is being read or has been.

    Attributes:
        rows: of it.
        due: number of rows that this window and the next still take.
    """

    rows: Future[list[Any]]
    due: int = 0


@dataclass(frozen=True)
class Share:
    """Holds what one process does in one window: its micro-batches, step by step, and how many rows of each group."""

    epoch: int
    steps: list[list[np.ndarray]]
    takes: Counter[Key]


class ReadAhead(Sampler[list[Row]]):
    """The micro-batches of one process, from `start_step` to the end of the run.

    Args:
        corpus: reads row groups.
        plan: of the run.
        steps: optimizer steps of the run.
        rank: this process.
        world: processes; each takes an equal run of neighbouring lanes of the plan.
        start_step: steps already trained.
        speeds: one is drawn for each recording to transcribe, in each epoch anew.
    """

    def __init__(
        self,
        corpus: Corpus,
        plan: Plan,
        steps: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        speeds: Sequence[float] = (1.0,),
    ) -> None:
        assert plan.rule.parallel % world == 0
        self.speeds = speeds
        self.corpus, self.plan, self.steps, self.start_step = corpus, plan, steps, start_step
        lanes = plan.rule.parallel // world
        self.lanes = slice(rank * lanes, (rank + 1) * lanes)

    def __len__(self) -> int:
        """Return the number of this process's micro-batches, those before `start_step` included."""
        return self.steps * (self.lanes.stop - self.lanes.start)

    def __iter__(self) -> Iterator[list[Row]]:
        held: dict[Key, Held] = {}
        shares = self.shares()
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead")
        try:
            share, following = None, next(shares, None)
            waiting: list[tuple[Key, int]] = list(following.takes.items()) if following else []
            while following is not None:
                self._ask(pool, held, waiting)
                share, following = following, next(shares, None)
                waiting = []
                for key, due in following.takes.items() if following else ():
                    if key in held:
                        held[key].due += due
                    else:
                        waiting.append((key, due))
                pace = math.ceil(len(waiting) / max(1, math.floor(HEAD_START * len(share.steps))))
                for step in share.steps:
                    self._ask(pool, held, waiting[:pace])
                    waiting = waiting[pace:]
                    for batch in step:
                        yield [self._take(held, share.epoch, number) for number in batch.tolist()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def shares(self) -> Iterator[Share]:
        """Yield this process's part of every window."""
        done = self.start_step
        for epoch, window, first in self.plan.windows_from(self.start_step):
            if done >= self.steps:
                return
            steps = [step[self.lanes] for step in self.plan.steps(epoch, window)[first:][: self.steps - done]]
            rows = np.concatenate(list(itertools.chain.from_iterable(steps)))
            takes = Counter((epoch, group) for group in self.corpus.groups_of(rows).tolist())
            done += len(steps)
            yield Share(epoch, steps, takes)

    def _ask(self, pool: ThreadPoolExecutor, held: dict[Key, Held], wanted: list[tuple[Key, int]]) -> None:
        for key, due in wanted:
            held[key] = Held(pool.submit(self.corpus.read_group, key[1]), due)

    def _take(self, held: dict[Key, Held], epoch: int, number: int) -> TrainingRow:
        """Return a row, which is taken once in an epoch; one to transcribe has a `speed` if there are several."""
        group = int(self.corpus.groups_of(np.array([number]))[0])
        of_group = held[epoch, group]
        rows, place = of_group.rows.result(), number - int(self.corpus.row_groups.starts[group])
        row, rows[place] = rows[place], None
        of_group.due -= 1
        if not of_group.due:
            del held[epoch, group]
        if set(self.speeds) != {1.0} and is_transcribed(row["task"], row["modality"]):
            row["speed"] = float(seeded(self.plan.seed, "speed", epoch, number).choice(self.speeds))
        return row


class RowsAsRead(Dataset[Row]):
    """What a data loader's workers index: batches carry the rows themselves, read by the main process alone."""

    def __getitem__(self, row: Row) -> Row:
        return row
