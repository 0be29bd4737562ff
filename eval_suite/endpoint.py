"""One client for OpenAI-compatible chat servers, used to answer rows and to judge answers.

It knows which failures pass (busy, restarting: tried again, with growing pauses), which belong to one request
(refused input) and which mean that nothing will ever work (no server, no permission, no such model).
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""HTTP codes worth another try."""
HOPELESS = {401, 403, 404, 405}
"""HTTP codes that every further request would get too."""


class RequestRefusedError(Exception):
    """The server will not answer this request; another one may succeed."""


@dataclass(frozen=True)
class ChatEndpoint:
    """A chat server with the OpenAI interface.

    Args:
        url: its base, e.g. "http://localhost:8000/v1".
        model: the model's name there.
        api_key_variable: the environment variable that holds the key, if the server wants one.
        timeout: seconds to wait for one answer.
        retries: how often a passing failure is tried again.
        pause: seconds before the first new try; each further one doubles it, up to a minute.
    """

    url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    timeout: float = 300.0
    retries: int = 5
    pause: float = 1.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"{self.url!r} is no http(s) address; give the server's base, e.g. http://localhost:8000/v1"
            )

    def complete(self, messages: list[dict[str, Any]], **parameters: Any) -> str:
        """The text of the answer to a conversation.

        Raises:
            RequestRefusedError: this request failed for a reason of its own, or kept failing.
            ConnectionError: the server cannot be reached, or refuses every request (wrong model, wrong key).
        """
        body = json.dumps({"model": self.model, "messages": messages, **parameters}).encode()
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                return self._text(self._post(body))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {_excerpt(error)}"
                if error.code in HOPELESS:
                    raise ConnectionError(
                        f"{self.url} answers {reason}; check the address, the model and the key in "
                        f"{self.api_key_variable}"
                    ) from None
                if error.code not in PASSING or last:
                    raise RequestRefusedError(reason) from None
                wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                reason, wait = f"{type(error).__name__}: {error}", None
                if last and isinstance(error, TimeoutError):
                    raise RequestRefusedError(f"no answer within {self.timeout:g} s") from None
                if last:
                    raise ConnectionError(f"{self.url} cannot be reached ({reason})") from None
            pause = min(60.0, self.pause * 2**attempt) * random.uniform(0.75, 1.25) if wait is None else wait
            logger.info("%s: %s; trying again in %.1f s", self.url, reason, pause)
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.api_key_variable):
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/")
        if not address.endswith("/chat/completions"):
            address += "/chat/completions"
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return response.read()

    @staticmethod
    def _text(body: bytes) -> str:
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise RequestRefusedError(f"not a chat completion: {body[:200].decode('utf-8', 'replace')}") from None
        if not isinstance(content, str):
            raise RequestRefusedError("the answer holds no text")
        return content


def _excerpt(error: urllib.error.HTTPError) -> str:
    """What the server says about its refusal, in one short line."""
    return " ".join(error.read(500).decode("utf-8", "replace").split()) or error.reason


def _seconds(header: str | None) -> float | None:
    """The pause a server asks for, where it gives one in seconds."""
    return min(120.0, float(header)) if header and header.strip().isdigit() else None
