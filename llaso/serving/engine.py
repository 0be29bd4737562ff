"""The model thread: requests join the running batch between two steps and leave it as they end.

One thread runs the model; any thread may submit and cancel. Each request is given its text piece by piece as its
tokens come, whoever shares the batch with it.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .batch import Batch
from .limits import Limits
from .sampling import Draw, next_tokens
from .stop_texts import GrowingText

logger = logging.getLogger(__name__)

PREFILL_ROWS = 8
"""Prompts read in one go: while they are, those under way wait."""


@dataclass(frozen=True)
class Piece:
    """Some of an answer.

    Args:
        text: what was added.
        tokens: tokens of the answer so far.
        finish_reason: `"stop"` or `"length"` where the answer ends here.
    """

    text: str
    tokens: int
    finish_reason: str | None = None


@dataclass(eq=False)
class Job:
    """A request for the model.

    Args:
        inputs: the processor's output for one conversation; let go of once it is read, as audio is large.
        prompt_tokens: its length, audio included.
        max_tokens: tokens of the answer at most.
        deliver: called in the model thread with each piece, or with the exception that ended the answer. It must not
            raise.
        draw: how tokens are chosen.
        stops: sequences that end the answer.
        in_pieces: deliver text as it comes; else all at the end.
    """

    inputs: Mapping[str, torch.Tensor]
    prompt_tokens: int
    max_tokens: int
    deliver: Callable[[Piece | Exception], None]
    draw: Draw
    stops: Sequence[str] = ()
    in_pieces: bool = False
    cancelled: bool = False

    @property
    def tokens(self) -> int:
        """Columns that it may come to occupy in the batch."""
        return self.prompt_tokens + self.max_tokens


class Row:
    """A job in the batch, with its answer so far."""

    def __init__(self, job: Job, tokenizer):
        self.job = job
        self.text = GrowingText(tokenizer, job.stops)
        self.tokens = 0
        self.last_token = -1
        self._undelivered = ""

    def take(self, token: int, ends: frozenset[int]) -> bool:
        """Add a token, and deliver what it makes certain.

        Returns:
            Whether the answer goes on.
        """
        self.tokens += 1
        self.last_token = token
        reason = None
        if token in ends:
            reason = "stop"
        else:
            self._undelivered += self.text.push(token)
            if self.text.stopped:
                reason = "stop"
            elif self.tokens == self.job.max_tokens:
                reason = "length"
        if reason:
            self._undelivered += self.text.finish()
            # A stop sequence may have been whole only with what was held back.
            reason = "stop" if self.text.stopped else reason
        if reason or (self.job.in_pieces and self._undelivered):
            self.job.deliver(Piece(self._undelivered, self.tokens, reason))
            self._undelivered = ""
        return reason is None


class Engine:
    """Answers jobs in a thread of its own, from construction until `close`.

    Args:
        model: a `LlasoForConditionalGeneration`.
        tokenizer: its tokenizer. The engine decodes with a copy: encoding in another thread changes the original.
        limits: `batch_rows` and `batch_tokens` are kept here.
    """

    def __init__(self, model, tokenizer, limits: Limits):
        self._tokenizer = copy.deepcopy(tokenizer)
        self._limits = limits
        self._ends = end_tokens(model.generation_config)
        self._batch = Batch(model.eval())
        self._rows: list[Row] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="llaso-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are being answered."""
        return self._thread.is_alive() and not self._closing

    @property
    def running(self) -> int:
        """Jobs in the batch."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Jobs not in the batch yet."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Have a job answered.

        Raises:
            RuntimeError: the engine is closed.
        """
        with self._changed:
            if not self.alive:
                raise RuntimeError("the engine is closed")
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Spend nothing more on a job; nothing more is delivered, but for what is being computed now."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """End the thread; jobs that are not done are delivered a `RuntimeError`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self._rows)
                if self._closing:
                    break
                self._drop([row for row in self._rows if row.job.cancelled])
                jobs = self._admitted()
            if jobs:
                try:
                    self._join(jobs)
                except Exception as error:
                    logger.exception("%d prompts could not be read", len(jobs))
                    _fail(jobs, error)
            if self._rows:
                try:
                    self._step()
                except Exception as error:
                    logger.exception("a step of %d rows failed", len(self._rows))
                    _fail([row.job for row in self._rows], error)
                    self._drop(self._rows)
        _fail([*(row.job for row in self._rows), *self._waiting], RuntimeError("the server is shutting down"))
        self._waiting.clear()
        self._drop(self._rows)

    def _admitted(self) -> list[Job]:
        """The next jobs in line, as many as fit."""
        jobs: list[Job] = []
        longest = max((row.job.tokens for row in self._rows), default=0)
        while self._waiting and len(jobs) < PREFILL_ROWS:
            rows = len(self._rows) + len(jobs) + 1
            longest = max(longest, self._waiting[0].tokens)
            if rows > self._limits.batch_rows or (rows > 1 and rows * longest > self._limits.batch_tokens):
                break
            jobs.append(self._waiting.popleft())
        return jobs

    def _join(self, jobs: list[Job]) -> None:
        logits = self._batch.join([job.inputs for job in jobs])
        for job in jobs:
            job.inputs = {}
        rows = [Row(job, self._tokenizer) for job in jobs]
        self._rows += rows
        self._take(logits, rows)

    def _step(self) -> None:
        self._take(self._batch.step([row.last_token for row in self._rows]), self._rows)

    def _take(self, logits: torch.Tensor, rows: list[Row]) -> None:
        """Give rows their next token; those that end leave."""
        tokens = next_tokens(logits, [row.job.draw for row in rows])
        over = []
        for row, token, finite in zip(rows, tokens, logits.amax(-1).isfinite().tolist(), strict=True):
            if not finite:
                row.job.deliver(FloatingPointError("the model's logits are not finite"))
                over.append(row)
            elif not row.take(token, self._ends):
                over.append(row)
        self._drop(over)

    def _drop(self, rows: list[Row]) -> None:
        kept = [number for number, row in enumerate(self._rows) if row not in rows]
        self._batch.keep(kept)
        self._rows = [self._rows[number] for number in kept]


def end_tokens(generation_config) -> frozenset[int]:
    """The tokens that end an answer, as `generate` knows them."""
    ends = generation_config.eos_token_id
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        job.deliver(error)
