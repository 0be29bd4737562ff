"""The routes: OpenAI's chat completions, transcriptions, live transcription and models; health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute

from ..alignment.joint_decoding import joint_decoder
from ..transcription.speech_finders import EnergyFinder, SpeechFinder
from ..transcription.transcript_formats import joined_text, transcript
from .engine import Engine
from .errors import ApiError, model_not_found
from .limits import Limits
from .live_endpoint import LiveEndpoint
from .middleware import ApiKeyMiddleware, BodyMiddleware, MetricsMiddleware
from .protocol import ChatRequest, TranscriptionRequest, segment_record, transcription_usage, usage, validated
from .remote_audio import AllowedHosts
from .request_inputs import PromptBuilder
from .request_queue import AnswerStream, ClientDisconnected, PreparedRequest, RequestQueue
from .sampling import Sampler
from .server_metrics import ServerMetrics
from .streams import ChatEvents, EventStreamResponse, TranscriptEvents

ENDPOINTS = frozenset(
    {"/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models", "/v1/realtime", "/health", "/metrics"}
)
UNUSED_HEADER = "LLaSO-Unused"
"""Header that names the fields of a request that had no effect on the answer."""


UNSUPPORTED_GENERATION_FIELDS = (
    "num_beams",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "min_length",
    "min_new_tokens",
    "stop_strings",
)
"""Fields of a generation config that `generate` applies and this server does not."""


def unsupported_generation_fields(generation_config) -> list[str]:
    """Return the names of the fields set in a generation config that this server does not apply."""
    return [
        field for field in UNSUPPORTED_GENERATION_FIELDS if getattr(generation_config, field) not in (None, 0, 1, [])
    ]


def build_app(
    model,
    processor,
    name: str,
    limits: Limits | None = None,
    api_key: str | None = None,
    audio_hosts: Sequence[str] = (),
    finder: SpeechFinder | None = None,
    ctc_weight: float | None = None,
) -> Starlette:
    """Build the ASGI application that serves one model.

    Args:
        model: a `LlasoForConditionalGeneration`, on its device.
        processor: its processor.
        name: name of the model in requests.
        limits: limits of the server.
        api_key: the key that clients must send; none by default.
        audio_hosts: hosts that audio URLs may name; see `AllowedHosts`.
        finder: finds the speech of recordings to transcribe; by default an `EnergyFinder`.
        ctc_weight: of CTC in transcripts; see `joint_decoder`.

    Raises:
        ValueError: there is no such weight, or one is given but the model was not aligned by CTC.
    """
    joint = joint_decoder(model, processor.tokenizer, ctc_weight)
    limits = limits or Limits()
    metrics = ServerMetrics()
    context = model.config.text_config.max_position_embeddings
    prompts = PromptBuilder(processor, context, limits, AllowedHosts(audio_hosts), finder)
    endpoints = Endpoints(model, prompts, name, limits, metrics)
    extractor = processor.feature_extractor
    live = LiveEndpoint(
        prompts, name, limits, metrics, finder or EnergyFinder(), extractor.n_samples, extractor.sampling_rate
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        endpoints.queue = live.queue = RequestQueue(Engine(model, processor.tokenizer, limits, joint), limits, metrics)
        try:
            yield
        finally:
            await asyncio.to_thread(endpoints.queue.close)

    middleware = [Middleware(MetricsMiddleware, metrics=metrics, endpoints=ENDPOINTS)]
    if api_key is not None:
        middleware.append(Middleware(ApiKeyMiddleware, api_key=api_key))
    middleware.append(Middleware(BodyMiddleware, limits=limits))
    return Starlette(
        routes=[
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/audio/transcriptions", endpoints.transcription, methods=["POST"]),
            WebSocketRoute("/v1/realtime", live.serve),
            Route("/v1/realtime", live.refuse_http),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{model:path}", endpoints.model),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics_text),
        ],
        middleware=middleware,
        exception_handlers={
            ApiError: _api_error,
            ClientDisconnected: _client_disconnected,
            HTTPException: _http_error,
            Exception: _internal_error,
        },
        lifespan=lifespan,
    )


class Endpoints:
    """The handlers of the routes, and the state they share."""

    queue: RequestQueue

    def __init__(self, model, prompts: PromptBuilder, name: str, limits: Limits, metrics: ServerMetrics):
        self._name = name
        self._limits = limits
        self._metrics = metrics
        self._created = int(time.time())
        self._prompts = prompts
        generation = model.generation_config
        self._temperature = (generation.temperature or 1.0) if generation.do_sample else 0.0
        self._top_p = (generation.top_p or 1.0) if generation.do_sample else 1.0

    async def chat(self, request: Request) -> Response:
        """Serve `POST /v1/chat/completions`."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the request's Content-Type must be application/json", code="unsupported_media_type")
        body = await request.body()
        chat: ChatRequest = await asyncio.to_thread(validated, ChatRequest, body)
        self._check_name(chat.model)

        def prepare() -> Iterator[PreparedRequest]:
            temperature = self._temperature if chat.temperature is None else chat.temperature
            top_p = self._top_p if chat.top_p is None else chat.top_p
            sampler = Sampler(temperature, top_p, chat.seed)
            yield PreparedRequest(*self._prompts.for_chat(chat), sampler, chat.stop or ())

        answer = await self.queue.submit(request.receive, prepare, stream=bool(chat.stream))
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self._name}
        if chat.stream:
            with_usage = chat.stream_options is not None and chat.stream_options.include_usage
            return EventStreamResponse(answer, ChatEvents(head, with_usage), self._metrics)
        text, finish_reason = await _read_all(answer)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        prompt = answer.prompt
        used = usage(prompt.tokens, prompt.audio_tokens, answer.tokens)
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": used})

    async def transcription(self, request: Request) -> Response:
        """Serve `POST /v1/audio/transcriptions`."""
        async with request.form(max_files=1, max_fields=32, max_part_size=64 * 2**10) as form:
            fields: dict[str, Any] = {}
            for key in form.keys():
                values = form.getlist(key)
                listed = key.endswith("[]") or len(values) > 1
                fields[key.removesuffix("[]")] = values if listed else values[0]
            upload = fields.pop("file", None)
            if not isinstance(upload, UploadFile):
                raise ApiError(400, "file: an audio file must come, as multipart/form-data", param="file")
            file = await upload.read()
        options: TranscriptionRequest = validated(TranscriptionRequest, fields)
        self._check_name(options.model)

        seconds = 0.0

        def prepare() -> Iterator[PreparedRequest]:
            nonlocal seconds
            samples, pieces, rate = self._prompts.transcription_pieces(options, file)
            seconds = len(samples) / rate
            for start, stop in pieces:
                inputs, size = self._prompts.for_transcription(options, samples[start:stop])
                span = start / rate, stop / rate
                yield PreparedRequest(inputs, size, Sampler(options.temperature), (), span, transcribes=True)

        answer = await self.queue.submit(request.receive, prepare, stream=options.stream)
        headers = {UNUSED_HEADER: "language"} if options.language else {}
        if options.stream:
            return EventStreamResponse(
                answer, TranscriptEvents(bool(options.timestamp_granularities)), self._metrics, headers
            )
        _, finish_reason = await _read_all(answer)
        if options.response_format in ("srt", "text", "vtt"):
            content = transcript(answer.segments, options.response_format, seconds)
            return PlainTextResponse(content, headers=headers)
        text = joined_text(answer.segments)
        prompt = answer.prompt
        if options.response_format == "json":
            used = transcription_usage(prompt.tokens, prompt.audio_tokens, answer.tokens)
            return JSONResponse({"text": text, "usage": used, "finish_reason": finish_reason}, headers=headers)
        verbose = {
            "task": "transcribe",
            "language": options.language,
            "duration": seconds,
            "text": text,
            "segments": [segment_record(*numbered) for numbered in enumerate(answer.segments)],
            "finish_reason": finish_reason,
            "usage": {"type": "duration", "seconds": seconds},
        }
        return JSONResponse(verbose, headers=headers)

    async def models(self, request: Request) -> Response:
        """Serve `GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._model_card()]})

    async def model(self, request: Request) -> Response:
        """Serve `GET /v1/models/NAME`."""
        self._check_name(request.path_params["model"])
        return JSONResponse(self._model_card())

    async def health(self, request: Request) -> Response:
        """Serve `GET /health`: 200 while the model thread runs."""
        alive = self.queue.engine.alive
        return JSONResponse({"status": "ok" if alive else "down"}, 200 if alive else 503)

    async def metrics_text(self, request: Request) -> Response:
        """Serve `GET /metrics`, in Prometheus's text format."""
        self._metrics.running.set(self.queue.engine.running)
        self._metrics.waiting.set(self.queue.engine.waiting)
        return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model_card(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": self._created, "owned_by": "llaso"}

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise model_not_found(name, self._name)


async def _read_all(answer: AnswerStream) -> tuple[str, str | None]:
    """Return the whole text of an answer, and its finish reason."""
    try:
        chunks = [chunk async for chunk in answer]
    finally:
        answer.close()
    return "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """Convert Starlette's own errors: unknown path, wrong method, malformed form."""
    assert isinstance(error, HTTPException)
    place = f"{request.method} {request.url.path}"
    return ApiError(error.status_code, f"{place}: {error.detail}", headers=error.headers).response()


async def _internal_error(request: Request, error: Exception) -> Response:
    return ApiError(500, "the server failed; its log says why", code="server_error").response()


async def _client_disconnected(request: Request, error: Exception) -> Response:
    """Return a response that is not sent, as the client has gone; the metrics count its status."""
    return Response(status_code=499)
