"""Answers as server-sent events, in the words of OpenAI's two streams."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError
from .protocol import transcription_usage, usage
from .request_queue import Answer, Departed
from .server_metrics import Metrics

logger = logging.getLogger(__name__)

Event = dict[str, Any] | str
"""An object, or a bare word such as `[DONE]`."""


class Events(Protocol):
    """How an answer is told."""

    def first(self) -> Iterator[Event]:
        """Before any text."""

    def text(self, text: str) -> Iterator[Event]:
        """For text that was added."""

    def last(self, answer: Answer, finish_reason: str) -> Iterator[Event]:
        """When the answer is complete."""


class ChatEvents:
    """Chunks of a chat completion.

    Args:
        head: `id`, `created` and `model`.
        with_usage: tell the usage in a chunk of its own at the end.
    """

    def __init__(self, head: dict[str, Any], with_usage: bool):
        self._head = {**head, "object": "chat.completion.chunk"}
        self._usage: dict[str, Any] = {"usage": None} if with_usage else {}

    def first(self) -> Iterator[Event]:
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, text: str) -> Iterator[Event]:
        yield self._chunk({"content": text})

    def last(self, answer: Answer, finish_reason: str) -> Iterator[Event]:
        yield self._chunk({}, finish_reason)
        if self._usage:
            used = usage(answer.prompt.tokens, answer.prompt.audio_tokens, answer.tokens)
            yield {**self._head, "choices": [], "usage": used}
        yield "[DONE]"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice], **self._usage}


class TranscriptEvents:
    """Deltas of a transcription, then all of it."""

    def __init__(self) -> None:
        self._text = ""

    def first(self) -> Iterator[Event]:
        yield from ()

    def text(self, text: str) -> Iterator[Event]:
        self._text += text
        yield {"type": "transcript.text.delta", "delta": text}

    def last(self, answer: Answer, finish_reason: str) -> Iterator[Event]:
        used = transcription_usage(answer.prompt.tokens, answer.prompt.audio_tokens, answer.tokens)
        yield {
            "type": "transcript.text.done",
            "text": self._text.strip(),
            "finish_reason": finish_reason,
            "usage": used,
        }


class EventStream(Response):
    """An answer as it comes, begun with its first piece.

    What goes wrong before that is an error like any other; later, an event that holds it ends the stream. A client
    that does not take what is written is cut off when its time is up.

    Args:
        answer: what to tell; closed here.
        events: how to tell it.
        metrics: is told of the first piece's seconds.
        headers: further headers.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, events: Events, metrics: Metrics, headers: Mapping[str, str] | None = None):
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._answer = answer
        self._events = events
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._answer.send_deadline):
                await self._tell(send)
        except Departed:
            pass
        except TimeoutError:
            logger.info("a client did not take its answer and was cut off")
        finally:
            self._answer.close()

    async def _tell(self, send: Send) -> None:
        begun = False
        try:
            async for piece in self._answer:
                if not begun:
                    begun = True
                    self._metrics.first_token_seconds.observe(self._answer.seconds)
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await _write(send, self._events.first())
                if piece.text:
                    await _write(send, self._events.text(piece.text))
                if piece.finish_reason:
                    await _write(send, self._events.last(self._answer, piece.finish_reason))
        except ApiError as error:
            if not begun:
                raise
            await _write(send, iter([error.body()]))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _write(send: Send, events: Iterator[Event]) -> None:
    lines = [event if isinstance(event, str) else json.dumps(event, separators=(",", ":")) for event in events]
    if lines:
        body = "".join(f"data: {line}\n\n" for line in lines).encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
