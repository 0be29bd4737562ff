"""Middleware: request metrics, the API key, and request bodies of limited size that must arrive in time."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .limits import Limits
from .request_queue import ClientDisconnected
from .server_metrics import ServerMetrics

logger = logging.getLogger(__name__)

MAX_BODIES = 32
"""Memory for bodies, in multiples of the largest body; requests beyond it get status 429."""


class MetricsMiddleware:
    """Counts requests and measures their duration.

    Args:
        app: the next application.
        metrics: the metrics to update.
        endpoints: paths with a label of their own; others count as "other".
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, endpoints: frozenset[str]):
        self.app = app
        self.metrics = metrics
        self.endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), "none"

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_status)
        finally:
            endpoint = scope["path"] if scope["path"] in self.endpoints else "other"
            self.metrics.requests.labels(endpoint, status).inc()
            self.metrics.request_seconds.labels(endpoint).observe(time.perf_counter() - started)


class ApiKeyMiddleware:
    """Refuses requests without the API key, except `/health`, because health checks send no key.

    Args:
        app: the next application.
        api_key: the token expected in the header `Authorization: Bearer`.
    """

    def __init__(self, app: ASGIApp, api_key: str):
        self.app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                error = ApiError(
                    401,
                    "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)


class BodyMiddleware:
    """Reads the whole body of each request before calling the application.

    Args:
        app: the next application.
        limits: `body_mib` and `upload_seconds` apply here.
    """

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app = app
        self.limits = limits
        self._bytes_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = bytearray()
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        try:
            refusal = await self._refusal(Headers(scope=scope), receive, body)
            await (self.app(scope, replay, send) if refusal is None else refusal.response()(scope, receive, send))
        except ClientDisconnected:
            logger.info("a client left before its request had arrived")
        finally:
            self._bytes_held -= len(body)

    async def _refusal(self, headers: Headers, receive: Receive, body: bytearray) -> ApiError | None:
        """Read the body into `body`; return an error if it is too large or too late."""
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                await self._read(headers, receive, body)
        except TimeoutError:
            seconds = f"{self.limits.upload_seconds:g} s"
            message = f"the request did not arrive within {seconds}"
            return ApiError(408, message, code="timeout", headers={"Connection": "close"})
        except ApiError as error:
            return error
        return None

    async def _read(self, headers: Headers, receive: Receive, body: bytearray) -> None:
        max_bytes = self.limits.body_bytes
        too_large = ApiError(
            413, f"the request's body is larger than {self.limits.body_mib} MiB", code="request_too_large"
        )
        if int(headers.get("content-length", 0)) > max_bytes:
            raise too_large
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > max_bytes:
                raise too_large
            if self._bytes_held + len(chunk) > MAX_BODIES * max_bytes:
                raise ApiError(
                    429, "too many large requests at once", code="server_busy", headers={"Retry-After": "1"}
                )
            body += chunk
            self._bytes_held += len(chunk)
            more = message.get("more_body", False)
