"""vLLM's own server, as installed in another environment, for the tests and measurements that name it.

`LLASO_VLLM_PYTHON` is the Python of that environment; docs/serve.md says how to make one. Nothing in it is changed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from support.paths import ROOT
from support.tiny_server import audio_file, heard

STARTS_WITHIN = 1800
"""Seconds; a busy machine takes minutes."""


@contextmanager
def vllm_server(python: str, model: Path, *arguments: str, log: Path, plugin: bool = False) -> Iterator[httpx.Client]:
    """Serve a checkpoint with vLLM's Transformers backend, in float32 on the CPU; yield a client of the server.

    Args:
        python: the Python of vLLM's environment.
        model: the folder of the checkpoint.
        *arguments: more of vLLM's options.
        log: file for what the server prints.
        plugin: let vLLM find our plugin, as if this package were installed beside it.

    Raises:
        RuntimeError: the server ended before it was ready; the message has the end of its log.
    """
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    options = ["--model", str(model), "--served-model-name", "llaso", "--trust-remote-code"]
    options += ["--model-impl", "auto" if plugin else "transformers", "--dtype", "float32", "--enforce-eager"]
    options += ["--host", "127.0.0.1", "--port", str(port), *arguments]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{_entry_points(log.parent)}:{ROOT}" if plugin else "",
    }
    with log.open("wb") as written:
        server = subprocess.Popen(
            [python, "-m", "vllm.entrypoints.openai.api_server", *options],
            stdout=written,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=log.parent,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=STARTS_WITHIN) as client:
                _wait_until_ready(client, server, log)
                yield client
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _entry_points(folder: Path) -> Path:
    """Write what an installation tells about the plugin: setup.cfg's entry points, without the package's code."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    group = "vllm.general_plugins"
    told = folder / "entry_points" / "llaso-0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: llaso\nVersion: 0\n")
    (told / "entry_points.txt").write_text(f"[{group}]\n{settings['options.entry_points'][group].strip()}\n")
    return told.parent


def _wait_until_ready(client: httpx.Client, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"vLLM ended before it was ready:\n{log.read_text(errors='replace')[-4000:]}")
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise RuntimeError(f"vLLM was not ready within {STARTS_WITHIN} s:\n{log.read_text(errors='replace')[-4000:]}")


def ask_vllm(client: httpx.Client, text: str, clips: list[np.ndarray], tokens: int, **more: Any) -> httpx.Response:
    """Ask for a greedy answer with its ids and log-probabilities."""
    body = {
        "model": "llaso",
        "messages": heard(text, *clips),
        "temperature": 0,
        "max_tokens": tokens,
        "logprobs": True,
        "return_token_ids": True,
        "ignore_eos": True,
        **more,
    }
    return client.post("/v1/chat/completions", json=body)


def transcribe_with_vllm(client: httpx.Client, clip: np.ndarray, tokens: int, prompt: str = "") -> httpx.Response:
    """Ask for a greedy transcript."""
    fields = {"model": "llaso", "prompt": prompt, "temperature": "0", "max_completion_tokens": str(tokens)}
    return client.post("/v1/audio/transcriptions", data=fields, files={"file": ("clip.wav", audio_file(clip))})
