"""A server on loopback for the serving tests: the tiny model, in a thread of the test's process."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import numpy as np
import openai
import soundfile
import uvicorn

from llaso.serving.app import build_app
from llaso.serving.limits import Limits
from llaso.serving.server import address, bound_socket, configured
from support.tiny_llaso import RATE

NAME = "llaso-tiny"


def audio_file(samples: np.ndarray, kind: str = "WAV", rate: int = RATE) -> bytes:
    """Return samples as a file's bytes; WAV is lossless."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype="FLOAT" if kind == "WAV" else None)
    return file.getvalue()


def audio_part(file: bytes, kind: str = "wav") -> dict:
    """Return a chat message's `input_audio` part."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file).decode(), "format": kind}}


def heard(text: str, *clips: np.ndarray) -> list[dict]:
    """Return one user's messages: text and then clips."""
    parts = [{"type": "text", "text": text}, *(audio_part(audio_file(clip)) for clip in clips)]
    return [{"role": "user", "content": parts}]


class Served:
    """A running server: its URL, an official client without retries, a plain HTTP client, and its metrics."""

    def __init__(self, url: str, api_key: str):
        self.url = url
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=300)
        self.http = httpx.Client(base_url=url, timeout=300, headers={"Authorization": f"Bearer {api_key}"})

    def ask(self, messages: list[dict], **options):
        """Ask for a chat completion."""
        return self.client.chat.completions.create(model=NAME, messages=messages, **options)

    def metric(self, name: str) -> float:
        """Return one value of `/metrics`, by its name with labels."""
        lines = self.http.get("/metrics").text.splitlines()
        found = (line for line in lines if line.startswith(f"{name} "))
        return float(next(found, "0 0").rsplit(" ", 1)[1])  # a series without a request yet is not listed

    def idle(self) -> bool:
        """Return whether no request is in the batch or waiting for it."""
        return self.metric("llaso_running") == 0 and self.metric("llaso_waiting") == 0


@contextlib.contextmanager
def served(
    model,
    processor,
    limits: Limits | None = None,
    api_key: str | None = None,
    audio_hosts: Sequence[str] = (),
    ctc_weight: float | None = None,
) -> Iterator[Served]:
    """Serve a model on a free port until the block ends."""
    limits = limits or Limits()
    with bound_socket("127.0.0.1", 0) as bound:
        app = build_app(model, processor, NAME, limits, api_key, audio_hosts, ctc_weight=ctc_weight)
        server = uvicorn.Server(configured(app, limits))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        running = Served(address(bound), api_key or "none")
        try:
            until(lambda: server.started)
            yield running
        finally:
            running.http.close()
            running.client.close()
            server.should_exit = True
            thread.join(300)
            assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


class Slowed:
    """Makes each forward of a model last at least so long, or wait; for tests that must find it at work."""

    def __init__(self, model, seconds: float):
        self._forward = model.forward
        self._model = model
        self._seconds = seconds
        self.forwards = 0

    def __enter__(self) -> Slowed:
        def forward(*args, **kwargs):
            self.forwards += 1
            time.sleep(self._seconds)
            return self._forward(*args, **kwargs)

        self._model.forward = forward
        return self

    def __exit__(self, *exception) -> None:
        del self._model.forward
