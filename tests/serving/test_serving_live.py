"""Live transcription at /v1/realtime, with OpenAI's client and with bare websockets, on loopback."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import soxr
import torch
from support.tiny_llaso import RATE, tiny_llaso, tone
from support.tiny_server import NAME, Served, served, until

from llaso.serving.limits import Limits
from llaso.serving.live_protocol import SessionSettings

connect = pytest.importorskip(
    "websockets.sync.client", reason="websockets is not installed: pip install 'llaso[serve]'"
).connect
QUERY = "/v1/realtime?intent=transcription"
COMPLETED = "conversation.item.input_audio_transcription.completed"
DELTA = "conversation.item.input_audio_transcription.delta"


@pytest.fixture(scope="module")
def tiny():
    return tiny_llaso("trim")


@pytest.fixture(scope="module")
def server(tiny):
    with served(*tiny, Limits(answer_tokens=8, audio_seconds=60, live_sessions=2, upload_seconds=1)) as running:
        yield running


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def encoded(samples: np.ndarray) -> str:
    return base64.b64encode((samples * 32767).round().astype("<i2").tobytes()).decode()


def settings(rate: int = RATE, **fields) -> dict:
    return {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": rate}, **fields}}}


class Client:
    """A bare websocket that speaks JSON."""

    def __init__(self, websocket) -> None:
        self._websocket = websocket

    def send(self, kind: str, **fields) -> None:
        self._websocket.send(json.dumps({"type": kind, **fields}))

    def say(self, samples: np.ndarray) -> None:
        self.send("input_audio_buffer.append", audio=encoded(samples))

    def events(self, last: str) -> list[dict]:
        """Return the events until one of a kind has come."""
        found = [json.loads(self._websocket.recv(60))]
        while found[-1]["type"] != last:
            found.append(json.loads(self._websocket.recv(60)))
        return found

    def error(self) -> dict:
        return self.events("error")[-1]["error"]


@contextmanager
def talking(server: Served, rate: int = RATE, **fields) -> Iterator[Client]:
    """A session whose settings are made."""
    with connect(server.url.replace("http", "ws") + QUERY) as websocket:
        client = Client(websocket)
        assert client.events("session.created")[-1]["session"]["audio"]["input"]["transcription"]["model"] == NAME
        client.send("session.update", session=settings(rate, **fields))
        client.events("session.updated")
        yield client


def transcript(tiny, samples: np.ndarray) -> str:
    model, processor = tiny
    inputs = processor.apply_transcription_request(samples)
    generated = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def as_sent(samples: np.ndarray) -> np.ndarray:
    return (samples * 32767).round().astype("<i2").astype(np.float32) / 32768


def test_pieces_end_at_pauses_and_are_transcribed_as_alone(tiny, server):
    samples = np.concatenate([silence(1), tone(0.8, 300.0), silence(1), tone(0.6, 500.0), silence(1)])
    with talking(server) as client:
        for start in range(0, len(samples), 1600):
            client.say(samples[start : start + 1600])
        events = [*client.events(COMPLETED), *client.events(COMPLETED)]
    started = [event for event in events if event["type"] == "input_audio_buffer.speech_started"]
    stopped = [event for event in events if event["type"] == "input_audio_buffer.speech_stopped"]
    committed = [event for event in events if event["type"] == "input_audio_buffer.committed"]
    completed = [event for event in events if event["type"] == COMPLETED]
    ids = [event["item_id"] for event in started]
    assert len(set(ids)) == 2
    assert all([event["item_id"] for event in kind] == ids for kind in (stopped, committed, completed))
    assert [event["previous_item_id"] for event in committed] == [None, ids[0]]
    for begin, end, done, place in zip(started, stopped, completed, ((1, 1.8), (2.8, 3.4)), strict=True):
        assert begin["audio_start_ms"] / 1000 == pytest.approx(place[0], abs=0.25)
        assert end["audio_end_ms"] / 1000 == pytest.approx(place[1], abs=0.25)
        piece = as_sent(samples)[begin["audio_start_ms"] * 16 : end["audio_end_ms"] * 16]
        assert done["transcript"] == transcript(tiny, piece)
        deltas = "".join(e["delta"] for e in events if e["type"] == DELTA and e["item_id"] == done["item_id"])
        assert deltas == " ".join(done["transcript"].split())  # a piece is too short for two passes to agree
        assert done["usage"]["output_tokens"] == 8
    until(server.idle)


def test_the_transcript_grows_while_a_piece_is_spoken():
    model, processor = tiny_llaso("trim", seed=13)
    with torch.no_grad():  # it answers "v" whatever it hears
        model.model.multi_modal_projector.linear_2.weight.zero_()
    with served(model, processor, Limits(answer_tokens=1)) as running, talking(running) as client:
        client.say(np.concatenate([silence(1), tone(1.2)]))
        client.events("input_audio_buffer.speech_started")
        until(lambda: running.metric("llaso_answer_tokens_total") == 1)
        client.say(tone(1.2))
        assert client.events(DELTA)[-1]["delta"] == "v"  # it is still being spoken
        client.say(silence(1))
        events = client.events(COMPLETED)
        assert DELTA not in {event["type"] for event in events} and events[-1]["transcript"] == "v"


def test_the_client_may_end_pieces_itself(tiny, server):
    samples = np.concatenate([tone(0.5), silence(1), tone(0.5, 700.0)])
    with talking(server, turn_detection=None) as client:
        client.say(samples)
        client.send("input_audio_buffer.commit")
        events = client.events(COMPLETED)
        assert "input_audio_buffer.speech_started" not in {event["type"] for event in events}
        assert events[-1]["transcript"] == transcript(tiny, as_sent(samples))
        client.say(tone(1))
        client.send("input_audio_buffer.clear")
        client.events("input_audio_buffer.cleared")
        client.send("input_audio_buffer.commit", event_id="mine")
        error = client.error()
        assert error["code"] == "input_audio_buffer_commit_empty" and error["event_id"] == "mine"
        client.say(samples[: RATE // 20])
        client.send("input_audio_buffer.commit")
        message = client.error()["message"]
        assert message == "the buffer holds 0.05 s of sound, and a piece needs at least 0.1 s; append more"
        client.say(samples[RATE // 20 :])  # what was there is kept
        client.send("input_audio_buffer.commit")
        assert client.events(COMPLETED)[-1]["transcript"] == transcript(tiny, as_sent(samples))
        client.say(silence(1))
        client.send("input_audio_buffer.commit")
        failed = client.events("conversation.item.input_audio_transcription.failed")[-1]["error"]
        assert failed["code"] == "invalid_audio" and "silent" in failed["message"]


@pytest.mark.parametrize("rate", [8_000, 24_000])
def test_other_rates_are_resampled(tiny, server, rate):
    samples = soxr.resample(tone(1.0, 300.0), RATE, rate)
    with talking(server, rate, turn_detection=None) as client:
        for start in range(0, len(samples), 1000):
            client.say(samples[start : start + 1000])
        client.send("input_audio_buffer.commit")
        used = client.events(COMPLETED)[-1]["usage"]
        assert used["input_token_details"]["audio_tokens"] == pytest.approx(50, abs=2)


def test_openais_client_transcribes_live(server):
    with server.client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert connection.recv().type == "session.created"
        connection.session.update(session=settings(transcription={"model": NAME, "prompt": "Kyiv"}))
        assert connection.recv().type == "session.updated"
        connection.input_audio_buffer.append(audio=encoded(np.concatenate([silence(1), tone(1), silence(1)])))
        for event in connection:
            if event.type == COMPLETED:
                break
        assert event.transcript and event.usage.total_tokens > 50


@pytest.mark.parametrize(
    ("event", "code", "message"),
    [
        ({"type": "response.create"}, "invalid_value", "'input_audio_buffer.append'"),
        ({"type": "input_audio_buffer.append", "audio": "*"}, "invalid_base64", "not base64"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "invalid_audio", "whole 16-bit samples"),
        ({"type": "input_audio_buffer.append"}, "invalid_value", "audio"),
        (
            {"type": "input_audio_buffer.append", "audio": encoded(silence(61))},
            "buffer_full",
            "this server keeps 60 s",
        ),
        ({"type": "session.update", "session": {"type": "realtime"}}, "invalid_value", "transcription"),
        ({"type": "session.update", "session": settings(11_025)}, "invalid_value", "rate"),
        (
            {"type": "session.update", "session": settings(noise_reduction={"type": "near_field"})},
            "unknown_parameter",
            "this server does not take it",
        ),
        (
            {"type": "session.update", "session": settings(transcription={"prompt": "<audio>"})},
            "invalid_value",
            "<audio>",
        ),
        (
            {"type": "session.update", "session": settings(transcription={"prompt": 30_000 * "word "})},
            "context_length_exceeded",
            "the text has",
        ),
        (
            {"type": "session.update", "session": settings(transcription={"model": "whisper-1"})},
            "model_not_found",
            f"this server has '{NAME}'",
        ),
        (
            {"type": "session.update", "session": settings(turn_detection={"type": "server_vad", "threshold": 0.7})},
            "invalid_value",
            "threshold",
        ),
    ],
)
def test_what_is_wrong_is_said_and_the_session_goes_on(server, event, code, message):
    with talking(server) as client:
        fields = {name: value for name, value in event.items() if name != "type"}
        client.send(event["type"], event_id="mine", **fields)
        error = client.error()
        assert error["code"] == code and message in error["message"] and error["event_id"] == "mine"
        client.say(np.concatenate([silence(1), tone(0.5), silence(1)]))
        client.events(COMPLETED)


def test_settings_do_not_change_within_a_piece(server):
    with talking(server) as client:
        client.say(np.concatenate([silence(1), tone(0.5)]))
        client.events("input_audio_buffer.speech_started")
        client.send("session.update", session=settings(turn_detection=None))
        assert "commit or clear the buffer first" in client.error()["message"]
        client.send("input_audio_buffer.commit")
        client.events(COMPLETED)
        client.send("session.update", session=settings(turn_detection=None))
        updated = client.events("session.updated")[-1]["session"]["audio"]["input"]
        assert updated["turn_detection"] is None and updated["format"] == {"type": "audio/pcm", "rate": RATE}


def test_what_is_no_json_is_refused(server):
    with connect(server.url.replace("http", "ws") + QUERY) as websocket:
        client = Client(websocket)
        client.events("session.created")
        websocket.send("no JSON")
        assert "Invalid JSON" in client.error()["message"]
        websocket.send(b"\xff\x00")
        assert client.error()["code"] == "invalid_value"


def refused(server: Served, path: str = QUERY, **options) -> tuple[int, str]:
    """Connect, and return the status and the message of the refusal."""
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus) as caught, connect(server.url.replace("http", "ws") + path, **options):
        pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]["message"]


def test_who_may_not_connect_is_told_why(server):
    status, message = refused(server, "/v1/realtime")
    assert status == 400 and "/v1/realtime?intent=transcription" in message
    status, message = refused(server, f"{QUERY}&model=other")
    assert status == 404 and NAME in message
    status, message = refused(server, origin="http://example.com")
    assert status == 403 and "http://example.com" in message
    with talking(server), talking(server):
        assert server.metric("llaso_live_sessions") == 2
        assert refused(server)[0] == 429
    until(lambda: server.metric("llaso_live_sessions") == 0)
    with connect(server.url.replace("http", "ws") + QUERY, origin=server.url):
        pass
    answer = httpx.get(f"{server.url}/v1/realtime")
    assert answer.status_code == 426 and "pip install 'llaso[serve]'" in answer.text


def test_a_session_outlives_the_deadline_of_a_request_and_ends_if_idle_or_long(tiny):
    with served(*tiny, Limits(answer_tokens=2, upload_seconds=1, live_idle_seconds=2.5)) as running:
        with talking(running) as client:
            time.sleep(1.5)  # longer than a request may take to arrive
            client.say(np.concatenate([silence(1), tone(0.5), silence(1)]))
            client.events(COMPLETED)
            assert client.error()["message"] == "the session sent nothing for 2.5 s and is closed; connect again"
        until(lambda: running.metric("llaso_live_sessions") == 0)
    with served(*tiny, Limits(answer_tokens=2, live_seconds=1.5)) as running, talking(running) as client:
        for _ in range(4):
            client.say(silence(0.5))
            time.sleep(0.5)
        assert client.error()["message"] == "the session lasted 1.5 s and is closed; connect again"


def test_the_key_is_asked_for_and_a_client_that_leaves_frees_its_place(tiny):
    with served(*tiny, Limits(answer_tokens=200), api_key="sk-1") as running:
        status, message = refused(running)
        assert status == 401 and "Authorization: Bearer KEY" in message
        headers = {"Authorization": "Bearer sk-1"}
        with connect(running.url.replace("http", "ws") + QUERY, additional_headers=headers) as websocket:
            client = Client(websocket)
            client.send("session.update", session=settings())
            client.say(np.concatenate([silence(1), tone(0.5), silence(1)]))
            client.events("input_audio_buffer.committed")
        until(lambda: running.metric("llaso_live_sessions") == 0 and running.idle())


def test_a_setting_that_an_update_leaves_out_keeps_its_value_at_any_depth():
    def update(**given) -> SessionSettings:
        return SessionSettings.model_validate({"type": "transcription", "audio": {"input": given}})

    vad = {"type": "server_vad"}
    slow = vad | {"silence_duration_ms": 900}
    first = SessionSettings().updated(update(transcription={"prompt": "names"}, turn_detection=slow))
    second = first.updated(update(transcription={"language": "en"}, turn_detection=vad | {"prefix_padding_ms": 100}))
    assert (second.audio.input.transcription.prompt, second.audio.input.transcription.language) == ("names", "en")
    assert second.audio.input.turn_detection.silence_duration_ms == 900
    assert second.updated(update(turn_detection=None)).audio.input.turn_detection is None
