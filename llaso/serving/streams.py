"""Sends answers as server-sent events, in the formats of OpenAI's chat and transcription streams."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..transcription.transcript_formats import Segment
from .errors import ApiError
from .protocol import segment_record, transcription_usage, usage
from .request_queue import AnswerStream, ClientDisconnected
from .server_metrics import ServerMetrics

logger = logging.getLogger(__name__)

Event = dict[str, Any] | str
"""A JSON object, or a literal such as `[DONE]`."""


class Events(Protocol):
    """Formats an answer as events."""

    def first(self) -> Iterator[Event]:
        """Yield the events before any text."""

    def text(self, text: str) -> Iterator[Event]:
        """Yield the events for new text."""

    def segment(self, number: int, segment: Segment) -> Iterator[Event]:
        """Yield the events after a piece is complete."""

    def last(self, answer: AnswerStream, finish_reason: str) -> Iterator[Event]:
        """Yield the events that end the stream."""


class ChatEvents:
    """Formats a chat completion as chunks.

    Args:
        head: fields `id`, `created` and `model` of each chunk.
        with_usage: add a last chunk with the usage.
    """

    def __init__(self, head: dict[str, Any], with_usage: bool):
        self._head = {**head, "object": "chat.completion.chunk"}
        self._usage: dict[str, Any] = {"usage": None} if with_usage else {}

    def first(self) -> Iterator[Event]:
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, text: str) -> Iterator[Event]:
        yield self._chunk({"content": text})

    def segment(self, number: int, segment: Segment) -> Iterator[Event]:
        yield from ()

    def last(self, answer: AnswerStream, finish_reason: str) -> Iterator[Event]:
        yield self._chunk({}, finish_reason)
        if self._usage:
            used = usage(answer.prompt.tokens, answer.prompt.audio_tokens, answer.tokens)
            yield {**self._head, "choices": [], "usage": used}
        yield "[DONE]"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice], **self._usage}


class TranscriptEvents:
    """Formats a transcription as deltas, followed by the whole text. The deltas together are the whole text.

    Args:
        with_segments: add an event with times after each segment.
    """

    def __init__(self, with_segments: bool = False) -> None:
        self._text = ""
        self._space = ""
        self._with_segments = with_segments

    def first(self) -> Iterator[Event]:
        yield from ()

    def text(self, text: str) -> Iterator[Event]:
        # Spaces are held until a word follows; pieces are joined by one space.
        text = self._space + text if self._text else text.lstrip()
        delta = text.rstrip()
        self._space = text[len(delta) :]
        if delta:
            self._text += delta
            yield {"type": "transcript.text.delta", "delta": delta}

    def segment(self, number: int, segment: Segment) -> Iterator[Event]:
        self._space = " "
        if self._with_segments:
            yield {"type": "transcript.text.segment", **segment_record(number, segment)}

    def last(self, answer: AnswerStream, finish_reason: str) -> Iterator[Event]:
        used = transcription_usage(answer.prompt.tokens, answer.prompt.audio_tokens, answer.tokens)
        yield {
            "type": "transcript.text.done",
            "text": self._text,
            "finish_reason": finish_reason,
            "usage": used,
        }


class EventStreamResponse(Response):
    """Sends an answer as server-sent events while it is generated.

    An error before the first chunk is an ordinary error response; later, an event with the error ends the stream. A
    client that stops reading is disconnected at the answer's `send_deadline`.

    Args:
        answer: the answer to send; it is closed at the end.
        events: its format.
        metrics: records the time to the first chunk.
        headers: further headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self, answer: AnswerStream, events: Events, metrics: ServerMetrics, headers: Mapping[str, str] | None = None
    ):
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        self._answer = answer
        self._events = events
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._answer.send_deadline):
                await self._send(send)
        except ClientDisconnected:
            pass
        except TimeoutError:
            logger.info("a client did not read its answer and was disconnected")
        finally:
            self._answer.close()

    async def _send(self, send: Send) -> None:
        started, ended = False, 0
        try:
            async for chunk in self._answer:
                if not started:
                    started = True
                    self._metrics.first_token_seconds.observe(self._answer.seconds)
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await _write(send, self._events.first())
                if chunk.text:
                    await _write(send, self._events.text(chunk.text))
                for number in range(ended, len(self._answer.segments)):
                    await _write(send, self._events.segment(number, self._answer.segments[number]))
                ended = len(self._answer.segments)
                if chunk.finish_reason:
                    await _write(send, self._events.last(self._answer, chunk.finish_reason))
        except ApiError as error:
            if not started:
                raise
            await _write(send, iter([error.body()]))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _write(send: Send, events: Iterator[Event]) -> None:
    lines = [event if isinstance(event, str) else json.dumps(event, separators=(",", ":")) for event in events]
    if lines:
        body = "".join(f"data: {line}\n\n" for line in lines).encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
