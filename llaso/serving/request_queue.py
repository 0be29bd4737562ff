"""Connects the event loop to the model thread: admits requests, and streams answers back.

An answer ends in one of four ways: it is complete, it failed, it timed out, or its client disconnected. After the last
two its request is cancelled in the engine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import Receive

from ..transcription.transcript_formats import Segment
from .engine import AnswerChunk, Engine, GenerationRequest
from .errors import ApiError
from .limits import Limits
from .request_inputs import Inputs, PromptSize
from .sampling import Sampler
from .server_metrics import ServerMetrics

logger = logging.getLogger(__name__)

SEND_SECONDS = 10.0
"""Seconds after an answer's deadline within which the client must have read everything."""


class ClientDisconnected(Exception):
    """The client closed its connection."""


@dataclass(frozen=True)
class PreparedRequest:
    """A validated request, or a piece of one, with the model's inputs.

    Args:
        inputs: the processor's output.
        prompt: size of the prompt.
        sampler: chooses the tokens.
        stops: sequences that end the answer.
        span: start and end of the piece in a longer recording, seconds.
        transcribes: it asks for the text of one recording.
    """

    inputs: Inputs
    prompt: PromptSize
    sampler: Sampler
    stops: Sequence[str] = ()
    span: tuple[float, float] = (0.0, 0.0)
    transcribes: bool = False


class RequestQueue:
    """Admits requests up to a limit, and passes them to the engine.

    Args:
        engine: generates the answers.
        limits: `max_requests` and `answer_seconds` apply here.
        metrics: counts tokens, audio and disconnected clients.
    """

    def __init__(self, engine: Engine, limits: Limits, metrics: ServerMetrics):
        self.engine = engine
        self.limits = limits
        self.metrics = metrics
        self._executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="llaso-prompt")
        self._open_requests = 0
        self._mean_seconds = 1.0

    async def submit(
        self, receive: Receive, prepare: Callable[[], Iterable[PreparedRequest]], *, stream: bool
    ) -> AnswerStream:
        """Prepare a request in a worker thread and pass it to the engine.

        Args:
            receive: the ASGI request's `receive`, after its body was read; it reports when the client disconnects.
            prepare: makes the model's inputs: one item, or one for each piece of a recording, which may be none. Later
                items are taken, in worker threads, after the pieces before them are answered.
            stream: yield text as it is generated; otherwise all of it at the end.

        Returns:
            The answer, which the caller must close.

        Raises:
            ApiError: 429 if too many requests are open, 503 during shutdown, 504 if preparing takes too long, and
                what `prepare` raises.
        """
        if not self.engine.alive:
            raise ApiError(503, "the server is shutting down", code="unavailable")
        if self._open_requests >= self.limits.max_requests:
            raise ApiError(
                429,
                f"{self._open_requests} requests are under way, and no more are taken; try again later",
                code="server_busy",
                headers={"Retry-After": str(min(60, math.ceil(self._mean_seconds)))},
            )
        self._open_requests += 1
        answer = AnswerStream(self, receive, stream)
        try:
            async with asyncio.timeout_at(answer.deadline):
                pieces = await self.run(lambda: iter(prepare()))
                await answer.start(pieces)
        except TimeoutError:
            answer.close()
            raise answer.timeout_error() from None
        except BaseException:
            answer.close()
            raise
        return answer

    def run(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Call a function in a worker thread."""
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def release(self, seconds: float) -> None:
        """Count a request as closed after `seconds`."""
        self._open_requests -= 1
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def close(self) -> None:
        """Stop the engine and the worker threads."""
        self.engine.close()
        self._executor.shutdown(cancel_futures=True)


class AnswerStream:
    """The answer to one request; iterating yields its chunks. Created by `RequestQueue.submit`.

    A request of several pieces is answered piece by piece; its last chunk alone has a finish reason.

    Attributes:
        prompt: size of the prompt; of several pieces, the sum of those that were started.
        tokens: number of tokens so far.
        segments: the pieces that are answered.
    """

    def __init__(self, queue: RequestQueue, receive: Receive, stream: bool):
        self._queue = queue
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self.deadline = self._started + queue.limits.answer_seconds
        self._chunks: asyncio.Queue[AnswerChunk | Exception] = asyncio.Queue()
        self._timer = self._loop.call_at(self.deadline, lambda: self._abort(self.timeout_error()))
        self._watcher = self._loop.create_task(self._watch_client(receive))
        self._request: GenerationRequest | None = None
        self.prompt = PromptSize(0, 0, 0.0, 0)
        self._pieces: Iterator[PreparedRequest] = iter(())
        self._span = (0.0, 0.0)
        self._closed = False
        self.tokens = 0
        self.segments: list[Segment] = []

    @property
    def seconds(self) -> float:
        """Return the seconds since the request arrived."""
        return self._loop.time() - self._started

    @property
    def send_deadline(self) -> float:
        """Return when the client must have read everything, on the event loop's clock."""
        return self.deadline + SEND_SECONDS

    async def start(self, pieces: Iterator[PreparedRequest]) -> None:
        """Pass the first piece of a request to the engine, if there is one."""
        self._pieces = pieces
        await self._start_next()

    async def _start_next(self) -> bool:
        """Pass the next piece to the engine; return whether there is one."""
        prepared: PreparedRequest | None = await self._queue.run(next, self._pieces, None)
        if prepared is None:
            return False
        self.prompt += prepared.prompt
        self._span = prepared.span
        self._request = GenerationRequest(
            prepared.inputs,
            prepared.prompt.tokens,
            prepared.prompt.max_tokens,
            self._deliver,
            prepared.sampler,
            prepared.stops,
            self._stream,
            prepared.transcribes,
        )
        try:
            self._queue.engine.submit(self._request)
        except RuntimeError as error:
            raise ApiError(503, str(error), code="unavailable") from None
        self._queue.metrics.prompt_tokens.inc(prepared.prompt.tokens)
        self._queue.metrics.audio_seconds.inc(prepared.prompt.audio_seconds)
        return True

    async def __aiter__(self) -> AsyncIterator[AnswerChunk]:
        if self._request is None:  # of no pieces
            yield AnswerChunk("", 0, 0.0, "stop")
            return
        text, tokens = "", 0
        while True:
            chunk = await self._chunks.get()
            if isinstance(chunk, ApiError | ClientDisconnected):
                raise chunk
            if isinstance(chunk, Exception):
                down = not self._queue.engine.alive
                code = "unavailable" if down else "model_error"
                raise ApiError(503 if down else 500, f"the answer failed: {chunk}", code=code) from chunk
            self.tokens = tokens + chunk.tokens
            text += chunk.text
            if chunk.finish_reason is None:
                yield chunk
                continue
            mean = chunk.logprob / chunk.tokens
            self.segments.append(Segment(*self._span, text.strip(), mean, chunk.finish_reason))
            text, tokens = "", self.tokens
            if await self._start_next():
                yield replace(chunk, finish_reason=None)
                continue
            cut = any(segment.finish_reason == "length" for segment in self.segments)
            yield replace(chunk, finish_reason="length" if cut else "stop")
            return

    def close(self) -> None:
        """Release the request; if it is unfinished, cancel it."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._watcher.cancel()
        if self._request is not None:
            self._queue.engine.cancel(self._request)
            self._request = None  # it refers to this answer in turn
        self._queue.metrics.answer_tokens.inc(self.tokens)
        self._queue.release(self.seconds)

    def timeout_error(self) -> ApiError:
        """Return the error of an answer that took too long."""
        return ApiError(
            504, f"no answer within {self._queue.limits.answer_seconds:g} s; what was done is lost", code="timeout"
        )

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._queue.metrics.disconnected.inc()
        self._abort(ClientDisconnected())

    def _abort(self, reason: Exception) -> None:
        if self._request is not None:
            self._queue.engine.cancel(self._request)
        self._chunks.put_nowait(reason)

    def _deliver(self, chunk: AnswerChunk | Exception) -> None:
        """Queue a chunk; called in the model thread."""
        try:
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
        except RuntimeError:
            logger.info("an answer came after the event loop had ended")
