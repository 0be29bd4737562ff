"""Between the event loop and the model thread: who may come in, and each answer as it arrives.

An answer ends in one of four ways, all of which come through its queue: it is complete, it failed, its time is up, or
its client left. Either of the last two takes its job from the engine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.types import Receive

from .engine import Engine, Job, Piece
from .errors import ApiError
from .limits import Limits
from .request_inputs import Inputs, Prompt
from .sampling import Draw
from .server_metrics import Metrics

logger = logging.getLogger(__name__)

SEND_SECONDS = 10.0
"""Beyond its deadline, for a client to take what is written already."""


class Departed(Exception):
    """The client closed its connection."""


@dataclass(frozen=True)
class Order:
    """A request, ready for the model."""

    inputs: Inputs
    prompt: Prompt
    draw: Draw
    stops: Sequence[str] = ()


class Desk:
    """Takes orders while there are places, and hands out answers.

    Args:
        engine: answers the orders.
        limits: `places` and `answer_seconds` are kept here.
        metrics: is told of tokens, audio and clients who left.
    """

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics):
        self.engine = engine
        self.limits = limits
        self.metrics = metrics
        self._makers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="llaso-prompt")
        self._under_way = 0
        self._mean_seconds = 1.0

    async def take(self, receive: Receive, make: Callable[[], Order], *, in_pieces: bool) -> Answer:
        """Make an order in a thread and pass it to the engine.

        Args:
            receive: the request's, whose body was read: it tells when the client leaves.
            make: the request's order.
            in_pieces: hand out text as it comes; else all at the end.

        Returns:
            The answer, which the caller must close.

        Raises:
            ApiError: 429 if all places are taken, 503 on the way down, 504 if making the order takes too long, and
                what `make` raises.
        """
        if not self.engine.alive:
            raise ApiError(503, "the server is shutting down", code="unavailable")
        if self._under_way >= self.limits.places:
            raise ApiError(
                429,
                f"{self._under_way} requests are under way, and no more are taken; try again later",
                code="server_busy",
                headers={"Retry-After": str(min(60, math.ceil(self._mean_seconds)))},
            )
        self._under_way += 1
        answer = Answer(self, receive)
        try:
            async with asyncio.timeout_at(answer.deadline):
                order = await asyncio.get_running_loop().run_in_executor(self._makers, make)
            answer.submit(order, in_pieces)
        except TimeoutError:
            answer.close()
            raise answer.late() from None
        except BaseException:
            answer.close()
            raise
        return answer

    def returned(self, seconds: float) -> None:
        """A place is free again, after so many seconds."""
        self._under_way -= 1
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def close(self) -> None:
        """End the engine and the threads that make orders."""
        self.engine.close()
        self._makers.shutdown(cancel_futures=True)


class Answer:
    """One request's answer as it arrives. Iterating gives its pieces; made by `Desk.take`."""

    def __init__(self, desk: Desk, receive: Receive):
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self.deadline = self._started + desk.limits.answer_seconds
        self._arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._timer = self._loop.call_at(self.deadline, lambda: self._abandon(self.late()))
        self._watch = self._loop.create_task(self._watch_client(receive))
        self._job: Job | None = None
        self._prompt: Prompt | None = None
        self._closed = False
        self.tokens = 0

    @property
    def prompt(self) -> Prompt:
        """What the model was asked."""
        assert self._prompt is not None
        return self._prompt

    @property
    def seconds(self) -> float:
        """Since the request arrived."""
        return self._loop.time() - self._started

    @property
    def send_deadline(self) -> float:
        """When the client must have taken everything, on the event loop's clock."""
        return self.deadline + SEND_SECONDS

    def submit(self, order: Order, in_pieces: bool) -> None:
        """Pass the order to the engine."""
        self._prompt = order.prompt
        self._job = Job(
            order.inputs,
            order.prompt.tokens,
            order.prompt.max_tokens,
            self._deliver,
            order.draw,
            order.stops,
            in_pieces,
        )
        try:
            self._desk.engine.submit(self._job)
        except RuntimeError as error:
            raise ApiError(503, str(error), code="unavailable") from None
        self._desk.metrics.prompt_tokens.inc(order.prompt.tokens)
        self._desk.metrics.audio_seconds.inc(order.prompt.audio_seconds)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            piece = await self._arrived.get()
            if isinstance(piece, ApiError | Departed):
                raise piece
            if isinstance(piece, Exception):
                down = not self._desk.engine.alive
                code = "unavailable" if down else "model_error"
                raise ApiError(503 if down else 500, f"the answer failed: {piece}", code=code) from piece
            self.tokens = piece.tokens
            yield piece
            if piece.finish_reason is not None:
                return

    def close(self) -> None:
        """Give the place back; a job that is not done is cancelled."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._watch.cancel()
        if self._job is not None:
            self._desk.engine.cancel(self._job)
            self._job = None  # which holds this answer in turn
        self._desk.metrics.answer_tokens.inc(self.tokens)
        self._desk.returned(self.seconds)

    def late(self) -> ApiError:
        """The error of an answer whose time is up."""
        return ApiError(
            504, f"no answer within {self._desk.limits.answer_seconds:g} s; what was done is lost", code="timeout"
        )

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._desk.metrics.departed.inc()
        self._abandon(Departed())

    def _abandon(self, reason: Exception) -> None:
        if self._job is not None:
            self._desk.engine.cancel(self._job)
        self._arrived.put_nowait(reason)

    def _deliver(self, piece: Piece | Exception) -> None:
        """Called in the model thread."""
        try:
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, piece)
        except RuntimeError:
            logger.info("an answer came after the event loop had ended")
