"""Measures `llaso serve` with many clients at once, against one client that sends one request after another.

`python -m benchmarks.serving MODEL` starts a server of its own, asks questions whose answers `generate` gave before,
and writes a report: requests, errors, wrong and lost answers, times, throughput and the server's memory. With
`--vllm PYTHON` it then does the same with vLLM's server, from the environment of that Python.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import soundfile

RATE = 16_000
NEW_TOKENS = 48
STARTS_WITHIN = 1800
"""Seconds until a server answers; vLLM's takes minutes on a busy machine."""
VLLM_OPTIONS = (
    *("--trust-remote-code", "--model-impl", "transformers", "--dtype", "float32", "--enforce-eager"),
    *("--max-model-len", "4096", "--max-num-batched-tokens", "4096", "--host", "127.0.0.1"),
)
QUESTIONS = 12
"""Number of different questions: a server that mixes up its rows answers another one."""


def question(number: int) -> tuple[str, np.ndarray]:
    """Return a text and a noisy tone, different for each number."""
    samples = round((0.3 + 0.15 * number) * RATE)
    noise = np.random.default_rng(number).normal(0, 0.02, samples)
    tone = 0.3 * np.sin(2 * np.pi * (150 + 60 * number) * np.arange(samples) / RATE) + noise
    return f"Question {number}: what is heard in this recording?", tone.astype(np.float32)


def messages(number: int) -> list[dict[str, Any]]:
    """Return the question as a chat."""
    text, samples = question(number)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    audio = {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
    parts = [{"type": "text", "text": text}, {"type": "input_audio", "input_audio": audio}]
    return [{"role": "user", "content": parts}]


def expected_answers(model: str) -> list[str]:
    """Return what `generate` answers to each question alone, computed in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_generate, (model,))


def _generate(model: str) -> list[str]:
    from modeling_llaso.loading import load

    network, processor = load(model, "cpu")
    answers = []
    for number in range(QUESTIONS):
        text, samples = question(number)
        message = {"role": "user", "content": [{"type": "text", "text": text}, {"type": "audio"}]}
        inputs = processor.apply_chat_template(
            [message], audio=[samples], tokenize=True, return_dict=True, add_generation_prompt=True
        )
        out = network.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers.append(processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


@contextmanager
def vllm_server(model: str, python: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start vLLM's server, unchanged, on a free port of loopback; yield its URL and process."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *VLLM_OPTIONS]
    command += ["--served-model-name", Path(model).resolve().name, "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as running,
    ):
        try:
            yield f"http://127.0.0.1:{port}/v1", psutil.Process(running.pid)
        except BaseException:
            log.seek(0)
            print(log.read()[-4000:].decode(errors="replace"), file=sys.stderr)
            raise
        finally:
            running.terminate()


@contextmanager
def server(model: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start `llaso serve` on a free port of loopback; yield its URL and process."""
    command = [sys.executable, "-m", "llaso.cli", "serve", model, "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            if "http://" not in line:
                raise SystemExit(f"the server did not start: {line}")
            yield line.split()[-1], psutil.Process(running.pid)
        finally:
            running.terminate()


class Crowd:
    """Clients that send requests until they are stopped, and a record of the answers."""

    def __init__(self, url: str, model: str, expected: list[str]):
        self.url = url
        self._model = model
        self._expected = expected
        self._messages = [messages(number) for number in range(QUESTIONS)]
        self.asked = 0
        self.seconds: list[float] = []
        self.wrong = 0
        self.errors: list[str] = []

    async def ask(self, clients: int, seconds: float) -> float:
        """Let `clients` clients ask for a time, and wait for all answers.

        Returns:
            Answers a second.
        """
        before, started = len(self.seconds), time.monotonic()
        async with openai.AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=300) as client:
            await asyncio.gather(*(self._one(client, number, started + seconds) for number in range(clients)))
        return (len(self.seconds) - before) / (time.monotonic() - started)

    async def _one(self, client: openai.AsyncOpenAI, number: int, until: float) -> None:
        for turn in itertools.count(number):
            if time.monotonic() >= until:
                return
            self.asked += 1
            started = time.monotonic()
            try:
                text = await self._answer(client, turn)
            except openai.OpenAIError as error:
                self.errors.append(repr(error))
                continue
            self.seconds.append(time.monotonic() - started)
            self.wrong += text != self._expected[turn % QUESTIONS]

    async def _answer(self, client: openai.AsyncOpenAI, turn: int) -> str:
        """Ask for one answer; every fourth is streamed."""
        request: dict[str, Any] = {
            "model": self._model,
            "messages": self._messages[turn % QUESTIONS],
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
        }
        if turn % 4:
            return (await client.chat.completions.create(**request)).choices[0].message.content or ""
        stream = await client.chat.completions.create(stream=True, **request)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def load(
    model: str, clients: int, seconds: float, alone_seconds: float, vllm_python: str | None = None
) -> dict[str, dict[str, Any]]:
    """Load a server with one client, then with many.

    Args:
        model: a checkpoint's folder.
        clients: how many ask at once.
        seconds: for how long they ask; what is under way then is waited for.
        alone_seconds: for how long one client asks before.
        vllm_python: the Python of an environment with vLLM, whose server is measured after ours.

    Returns:
        A report for each server.
    """
    expected = expected_answers(model)
    reports = {"llaso serve": _load(server(model), model, expected, clients, seconds, alone_seconds)}
    reports["llaso serve"]["versions"] = versions(sys.executable, "llaso")
    if vllm_python is not None:
        started = vllm_server(model, vllm_python)
        reports["vLLM"] = _load(started, model, expected, clients, seconds, alone_seconds)
        reports["vLLM"]["versions"] = versions(vllm_python, "vllm-cpu", "vllm")
    return reports


def versions(python: str, *server: str) -> dict[str, str]:
    """Return the versions that an environment has of a server's packages, of torch and of transformers."""
    code = (
        "import importlib.metadata as m, sys; print(*(one for one in sys.argv[1:] if list(m.distributions(name=one))))"
    )
    names = subprocess.check_output([python, "-c", code, *server, "torch", "transformers"], text=True).split()
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    return dict(zip(names, subprocess.check_output([python, "-c", code, *names], text=True).split(), strict=True))


def _load(
    started: AbstractContextManager[tuple[str, psutil.Process]],
    model: str,
    expected: list[str],
    clients: int,
    seconds: float,
    alone_seconds: float,
) -> dict[str, Any]:
    name = Path(model).resolve().name
    with started as (url, process):
        # The memory of a server under load, not of one that has just started.
        warm = Crowd(url, name, expected)
        asyncio.run(_after_start(warm, clients, process))
        alone, crowd = Crowd(url, name, expected), Crowd(url, name, expected)
        alone_rate = asyncio.run(alone.ask(1, alone_seconds))
        before = _memory(process)
        rate, resident = asyncio.run(_watched(crowd, clients, seconds, process))
        after = _memory(process)
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "clients": clients,
        "asked": crowd.asked + alone.asked,
        "answered": len(crowd.seconds) + len(alone.seconds),
        "errors": crowd.errors + alone.errors + warm.errors,
        "wrong_answers": crowd.wrong + alone.wrong + warm.wrong,
        "answers_a_second": {"alone": alone_rate, "crowd": rate},
        "throughput_ratio": rate / alone_rate,
        "latency_seconds": {
            "alone_median": statistics.median(alone.seconds),
            "crowd_median": statistics.median(crowd.seconds),
            "crowd_95th_percentile": float(np.percentile(crowd.seconds, 95)),
            "crowd_most": max(crowd.seconds),
        },
        "memory_mib": {
            "before": before / 2**20,
            "halfway": resident[len(resident) // 2] / 2**20,
            "most": max(resident) / 2**20,
            "after": after / 2**20,
        },
    }


async def _after_start(crowd: Crowd, clients: int, process: psutil.Process) -> None:
    """Wait until the server listens, then get one answer for each client."""
    async with openai.AsyncOpenAI(base_url=crowd.url, api_key="none", max_retries=0) as client:
        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                await client.models.list()
                break
            except openai.APIConnectionError:
                if time.monotonic() > deadline or process.status() == psutil.STATUS_ZOMBIE:
                    raise SystemExit("the server did not start") from None
                await asyncio.sleep(0.1)
    await crowd.ask(clients, 0.01)


async def _watched(crowd: Crowd, clients: int, seconds: float, process: psutil.Process) -> tuple[float, list[int]]:
    """Return the crowd's answers a second, and the server's memory every half second."""
    resident = [_memory(process)]

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.5)
            resident.append(_memory(process))

    watching = asyncio.ensure_future(watch())
    rate = await crowd.ask(clients, seconds)
    watching.cancel()
    return rate, resident


def _memory(process: psutil.Process) -> int:
    """Return the bytes that a server and the processes it started hold, shared pages counted once, where Linux tells.

    vLLM's engine and its workers are such processes.
    """
    held = 0
    for one in (process, *process.children(recursive=True)):
        try:
            whole = one.memory_full_info()
        except psutil.NoSuchProcess:  # it ended after it was listed
            continue
        held += whole.pss if sys.platform == "linux" else whole.rss
    return held


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Return the reports as a table in Markdown."""
    clients = {report["clients"] for report in reports.values()}.pop()
    lines = [
        f"| server | answers a second, 1 client | {clients} clients | median, 95th percentile of {clients} "
        "| wrong | lost | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        rate, latency = report["answers_a_second"], report["latency_seconds"]
        told = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
        lines.append(
            f"| {name} ({told}) | {rate['alone']:.2f} | {rate['crowd']:.2f} "
            f"| {latency['crowd_median']:.2f} s, {latency['crowd_95th_percentile']:.2f} s "
            f"| {report['wrong_answers']} of {report['answered']} | {report['asked'] - report['answered']} "
            f"| {report['memory_mib']['most'] / 1024:.2f} GiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("model", metavar="DIR", help="a checkpoint")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--alone-seconds", type=float, default=15)
    parser.add_argument("--vllm", metavar="PYTHON", help="measure the vLLM that this Python has, too")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/serving.json"))
    arguments = parser.parse_args()
    reports = load(arguments.model, arguments.clients, arguments.seconds, arguments.alone_seconds, arguments.vllm)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    print(
        json.dumps({name: {**report, "errors": len(report["errors"])} for name, report in reports.items()}, indent=2)
    )
    print(table(reports))
    for report in reports.values():
        if report["errors"] or report["wrong_answers"] or report["asked"] != report["answered"]:
            sys.exit(1)


if __name__ == "__main__":
    main()
