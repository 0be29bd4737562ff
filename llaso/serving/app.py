"""The routes: OpenAI's chat completions, transcriptions and models, and the server's health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .engine import Engine, Piece
from .errors import ApiError
from .limits import Limits
from .middleware import Authorized, Measured, WholeBodies
from .protocol import ChatRequest, TranscriptionRequest, transcription_usage, usage, validated
from .request_inputs import PromptMaker
from .request_queue import Answer, Departed, Desk, Order
from .sampling import Draw
from .server_metrics import Metrics
from .streams import ChatEvents, EventStream, TranscriptEvents

ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models", "/health", "/metrics"})
UNUSED = "LLaSO-Unused"
"""Header that names a request's fields which had no effect on the answer."""


NOT_APPLIED = (
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
"""Fields of a generation config by which `generate` would answer differently from this server."""


def not_applied(generation_config) -> list[str]:
    """Those that a generation config sets to something."""
    return [field for field in NOT_APPLIED if getattr(generation_config, field) not in (None, 0, 1, [])]


def build_app(model, processor, name: str, limits: Limits | None = None, api_key: str | None = None) -> Starlette:
    """The ASGI application that serves one model.

    Args:
        model: a `LlasoForConditionalGeneration`, where it shall run.
        processor: its processor.
        name: what requests call it.
        limits: what the server takes on.
        api_key: what clients must send, if anything.
    """
    limits = limits or Limits()
    metrics = Metrics()
    endpoints = Endpoints(model, processor, name, limits, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        endpoints.desk = Desk(Engine(model, processor.tokenizer, limits), limits, metrics)
        try:
            yield
        finally:
            await asyncio.to_thread(endpoints.desk.close)

    middleware = [Middleware(Measured, metrics=metrics, endpoints=ENDPOINTS)]
    if api_key is not None:
        middleware.append(Middleware(Authorized, api_key=api_key))
    middleware.append(Middleware(WholeBodies, limits=limits))
    return Starlette(
        routes=[
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/audio/transcriptions", endpoints.transcription, methods=["POST"]),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{model:path}", endpoints.model),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics_text),
        ],
        middleware=middleware,
        exception_handlers={
            ApiError: _api_error,
            Departed: _departed,
            HTTPException: _http_error,
            Exception: _own_error,
        },
        lifespan=lifespan,
    )


class Endpoints:
    """The routes' functions, and what they share."""

    desk: Desk

    def __init__(self, model, processor, name: str, limits: Limits, metrics: Metrics):
        self._name = name
        self._limits = limits
        self._metrics = metrics
        self._created = int(time.time())
        self._prompts = PromptMaker(processor, model.config.text_config.max_position_embeddings, limits)
        generation = model.generation_config
        self._temperature = (generation.temperature or 1.0) if generation.do_sample else 0.0
        self._top_p = (generation.top_p or 1.0) if generation.do_sample else 1.0

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the request's Content-Type must be application/json", code="unsupported_media_type")
        body = await request.body()
        asked: ChatRequest = await asyncio.to_thread(validated, ChatRequest, body)
        self._check_name(asked.model)

        def make() -> Order:
            temperature = self._temperature if asked.temperature is None else asked.temperature
            top_p = self._top_p if asked.top_p is None else asked.top_p
            return Order(*self._prompts.of_chat(asked), Draw(temperature, top_p, asked.seed), asked.stop or ())

        answer = await self.desk.take(request.receive, make, in_pieces=bool(asked.stream))
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self._name}
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            return EventStream(answer, ChatEvents(head, with_usage), self._metrics)
        text, piece = await _whole(answer)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": piece.finish_reason,
        }
        prompt = answer.prompt
        used = usage(prompt.tokens, prompt.audio_tokens, piece.tokens)
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": used})

    async def transcription(self, request: Request) -> Response:
        """`POST /v1/audio/transcriptions`."""
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
        asked: TranscriptionRequest = validated(TranscriptionRequest, fields)
        self._check_name(asked.model)

        def make() -> Order:
            return Order(*self._prompts.of_transcription(asked, file), Draw(asked.temperature))

        answer = await self.desk.take(request.receive, make, in_pieces=asked.stream)
        headers = {UNUSED: "language"} if asked.language else {}
        if asked.stream:
            return EventStream(answer, TranscriptEvents(), self._metrics, headers)
        text, piece = await _whole(answer)
        text = text.strip()
        if asked.response_format == "text":
            return PlainTextResponse(text + "\n", headers=headers)
        prompt = answer.prompt
        if asked.response_format == "json":
            used = transcription_usage(prompt.tokens, prompt.audio_tokens, piece.tokens)
            return JSONResponse({"text": text, "usage": used, "finish_reason": piece.finish_reason}, headers=headers)
        verbose = {
            "task": "transcribe",
            "language": asked.language,
            "duration": prompt.audio_seconds,
            "text": text,
            "finish_reason": piece.finish_reason,
            "usage": {"type": "duration", "seconds": prompt.audio_seconds},
        }
        return JSONResponse(verbose, headers=headers)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        self._check_name(request.path_params["model"])
        return JSONResponse(self._card())

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 while the model answers."""
        alive = self.desk.engine.alive
        return JSONResponse({"status": "ok" if alive else "down"}, 200 if alive else 503)

    async def metrics_text(self, request: Request) -> Response:
        """`GET /metrics`, in Prometheus's text format."""
        self._metrics.running.set(self.desk.engine.running)
        self._metrics.waiting.set(self.desk.engine.waiting)
        return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _card(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": self._created, "owned_by": "llaso"}

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise ApiError(
                404,
                f"the model {name!r} is not here; this server has {self._name!r}",
                param="model",
                code="model_not_found",
            )


async def _whole(answer: Answer) -> tuple[str, Piece]:
    """All of an answer's text, and its last piece."""
    try:
        pieces = [piece async for piece in answer]
    finally:
        answer.close()
    return "".join(piece.text for piece in pieces), pieces[-1]


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, no such method, no form."""
    assert isinstance(error, HTTPException)
    place = f"{request.method} {request.url.path}"
    return ApiError(error.status_code, f"{place}: {error.detail}", headers=error.headers).response()


async def _own_error(request: Request, error: Exception) -> Response:
    return ApiError(500, "the server failed; its log says why", code="server_error").response()


async def _departed(request: Request, error: Exception) -> Response:
    """Goes nowhere; its status is for the metrics."""
    return Response(status_code=499)
