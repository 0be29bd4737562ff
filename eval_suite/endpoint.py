"""A client for OpenAI-compatible chat servers, used to answer rows and to judge answers.

It tells apart failures that pass (busy, restarting: tried again, with growing pauses), failures of one request
(refused input) and failures of every request (no server, no permission, no such model).
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
from collections.abc import Iterable
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
class Completion:
    """An answer, the seconds from asking to its end and to its first piece, and the tokens that the server counted.

    `tokens` were generated, `prompt_tokens` read; None if the server did not say.
    """

    text: str
    seconds: float
    first_token: float | None
    tokens: int | None
    prompt_tokens: int | None = None


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

    def ask(self, messages: list[dict[str, Any]], *, stream: bool = False, **parameters: Any) -> Completion:
        """Return the answer to a conversation, and what it took.

        Args:
            messages: the conversation.
            stream: ask for the answer piece by piece, so that the time to the first one is known. A server that
                refuses to stream, or sends the answer whole all the same, is taken at that.
            parameters: of the request, e.g. `max_tokens`.

        Raises:
            RequestRefusedError: this request failed for a reason of its own, or kept failing.
            ConnectionError: the server cannot be reached, or refuses every request (wrong model, wrong key).
        """
        asked = {"model": self.model, "messages": messages, **parameters}
        streamed = asked | {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps(streamed if stream else asked).encode()
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {_excerpt(error)}"
                if error.code in HOPELESS:
                    raise ConnectionError(
                        f"{self.url} answers {reason}; check the address, the model and the key in "
                        f"{self.api_key_variable}"
                    ) from None
                if stream and error.code in (400, 422) and "stream" in reason:
                    return self.ask(messages, **parameters)
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
            logger.warning("%s: %s; trying again in %.1f s", self.url, reason, pause)
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: bytes) -> Completion:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.api_key_variable):
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/")
        if not address.endswith("/chat/completions"):
            address += "/chat/completions"
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            if response.headers.get_content_type() == "text/event-stream":
                return _streamed(response, started)
            body = response.read()
        try:
            content = json.loads(body)
            text = content["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise RequestRefusedError(f"not a chat completion: {body[:200].decode('utf-8', 'replace')}") from None
        if not isinstance(text, str):
            raise RequestRefusedError("the answer holds no text")
        tokens, read = _tokens(content.get("usage"))
        return Completion(text, time.perf_counter() - started, None, tokens, read)


def _streamed(lines: Iterable[bytes], started: float) -> Completion:
    """Read an answer sent as server-sent events."""
    pieces: list[str] = []
    first, tokens, read, ended = None, None, None, False
    for line in lines:
        name, _, data = line.decode("utf-8", "replace").strip().partition(":")
        if name != "data" or not data.strip():
            continue
        if data.strip() == "[DONE]":
            ended = True
            break
        try:
            event = json.loads(data)
            choices = event.get("choices") or []
            piece = choices[0]["delta"].get("content") if choices else None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise RequestRefusedError(f"not an event of a chat completion: {data.strip()[:200]}") from None
        if event.get("error"):
            raise RequestRefusedError(f"the answer broke off: {str(event['error'])[:200]}")
        if isinstance(piece, str) and piece:
            first = time.perf_counter() - started if first is None else first
            pieces.append(piece)
        ended = ended or bool(choices and choices[0].get("finish_reason"))
        if event.get("usage"):
            tokens, read = _tokens(event["usage"])
    if not ended:
        raise http.client.IncompleteRead("".join(pieces).encode("utf-8", "replace"))
    return Completion("".join(pieces), time.perf_counter() - started, first, tokens, read)


def _tokens(usage: Any) -> tuple[int | None, int | None]:
    """Return the tokens that a server counted: generated, and of the prompt."""
    counted = usage if isinstance(usage, dict) else {}
    tokens, read = counted.get("completion_tokens"), counted.get("prompt_tokens")
    return tokens if isinstance(tokens, int) else None, read if isinstance(read, int) else None


def _excerpt(error: urllib.error.HTTPError) -> str:
    """Return what the server says about its refusal, in one short line."""
    return " ".join(error.read(500).decode("utf-8", "replace").split()) or error.reason


def _seconds(header: str | None) -> float | None:
    """Return the pause that a server asks for; None if it gives none in seconds."""
    return min(120.0, float(header)) if header and header.strip().isdigit() else None
