"""`/v1/realtime`: admits live transcriptions."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from ..transcription.speech_finders import SpeechFinder
from .errors import ApiError, model_not_found
from .limits import Limits
from .live_session import LiveSession
from .request_inputs import PromptBuilder
from .request_queue import RequestQueue
from .server_metrics import ServerMetrics


class LiveEndpoint:
    """Admits live transcriptions up to a limit.

    Args:
        prompts: builds their prompts.
        name: name of the model.
        limits: `live_sessions` applies here.
        metrics: counts them.
        finder: finds speech.
        window: samples that the encoder takes at most.
        rate: of these samples, Hz.
    """

    queue: RequestQueue

    def __init__(
        self,
        prompts: PromptBuilder,
        name: str,
        limits: Limits,
        metrics: ServerMetrics,
        finder: SpeechFinder,
        window: int,
        rate: int,
    ) -> None:
        self._prompts, self._name, self._limits, self._metrics = prompts, name, limits, metrics
        self._finder, self._window_seconds, self._rate = finder, window / rate, rate
        self._open = 0

    async def serve(self, websocket: WebSocket) -> None:
        """Serve the websocket `/v1/realtime?intent=transcription`."""
        refusal = self._refusal(websocket)
        if refusal is not None:
            await websocket.send_denial_response(refusal.response())
            return
        self._open += 1
        self._metrics.live.set(self._open)
        try:
            await LiveSession(
                websocket,
                self.queue,
                self._prompts,
                self._name,
                self._limits,
                self._finder,
                self._window_seconds,
                self._rate,
            ).run()
        finally:
            self._open -= 1
            self._metrics.live.set(self._open)

    async def refuse_http(self, request: Request) -> Response:
        """Refuse a plain request, or an upgrade that the server cannot make because `websockets` is missing."""
        raise ApiError(
            426,
            "/v1/realtime is a websocket; if you opened one, the server lacks the package websockets: "
            "pip install 'llaso[serve]'",
            code="upgrade_required",
            headers={"Upgrade": "websocket"},
        )

    def _refusal(self, websocket: WebSocket) -> ApiError | None:
        """Return why a client is not admitted."""
        origin = websocket.headers.get("origin")
        # Browsers let any page open a websocket to this machine, and say which page it is.
        if origin is not None and urlsplit(origin).netloc != websocket.headers.get("host"):
            return ApiError(
                403, f"pages of {origin} may not connect; serve the page from here, or connect from a program"
            )
        if websocket.query_params.get("intent") != "transcription":
            return ApiError(
                400,
                "this server offers live transcription only: connect to /v1/realtime?intent=transcription",
                param="intent",
                code="invalid_value",
            )
        asked = websocket.query_params.get("model", self._name)
        if asked != self._name:
            return model_not_found(asked, self._name)
        if self._open >= self._limits.live_sessions:
            return ApiError(
                429,
                f"{self._open} live transcriptions are open, and no more are taken; try again later",
                code="server_busy",
            )
        return None
