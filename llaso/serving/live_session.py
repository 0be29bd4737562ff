"""Live transcription over a websocket: sound comes in, and the transcript of each piece grows while it is spoken.

A piece ends at a pause, or when the client commits. While it is spoken, what there is of it is transcribed again and
again, and the words on which two passes in a row agree are sent. Passes and final transcripts go through the request
queue, like every other request.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..transcription.live import AgreedWords, LivePiece, LiveSegmenter
from ..transcription.pieces import PieceRules
from ..transcription.speech_finders import SpeechFinder
from ..transcription.transcript_formats import joined_text
from .errors import ApiError, model_not_found
from .limits import Limits
from .live_protocol import (
    Append,
    Clear,
    ClientEvent,
    Commit,
    SessionSettings,
    SessionUpdate,
    server_event,
    session_record,
)
from .protocol import TranscriptionRequest, transcription_usage, validated
from .request_inputs import PromptBuilder
from .request_queue import SEND_SECONDS, AnswerStream, PreparedRequest, RequestQueue
from .sampling import Sampler

logger = logging.getLogger(__name__)

PASS_SECONDS = 1.0
"""A piece that is being spoken is transcribed again after so much new sound, and once the pass before is done."""
MIN_SECONDS = 0.1
"""A commit of less sound is refused, and the sound is kept."""


@dataclass
class LiveItem:
    """A piece from its first sound to its transcript."""

    id: str = field(default_factory=lambda: f"item_{secrets.token_hex(8)}")
    words: AgreedWords = field(default_factory=AgreedWords)
    passed: int = 0
    """Samples that the newest pass heard."""


class LiveSession:
    """One client's live transcription.

    Args:
        websocket: accepted here.
        queue: answers requests.
        prompts: builds their prompts.
        name: name of the model.
        limits: those of audio, and `live_seconds` and `live_idle_seconds`.
        finder: finds speech.
        window_seconds: longest piece.
        rate: of the encoder's samples, Hz.
    """

    def __init__(
        self,
        websocket: WebSocket,
        queue: RequestQueue,
        prompts: PromptBuilder,
        name: str,
        limits: Limits,
        finder: SpeechFinder,
        window_seconds: float,
        rate: int,
    ) -> None:
        self._websocket, self._queue, self._prompts, self._name, self._limits = websocket, queue, prompts, name, limits
        self._finder, self._window_seconds, self._rate = finder.for_live(), window_seconds, rate
        self._id = f"sess_{secrets.token_hex(8)}"
        self._settings = SessionSettings()
        self._request = TranscriptionRequest(model=name)
        self._segmenter = self._new_segmenter(0)
        self._resampler = self._new_resampler()
        self._item = LiveItem()
        self._speaking = False
        self._last_item: str | None = None
        self._ended: deque[tuple[LiveItem, LivePiece]] = deque()
        self._work = asyncio.Event()
        self._pass: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve the client until it leaves, is idle too long, or has talked too long."""
        await self._websocket.accept()
        listener, writer = asyncio.create_task(self._listen()), asyncio.create_task(self._finish_pieces())
        try:
            await asyncio.wait({listener, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stop_pass()
            for task in (listener, writer):
                task.cancel()
            ends = await asyncio.gather(listener, writer, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, WebSocketDisconnect):
                raise end

    async def _listen(self) -> None:
        """Carry out the client's events until it leaves or a limit is reached."""
        until = time.monotonic() + self._limits.live_seconds
        await self._send("session.created", session=session_record(self._name, self._settings, self._id))
        while True:
            left = until - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(left, self._limits.live_idle_seconds))):
                    message = await self._websocket.receive()
            except TimeoutError:
                break
            if message["type"] == "websocket.disconnect":
                return
            await self._take(message)
        idle, longest = self._limits.live_idle_seconds, self._limits.live_seconds
        why = f"lasted {longest:g} s" if time.monotonic() >= until else f"sent nothing for {idle:g} s"
        await self._send_error(ApiError(408, f"the session {why} and is closed; connect again", code="timeout"))
        await self._websocket.close()

    # ---- What the client sends ----

    async def _take(self, message: Any) -> None:
        """Carry out a client's event; what is wrong with it is sent back, and the session goes on."""
        given = message.get("text") or message.get("bytes") or b""
        try:
            event = validated(ClientEvent, given.encode() if isinstance(given, str) else given).root
            if isinstance(event, SessionUpdate):
                await self._update(event.session)
            elif isinstance(event, Append):
                await self._append(event.audio)
            elif isinstance(event, Commit):
                await self._commit()
            elif isinstance(event, Clear):
                self._stop_pass()
                self._segmenter.clear()
                self._item, self._speaking = LiveItem(), False
                await self._send("input_audio_buffer.cleared")
        except ApiError as error:
            await self._send_error(error, _event_id(given))

    async def _update(self, settings: SessionSettings) -> None:
        updated = self._settings.updated(settings)
        before, now = self._settings.audio.input, updated.audio.input
        if now.transcription.model not in (None, self._name):
            raise model_not_found(now.transcription.model, self._name, "session.audio.input.transcription.model")
        cut_otherwise = (now.format, now.turn_detection) != (before.format, before.turn_detection)
        if cut_otherwise and len(self._segmenter.speech()):
            raise ApiError(
                400,
                "format and turn_detection cannot change within a piece; commit or clear the buffer first",
                param="session.audio.input",
                code="invalid_value",
            )
        request = TranscriptionRequest(
            model=self._name, language=now.transcription.language, prompt=now.transcription.prompt
        )
        if request.prompt != self._request.prompt:
            await self._check_prompt(request)
        self._request, self._settings = request, updated
        if cut_otherwise:
            self._segmenter = self._new_segmenter(self._segmenter.end)
            self._resampler = self._new_resampler()
        await self._send("session.updated", session=session_record(self._name, updated, self._id))

    async def _check_prompt(self, request: TranscriptionRequest) -> None:
        """Refuse a prompt that no piece could be transcribed with, by building the prompt of the longest piece."""
        longest = np.ones(round(self._window_seconds * self._rate), np.float32)
        try:
            await self._queue.run(self._prompts.for_transcription, request, longest)
        except ApiError as error:
            error.param = "session.audio.input.transcription.prompt"
            raise

    async def _append(self, audio: str) -> None:
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ApiError(400, f"audio: not base64 ({error})", param="audio", code="invalid_base64") from None
        if len(data) % 2:
            raise ApiError(400, "audio: send whole 16-bit samples", param="audio", code="invalid_audio")
        waiting = sum(len(piece.samples) for _, piece in self._ended) + len(self._segmenter.speech())
        seconds = waiting / self._rate + len(data) / 2 / self._settings.audio.input.format.rate
        if seconds > self._limits.audio_seconds:
            raise ApiError(
                400,
                f"audio: {seconds:.0f} s would wait for their transcript, and this server keeps "
                f"{self._limits.audio_seconds:g} s; wait for a completed event, or commit, and send this again",
                param="audio",
                code="buffer_full",
            )
        await self._end_pieces(await self._queue.run(self._hear, data))
        if self._segmenter.speech_start is not None:
            await self._start_speaking(self._segmenter.speech_start)
            self._start_pass()

    def _hear(self, data: bytes) -> list[LivePiece]:
        """Add sound; called in a worker thread."""
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        return self._segmenter.add(self._resampler.resample_chunk(samples) if self._resampler else samples)

    async def _commit(self) -> None:
        if self._resampler is not None:  # it holds back some samples until it is told that they are the last
            await self._end_pieces(self._segmenter.add(self._resampler.resample_chunk(np.zeros(0, np.float32), True)))
            self._resampler = self._new_resampler()
        seconds = len(self._segmenter.speech()) / self._rate
        piece = self._segmenter.cut() if seconds >= MIN_SECONDS else None
        if piece is None:
            what = "sound" if self._settings.audio.input.turn_detection is None else "speech"
            raise ApiError(
                400,
                f"the buffer holds {seconds:.2f} s of {what}, and a piece needs at least {MIN_SECONDS:g} s; append "
                "more",
                code="input_audio_buffer_commit_empty",
            )
        await self._end(piece, stopped=False)

    # ---- Pieces ----

    def _new_segmenter(self, begin: int) -> LiveSegmenter:
        detection = self._settings.audio.input.turn_detection
        if detection is None:
            return LiveSegmenter(self._rate, PieceRules(max_seconds=self._window_seconds), None, begin)
        pause = detection.silence_duration_ms / 1000
        margin = min(detection.prefix_padding_ms / 1000, pause)
        rules = PieceRules(max_seconds=self._window_seconds, pause_seconds=pause, margin_seconds=margin)
        return LiveSegmenter(self._rate, rules, self._finder, begin)

    def _new_resampler(self) -> soxr.ResampleStream | None:
        rate = self._settings.audio.input.format.rate
        return None if rate == self._rate else soxr.ResampleStream(rate, self._rate, 1, dtype="float32")

    async def _start_speaking(self, start: int) -> None:
        if not self._speaking and self._settings.audio.input.turn_detection is not None:
            self._speaking = True
            await self._send(
                "input_audio_buffer.speech_started", audio_start_ms=self._milliseconds(start), item_id=self._item.id
            )

    async def _end_pieces(self, pieces: list[LivePiece]) -> None:
        """Hand over pieces that a pause has ended."""
        for piece in pieces:
            await self._start_speaking(piece.start)
            await self._end(piece, stopped=True)

    async def _end(self, piece: LivePiece, stopped: bool) -> None:
        """Hand a piece over to be transcribed, and begin the next."""
        self._stop_pass()
        item, self._item, self._speaking = self._item, LiveItem(), False
        if stopped:
            await self._send(
                "input_audio_buffer.speech_stopped", audio_end_ms=self._milliseconds(piece.stop), item_id=item.id
            )
        await self._send("input_audio_buffer.committed", item_id=item.id, previous_item_id=self._last_item)
        self._last_item = item.id
        self._ended.append((item, piece))
        self._work.set()

    def _milliseconds(self, position: int) -> int:
        return round(1000 * position / self._rate)

    # ---- Transcripts ----

    def _start_pass(self) -> None:
        """Transcribe what there is of the piece, if there is enough new and nothing else to do."""
        speech = self._segmenter.speech()
        grown = len(speech) - self._item.passed >= PASS_SECONDS * self._rate
        fits = len(speech) <= self._window_seconds * self._rate
        if grown and fits and not self._ended and (self._pass is None or self._pass.done()):
            self._item.passed = len(speech)
            self._pass = asyncio.create_task(self._transcribe_so_far(self._item, speech.copy()))

    def _stop_pass(self) -> None:
        if self._pass is not None:
            self._pass.cancel()

    async def _transcribe_so_far(self, item: LiveItem, samples: np.ndarray) -> None:
        try:
            answer = await self._answer(samples)
            await self._send_delta(item, item.words.add(joined_text(answer.segments)))
        except (ApiError, WebSocketDisconnect) as error:
            logger.info("a pass over a live piece failed: %r", error)

    async def _finish_pieces(self) -> None:
        """Transcribe the pieces that have ended, one after another."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._ended:
                item, piece = self._ended[0]
                try:
                    await self._finish(item, piece)
                finally:
                    self._ended.popleft()

    async def _finish(self, item: LiveItem, piece: LivePiece) -> None:
        place = {"item_id": item.id, "content_index": 0}
        kind = "conversation.item.input_audio_transcription"
        try:
            answer = await self._answer(piece.samples)
        except ApiError as error:
            await self._send(f"{kind}.failed", **place, error=error.body()["error"])
            return
        text = joined_text(answer.segments)
        await self._send_delta(item, item.words.finish(text))
        used = transcription_usage(answer.prompt.tokens, answer.prompt.audio_tokens, answer.tokens)
        await self._send(f"{kind}.completed", **place, transcript=text, usage=used)

    async def _answer(self, samples: np.ndarray) -> AnswerStream:
        """Transcribe samples.

        Raises:
            ApiError: they cannot be transcribed, the server is busy, or it takes too long.
        """

        def prepare() -> Iterator[PreparedRequest]:
            for start, stop in self._prompts.pieces(samples):
                inputs, size = self._prompts.for_transcription(self._request, samples[start:stop])
                yield PreparedRequest(inputs, size, Sampler(0.0), transcribes=True)

        answer = await self._queue.submit(_stay, prepare, stream=False)
        try:
            async for _ in answer:
                pass
        finally:
            answer.close()
        return answer

    # ---- What the client is sent ----

    async def _send_delta(self, item: LiveItem, delta: str) -> None:
        if delta:
            kind = "conversation.item.input_audio_transcription.delta"
            await self._send(kind, item_id=item.id, content_index=0, delta=delta)

    async def _send_error(self, error: ApiError, event_id: str | None = None) -> None:
        await self._send("error", error={**error.body()["error"], "event_id": event_id})

    async def _send(self, kind: str, **fields: Any) -> None:
        """Send an event.

        Raises:
            WebSocketDisconnect: the client left, or does not read.
        """
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._websocket.send_json(server_event(kind, **fields))
        except (TimeoutError, RuntimeError):
            raise WebSocketDisconnect from None


async def _stay() -> dict[str, Any]:
    """Never report that the client left: the session stops its answers itself."""
    return await asyncio.Future()


def _event_id(given: str | bytes) -> str | None:
    """Return the id of a client's event, also of one that is refused."""
    with suppress(ValueError, RecursionError):
        event = json.loads(given)
        if isinstance(event, dict) and isinstance(event.get("event_id"), str):
            return event["event_id"]
    return None
