"""Limits, clients that misbehave, and a model that fails: each is answered, and other requests are not affected."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from support.tiny_llaso import tiny_llaso, tone
from support.tiny_server import NAME, Served, Slowed, audio_file, heard, served, until

from llaso.serving import request_queue
from llaso.serving.engine import AnswerChunk, Engine, GenerationRequest
from llaso.serving.errors import ApiError
from llaso.serving.limits import Limits
from llaso.serving.protocol import ChatRequest, validated
from llaso.serving.request_inputs import PromptBuilder
from llaso.serving.request_queue import PreparedRequest, RequestQueue
from llaso.serving.sampling import Sampler
from llaso.serving.server_metrics import ServerMetrics
from llaso.serving.streams import ChatEvents, EventStreamResponse

CLIP = tone(0.2)


@pytest.fixture(scope="module")
def tiny():
    return tiny_llaso("trim")


@pytest.fixture(scope="module")
def server(tiny):
    limits = Limits(body_mib=1, audio_seconds=2, batch_rows=2, waiting=1, upload_seconds=1, answer_seconds=60)
    with served(*tiny, limits) as running:
        yield running


def connected(server: Served) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def request(body: dict, length: int | None = None) -> bytes:
    """A chat request as it goes over the wire."""
    content = json.dumps({"model": NAME, **body}).encode()
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {length or len(content)}",
    )
    return "\r\n".join([*lines, "", ""]).encode() + content


def response(connection: socket.socket) -> tuple[int, dict]:
    """A whole response's status and JSON."""
    reply = httpx_response(connection)
    return reply.status_code, reply.json()


def httpx_response(connection: socket.socket) -> httpx.Response:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65_536)
    return httpx.Response(int(lines[0].split()[1]), headers=headers, content=body)


# ---- Size and duration ----


def test_bodies_over_the_limit_are_refused_announced_or_not(server: Served):
    large = b"x" * (3 * 2**20)
    for content in (large, iter([large[: 2**20]] * 3)):
        reply = server.http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code == 413 and reply.json()["error"]["code"] == "request_too_large"
    with pytest.raises(openai.APIStatusError) as caught:
        server.client.audio.transcriptions.create(model=NAME, file=("a.wav", large))
    assert caught.value.status_code == 413
    assert server.ask(heard("?", CLIP), max_tokens=1).usage.completion_tokens == 1


def test_audio_over_the_limit_is_refused_before_it_is_decoded(server: Served):
    """Ten minutes of silence are a small file; all clips of a request count together."""
    bomb = audio_file(torch.zeros(600 * 16_000).numpy(), "FLAC")
    assert len(bomb) < 2**19
    for file in (bomb, audio_file(tone(2.1))):
        with pytest.raises(openai.BadRequestError, match="longer than 2 s"):
            server.client.audio.transcriptions.create(model=NAME, file=("a.flac", file))
    with pytest.raises(openai.BadRequestError, match="messages.0.content.2.* longer than 0.8 s"):
        server.ask(heard("?", tone(1.2), tone(1.2)))
    assert server.ask(heard("?", tone(1), tone(0.9)), max_tokens=1).usage.completion_tokens == 1


# ---- Time ----


def test_a_request_that_does_not_arrive_is_given_up(server: Served):
    with connected(server) as silent, connected(server) as trickling, connected(server) as headless:
        silent.sendall(request({}, length=500_000))
        headless.sendall(b"POST /v1/chat")
        started = time.monotonic()
        while time.monotonic() < started + 0.8:
            if not trickling.send(request({}, 900_000) if time.monotonic() < started + 0.05 else b" "):
                break
            time.sleep(0.1)
            assert server.http.get("/health").status_code == 200
        for slow in (silent, trickling):
            status, body = response(slow)
            assert status == 408 and "within 1 s" in body["error"]["message"]
            assert slow.recv(1) == b""  # and the connection is closed
        assert headless.recv(1) == b""


def test_an_answer_that_takes_too_long_is_given_up(tiny):
    model, processor = tiny
    with served(model, processor, Limits(answer_seconds=1)) as server, Slowed(model, 0.15) as slowed:
        with pytest.raises(openai.APIStatusError, match="no answer within 1 s") as caught:
            server.ask(heard("?", CLIP), max_tokens=1000)
        assert caught.value.status_code == 504
        # A stream has begun by then: what came stays, and an event tells the rest.
        stream = server.ask(heard("?", CLIP), max_tokens=1000, stream=True)
        chunks = []
        with pytest.raises(openai.APIError, match="no answer within 1 s"):
            for chunk in stream:
                chunks.append(chunk.choices[0].delta.content)
        assert len(chunks) > 1
        until(server.idle)
        assert slowed.forwards < 60


# ---- Numbers ----


def test_requests_over_the_limit_get_429_with_retry_after_and_the_client_retries(tiny, server: Served):
    with Slowed(tiny[0], 0.05) as slowed, ThreadPoolExecutor(4) as threads:
        under_way = [threads.submit(server.ask, heard("?", CLIP), max_tokens=30) for _ in range(3)]
        until(lambda: slowed.forwards and server.metric("llaso_waiting") == 1)
        with pytest.raises(openai.RateLimitError, match="3 requests are under way") as caught:
            server.ask(heard("?", CLIP), max_tokens=1)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        patient = server.client.with_options(max_retries=9).chat.completions
        assert patient.create(model=NAME, messages=heard("?", CLIP), max_tokens=1).usage.completion_tokens == 1
        assert {future.result().usage.completion_tokens for future in under_way} == {30}


def test_large_prompts_wait_for_room_in_the_batch(tiny):
    """The batch holds two and a half of these requests: two run, the others wait; a larger one runs alone."""
    model, processor = tiny
    prompt = processor.expanded_length([{"role": "user", "content": "Tell me"}]) + 60
    with (
        served(model, processor, Limits(batch_tokens=prompt * 5 // 2, answer_tokens=3 * prompt)) as server,
        ThreadPoolExecutor(4) as threads,
    ):
        messages = [{"role": "user", "content": "Tell me"}]
        with Slowed(model, 0.02):
            asked = [threads.submit(server.ask, messages, max_tokens=60) for _ in range(4)]
            until(lambda: server.metric("llaso_running") == 2)
            most = 0
            while not all(future.done() for future in asked):
                most = max(most, int(server.metric("llaso_running")))
        assert most == 2
        assert len({future.result().choices[0].message.content for future in asked}) == 1
        with server.ask(messages, max_tokens=3 * prompt, stream=True) as alone:
            assert len(list(itertools.islice(alone, 3))) == 3


# ---- Clients ----


def failures(server: Served) -> list[str]:
    """The counters of answers with status 500, which earlier tests of this process may have raised."""
    lines = server.http.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith("llaso_requests_total") and 'status="500"' in line]


@pytest.mark.parametrize("stream", [False, True])
def test_generation_stops_when_its_client_disconnects(tiny, server: Served, stream):
    departed, failed = server.metric("llaso_departed_total"), failures(server)
    with Slowed(tiny[0], 0.03) as slowed:
        with connected(server) as leaving:
            leaving.sendall(request({"messages": heard("?", CLIP), "max_tokens": 1000, "stream": stream}))
            until(lambda: slowed.forwards > 3)
        until(server.idle, 10)
        assert slowed.forwards < 500
    assert server.metric("llaso_departed_total") == departed + 1
    assert failures(server) == failed


def test_a_waiting_request_is_dropped_when_its_client_disconnects(tiny, server: Served):
    with Slowed(tiny[0], 0.05), ThreadPoolExecutor(2) as threads:
        running = [threads.submit(server.ask, heard("?", CLIP), max_tokens=20) for _ in range(2)]
        until(lambda: server.metric("llaso_running") == 2)
        with connected(server) as leaving:
            leaving.sendall(request({"messages": heard("?", CLIP), "max_tokens": 1000}))
            until(lambda: server.metric("llaso_waiting") == 1)
        until(lambda: server.metric("llaso_waiting") == 0)
        assert {future.result().usage.completion_tokens for future in running} == {20}


def test_a_client_that_does_not_read_holds_up_no_other(tiny):
    """A stream that no client reads is written in full and its row freed; another's answer comes meanwhile."""
    with served(*tiny, Limits(batch_rows=1)) as server, connected(server) as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.sendall(request({"messages": heard("?", CLIP), "max_tokens": 400, "stream": True}))
        until(lambda: server.metric("llaso_prompt_tokens_total") > 0)
        assert server.ask(heard("?", CLIP), max_tokens=5).usage.completion_tokens == 5


def test_a_client_that_never_reads_is_disconnected(tiny, monkeypatch):
    """The row is free when the answer's time is up, the place when the client's time to take it is."""
    model, processor = tiny
    monkeypatch.setattr(request_queue, "SEND_SECONDS", 0.5)
    limits = Limits(answer_seconds=4)

    async def full(message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def stays() -> dict:
        await asyncio.Event().wait()
        return {}

    async def tell() -> tuple[int, int]:
        queue = RequestQueue(Engine(model, processor.tokenizer, limits), limits, ServerMetrics())
        asked = json.dumps({"model": NAME, "messages": heard("What is this?", tone(0.55, pitch=250, seed=1))})
        prompts = PromptBuilder(processor, 8192, limits)
        prepared = PreparedRequest(*prompts.for_chat(validated(ChatRequest, asked.encode())), Sampler())
        answer = await queue.submit(stays, lambda: [prepared], stream=True)
        told = EventStreamResponse(answer, ChatEvents({}, with_usage=False), queue.metrics)
        with Slowed(model, 0.02):
            telling = asyncio.create_task(told({}, stays, full))
            await asyncio.sleep(answer.deadline + 0.3 - asyncio.get_running_loop().time())
            rows = queue.engine.running
            await asyncio.wait_for(telling, 20)
        with pytest.raises(ApiError) as late:
            queue.engine.close()
            await queue.submit(stays, lambda: [prepared], stream=True)
        queue.close()
        return rows, late.value.status

    assert asyncio.run(tell()) == (0, 503)


# ---- Failures ----


def test_a_failing_model_costs_only_the_requests_it_failed(tiny, server: Served):
    model, _ = tiny

    def failing(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory for this")

    model.forward = failing
    try:
        with pytest.raises(openai.InternalServerError, match="no memory for this") as caught:
            server.ask(heard("?", CLIP), max_tokens=5)
        assert caught.value.status_code == 500 and caught.value.code == "model_error"
    finally:
        del model.forward
    assert server.ask(heard("?", CLIP), max_tokens=5).usage.completion_tokens == 5


def test_logits_that_are_no_numbers_are_an_error_not_an_answer(tiny, server: Served):
    model, _ = tiny
    weight = model.model.language_model.norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    try:
        with pytest.raises(openai.InternalServerError, match="logits are not finite"):
            server.ask(heard("?", CLIP), max_tokens=5)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_closing_answers_waiting_requests_with_an_error(tiny):
    model, processor = tiny
    told: list = []
    prompt = processor.apply_transcription_request(CLIP)
    with Slowed(model, 0.05) as slowed:
        engine = Engine(model, processor.tokenizer, Limits(batch_rows=1))
        for _ in range(2):
            engine.submit(GenerationRequest(prompt, prompt["input_ids"].shape[1], 500, told.append, Sampler()))
        until(lambda: slowed.forwards > 2)
        engine.close()
    assert [type(chunk) for chunk in told] == [RuntimeError] * 2 and not engine.alive
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(GenerationRequest(prompt, 1, 1, told.append, Sampler()))
    assert not any(isinstance(chunk, AnswerChunk) for chunk in told)


# ---- The key ----


def test_the_key_is_asked_for_everywhere_but_at_health(tiny):
    with served(*tiny, api_key="sk-secret-key") as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        for key in ("none", "sk-secret", "sk-secret-keys"):
            for path in ("/v1/models", "/metrics", "/v1/chat/completions", "/nowhere"):
                reply = httpx.get(f"{server.url}{path}", headers={"Authorization": f"Bearer {key}"})
                assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"] == "Bearer"
        right = httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer sk-secret-key"})
        assert right.status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-other").models.list()


@pytest.mark.parametrize(("field", "value"), [("body_mib", 0), ("answer_seconds", float("nan")), ("waiting", -1)])
def test_limits_are_positive(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be at least"):
        Limits(**{field: value})
