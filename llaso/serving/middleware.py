"""What stands before the routes: measuring, the key, and bodies that arrive whole, in time and of limited size."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .limits import Limits
from .request_queue import Departed
from .server_metrics import Metrics

logger = logging.getLogger(__name__)

HELD_BODIES = 32
"""Bodies of full size that are held in memory at once; beyond that, clients are told to come back."""


class Measured:
    """Counts requests and their seconds.

    Args:
        app: what answers them.
        metrics: where to count.
        endpoints: paths that are counted by name.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, endpoints: frozenset[str]):
        self.app = app
        self.metrics = metrics
        self.endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), "none"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            endpoint = scope["path"] if scope["path"] in self.endpoints else "other"
            self.metrics.requests.labels(endpoint, status).inc()
            self.metrics.request_seconds.labels(endpoint).observe(time.perf_counter() - started)


class Authorized:
    """Lets in who has the key. `/health` is open, as those who ask have none.

    Args:
        app: what answers them.
        api_key: what `Authorization: Bearer` must hold.
    """

    def __init__(self, app: ASGIApp, api_key: str):
        self.app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
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


class WholeBodies:
    """Reads each body before the application sees it.

    Args:
        app: what answers them.
        limits: `body_mib` and `upload_seconds` are kept here.
    """

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app = app
        self.limits = limits
        self._held = 0

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
        except Departed:
            logger.info("a client left before its request had arrived")
        finally:
            self._held -= len(body)

    async def _refusal(self, headers: Headers, receive: Receive, body: bytearray) -> ApiError | None:
        """Fill `body`; what is wrong with it, if anything."""
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
        most = self.limits.body_bytes
        too_large = ApiError(
            413, f"the request's body is larger than {self.limits.body_mib} MiB", code="request_too_large"
        )
        if int(headers.get("content-length", 0)) > most:
            raise too_large
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Departed
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > most:
                raise too_large
            if self._held + len(chunk) > HELD_BODIES * most:
                raise ApiError(
                    429, "too many large requests at once", code="server_busy", headers={"Retry-After": "1"}
                )
            body += chunk
            self._held += len(chunk)
            more = message.get("more_body", False)
