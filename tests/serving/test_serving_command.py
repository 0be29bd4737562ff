"""`llaso serve` as a process: it starts, says where, warns, stops when told, and holds a crowd."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from support.tiny_llaso import tiny_llaso, tone
from support.tiny_server import NAME, heard, until

from benchmarks.serving import load
from llaso.cli import main
from llaso.serving.server import bound_socket, is_loopback

CLIP = tone(0.3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    model, processor = tiny_llaso("trim")
    folder = tmp_path_factory.mktemp("serving") / NAME
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def process(
    checkpoint: Path, *options: str, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process of its own, and its URL."""
    command = [sys.executable, "-m", "llaso.cli", "serve", str(checkpoint), "--port", "0", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    ) as running:
        try:
            line = running.stdout.readline()
            assert line.startswith(f"serving {NAME} at http://"), line or running.stderr.read()
            url = line.split()[-1]
            until(lambda: healthy(url.removesuffix("/v1")))
            yield running, url
        finally:
            running.kill()


def healthy(url: str) -> bool:
    """Whether the server listens by now, and is well."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health").status_code == 200
    return False


def prompt_tokens(url: str) -> float:
    """Of all requests that the model thread was given."""
    metrics = httpx.get(url.replace("/v1", "/metrics"), headers={"Authorization": "Bearer sk-1"}).text
    return next(
        float(line.split()[1]) for line in metrics.splitlines() if line.startswith("llaso_prompt_tokens_total ")
    )


@pytest.mark.slow
def test_a_server_stops_when_told_and_ends_what_it_began(checkpoint):
    options = ("--host", "0.0.0.0", "--api-key-env", "KEY", "--batch-rows", "4", "--shutdown-seconds", "300")
    with process(checkpoint, *options, env={"KEY": "sk-1"}) as (running, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        client = openai.OpenAI(base_url=url, api_key="sk-1", max_retries=0)
        ask = functools.partial(client.chat.completions.create, model=NAME, messages=heard("?", CLIP))
        each = ask(max_tokens=1).usage.prompt_tokens
        with ThreadPoolExecutor(6) as threads:
            answers = [threads.submit(ask, max_tokens=200) for _ in range(6)]
            until(lambda: prompt_tokens(url) == 7 * each)
            stream = ask(max_tokens=1000, stream=True)
            next(iter(stream))
            running.send_signal(signal.SIGTERM)
            assert list(stream)[-1].choices[0].finish_reason == "length"
            assert {answer.result().usage.completion_tokens for answer in answers} == {200}
        assert running.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/models")
        warnings = [line for line in running.stderr.read().splitlines() if line.startswith("llaso: ")]
        assert warnings == []  # open to others, but with a key


def test_bad_options_end_in_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").write_text("\n")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, message in (
            (["--api-key-env", "NO_SUCH_KEY"], "the variable NO_SUCH_KEY holds no API key"),
            (["--api-key-file", str(tmp_path / "empty")], "empty holds no API key"),
            (["--api-key-file", str(tmp_path / "missing")], f"no such file or folder: {tmp_path / 'missing'}"),
            (["--batch-rows", "0"], "batch_rows is 0; it must be at least 1"),
            (["--port", port], f"cannot serve on 127.0.0.1, port {port}"),
            (["--port", "70000"], "--port: '70000' is not a port"),
            (["--host", "no.such.host.invalid"], "cannot serve on no.such.host.invalid"),
        ):
            assert main(["serve", str(checkpoint), *options]) == 2
            captured = capsys.readouterr()
            assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "no checkpoint is there" in capsys.readouterr().err


def test_a_server_without_a_key_open_to_others_says_so(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert "0.0.0.0 is open to other machines, and there is no API key" in warning and "no checkpoint" in error


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_what_counts_as_loopback(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.slow
def test_fifty_clients_lose_nothing(checkpoint):
    """The minute of `python -m benchmarks.serving`, in short; its ratio is measured there, where it is quiet."""
    report = load(str(checkpoint), clients=50, seconds=4, alone_seconds=1)["llaso serve"]
    assert report["errors"] == [] and report["wrong_answers"] == 0
    assert report["answered"] == report["asked"] >= 50
    assert report["memory_mib"]["after"] - report["memory_mib"]["before"] < 256
