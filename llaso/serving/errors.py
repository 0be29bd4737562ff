"""API errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` and a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Error types by status; other 4xx are `invalid_request_error`, and 5xx `server_error`."""


class ApiError(Exception):
    """An error that is sent to the client.

    Args:
        status: the HTTP status.
        message: what is wrong, in a sentence.
        param: the invalid field of the request.
        code: what is wrong, as a constant that programs can compare.
        headers: further headers, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """Return the error as a JSON object, for a response's body or an event of a stream."""
        error_type = ERROR_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": error_type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the error as an HTTP response."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def model_not_found(asked: str | None, name: str, param: str = "model") -> ApiError:
    """Return the error for another model than the one that is served.

    Args:
        asked: what the client named.
        name: the model that is served.
        param: the field that named it.
    """
    message = f"the model {asked!r} is not here; this server has {name!r}"
    return ApiError(404, message, param=param, code="model_not_found")
