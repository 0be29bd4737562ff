"""What clients send beside the plain case: empty fields, earlier answers, data URIs, URLs, languages, hints."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_llaso import RATE, ask, question, tiny_llaso, tone
from support.tiny_server import NAME, Served, audio_file, heard, served

from llaso.serving.errors import ApiError
from llaso.serving.limits import Limits
from llaso.serving.protocol import ChatRequest, TranscriptionRequest, validated
from llaso.serving.remote_audio import AllowedHosts, fetch
from llaso.serving.request_inputs import PromptBuilder

CLIP = tone(0.4)
FILE = audio_file(CLIP)
URI = "data:audio/wav;base64," + base64.b64encode(FILE).decode()


@pytest.fixture(scope="module")
def tiny():
    return tiny_llaso("trim")


@pytest.fixture(scope="module")
def server(tiny):
    with served(*tiny, Limits(answer_tokens=16, audio_seconds=120)) as running:
        yield running


def answer(tiny, conversation: list[dict], clips: list, tokens: int) -> str:
    """What `generate` answers."""
    model, processor = tiny
    inputs = ask(processor, [conversation], clips)
    generated = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# ---- History and empty fields ----


@pytest.mark.parametrize("empty", ["", " \n", None, []])
def test_an_empty_answer_can_be_sent_back_as_history(tiny, server: Served, empty):
    messages = [*heard("First?", CLIP), {"role": "assistant", "content": empty, "tool_calls": [], "audio": None}]
    completion = server.ask([*messages, {"role": "user", "content": "And now?"}], max_tokens=5, temperature=0)
    conversation = [*question("First?"), {"role": "assistant", "content": ""}, {"role": "user", "content": "And now?"}]
    assert completion.choices[0].message.content == answer(tiny, conversation, [CLIP], 5)
    with pytest.raises(openai.BadRequestError, match="message 1 .assistant.: the message is empty"):
        server.ask(messages, max_tokens=1)  # nothing follows it, so it is no history


EMPTY = st.sampled_from([None, [], {}])
OPTIONAL = sorted({*ChatRequest.model_fields} - {"model", "messages"} | {"tools", "tool_choice", "functions", "audio"})


@settings(deadline=None)
@given(unused=st.dictionaries(st.sampled_from(OPTIONAL), EMPTY))
def test_null_and_empty_fields_mean_not_given(unused):
    chat = {"model": NAME, "messages": [{"role": "user", "content": "x"}]}
    plain, filled = (validated(ChatRequest, json.dumps(body).encode()) for body in (chat, {**chat, **unused}))
    assert filled == plain


@settings(deadline=None)
@given(st.sets(st.sampled_from(["language", "prompt", "response_format", "temperature", "stream", "include", "x"])))
def test_empty_form_fields_mean_not_given(names):
    form = {"model": NAME}
    empty = {name: [] if name == "include" else "" for name in names}
    assert validated(TranscriptionRequest, {**form, **empty}) == validated(TranscriptionRequest, form)


def test_required_fields_are_asked_for_even_if_empty():
    for body, message in (
        ({"model": NAME, "messages": []}, "messages: "),
        ({"model": None, "messages": []}, "model: "),
    ):
        with pytest.raises(ApiError, match=message):
            validated(ChatRequest, json.dumps(body).encode())


# ---- Languages and hints ----


@pytest.mark.parametrize(("tag", "language"), [("en", "en"), ("en-US", "en"), ("EN_us", "en"), ("zh-Hant-TW", "zh")])
def test_a_language_tag_is_its_language(tag, language):
    assert validated(TranscriptionRequest, {"model": NAME, "language": tag}).language == language


@pytest.mark.parametrize("tag", ["in English", "e", "en-", "english!", "-US"])
def test_no_language_tag_is_refused_in_plain_words(tag):
    with pytest.raises(ApiError, match="^language: .* is no language tag; write it as en or en-US$"):
        validated(TranscriptionRequest, {"model": NAME, "language": tag})


def test_a_transcriptions_prompt_is_a_hint_beside_the_instruction(tiny, server: Served):
    instruction = tiny[1].default_transcription_prompt
    told = server.client.audio.transcriptions.create(model=NAME, file=("a.wav", FILE), prompt=" Kyiv, Lviv ")
    assert told.text == answer(tiny, question(f"{instruction}\nContext: Kyiv, Lviv"), [CLIP], 16).strip()


def test_long_recordings_are_transcribed_piece_by_piece_with_times(tiny, server: Served):
    parts = [tone(20, 300.0), np.zeros(RATE, np.float32), tone(15, 500.0), np.zeros(RATE, np.float32), tone(2)]
    samples = np.concatenate(parts)
    file = ("long.wav", audio_file(samples))
    create = server.client.audio.transcriptions.create
    verbose = create(model=NAME, file=file, response_format="verbose_json", timestamp_granularities=["segment"])
    assert verbose.duration == len(samples) / RATE and [segment.id for segment in verbose.segments] == [0, 1, 2]
    instruction = question(tiny[1].default_transcription_prompt)
    for segment, (start, end) in zip(verbose.segments, [(0, 20), (21, 36), (37, 39)], strict=True):
        assert segment.start == pytest.approx(start, abs=0.25) and segment.end == pytest.approx(end, abs=0.25)
        clip = samples[round(segment.start * RATE) : round(segment.end * RATE)]
        assert segment.text == answer(tiny, instruction, [clip], 16).strip() and segment.avg_logprob < 0
    assert verbose.text == " ".join(segment.text for segment in verbose.segments)
    assert create(model=NAME, file=file).text == verbose.text
    assert create(model=NAME, file=file, response_format="srt").count(" --> ") == 3
    assert create(model=NAME, file=file, response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 --> ")
    events = list(create(model=NAME, file=file, stream=True, timestamp_granularities=["segment"]))
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert [(one.start, one.end, one.text) for one in segments] == [(s.start, s.end, s.text) for s in verbose.segments]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert "".join(deltas) == events[-1].text
    assert events[-1].text.split() == verbose.text.split() and events[-1].usage.output_tokens == 48


def test_no_message_says_value_error(server: Served):
    for options in ({"max_completion_tokens": 3}, {"stream_options": {"include_usage": True}}):
        with pytest.raises(openai.BadRequestError) as caught:
            server.ask([{"role": "user", "content": "x"}], max_tokens=2, **options)
        assert "Value error" not in str(caught.value)


# ---- What is too long ----


def test_the_part_that_is_too_long_is_named(tiny):
    _, processor = tiny
    builder = PromptBuilder(processor, 800, Limits(audio_seconds=1000))

    def refused(*parts) -> ApiError:
        chat = {"model": NAME, "messages": [{"role": "user", "content": list(parts)}]}
        with pytest.raises(ApiError) as caught:
            builder.for_chat(validated(ChatRequest, json.dumps(chat).encode()))
        return caught.value

    recording, short = ({"type": "input_audio", "input_audio": {"data": encoded(tone(s))}} for s in (60, 0.3))
    text = {"type": "text", "text": "word " * 400}
    assert "the recording is too long: 3000 tokens of audio and " in str(refused(recording))
    assert "the text is too long: 15 tokens of audio and " in str(refused(text, short))
    with pytest.raises(ApiError, match="the recording is too long") as caught:
        builder.for_transcription(validated(TranscriptionRequest, {"model": NAME}), tone(60))
    assert caught.value.param == "file"
    processor.max_audio_len = 30
    try:
        message = str(refused({"type": "input_audio", "input_audio": {"data": encoded(tone(31))}}))
    finally:
        processor.max_audio_len = 600
    assert "longer than 30 s" in message and "max_audio_len" not in message


def encoded(clip) -> str:
    return base64.b64encode(audio_file(clip)).decode()


# ---- Data URIs and URLs ----


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio_url", "audio_url": {"url": URI}},
        {"type": "input_audio", "input_audio": {"data": URI, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": URI.partition(",")[2], "format": "m4a"}},
    ],
)
def test_data_uris_are_read_and_the_file_tells_its_format(tiny, server: Served, part):
    content = [{"type": "text", "text": "What?"}, part]
    completion = server.ask([{"role": "user", "content": content}], max_tokens=4, temperature=0)
    assert completion.choices[0].message.content == answer(tiny, question("What?"), [CLIP], 4)


def url_part(url: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": url}}]}]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:audio/wav,plain", "data:TYPE;base64,DATA"),
        ("data:audio/wav;base64,*", "not base64"),
        ("https://example.com/a.wav", "does not fetch audio from example.com; send the file itself"),
        ("http://127.0.0.1:1/a.wav", "does not fetch audio from 127.0.0.1"),
        ("http://[::1]/a.wav", "does not fetch audio from ::1"),
        ("http://localhost/", "does not fetch audio from localhost"),
        ("file:///etc/passwd", "https://HOST/PATH"),
        ("http://", "https://HOST/PATH"),
        ("http://user:password@example.com/", "https://HOST/PATH"),
        ("http://example.com:99999/", "Port out of range"),
        ("http://[::1", "Invalid IPv6 URL"),
    ],
)
def test_urls_of_hosts_that_are_not_named_are_refused(server: Served, url, message):
    with pytest.raises(openai.BadRequestError) as caught:
        server.ask(url_part(url), max_tokens=1)
    assert message in str(caught.value) and caught.value.param == "messages.0.content.0.audio_url.url"


@pytest.fixture
def host():
    """An HTTP server on loopback, its port, and the paths it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(302 if self.path == "/moved" else 200)
            self.send_header("Location", "/a.wav")
            self.end_headers()
            if self.path == "/slow":
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            self.wfile.write(FILE)

        def log_message(self, *arguments) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port, paths
        running.shutdown()


def test_a_named_hosts_url_is_fetched(tiny, host):
    port, paths = host
    with served(*tiny, audio_hosts=["127.0.0.0/8"]) as server:
        completion = server.ask(url_part(f"http://127.0.0.1:{port}/a.wav?b=1"), max_tokens=4, temperature=0)
        heard_alone = [{"role": "user", "content": [{"type": "audio"}]}]
        assert completion.choices[0].message.content == answer(tiny, heard_alone, [CLIP], 4)
        assert paths == ["/a.wav?b=1"]
        with pytest.raises(openai.BadRequestError, match="302; redirects are not followed"):
            server.ask(url_part(f"http://127.0.0.1:{port}/moved"), max_tokens=1)


def test_a_download_has_limits(host):
    port, _ = host
    url, here = f"http://localhost:{port}", AllowedHosts(["LOCALHOST.", "127.0.0.1", "::1"])
    assert fetch(f"{url}/a.wav", here, len(FILE), 30) == FILE
    with pytest.raises(ValueError, match="the file is larger than"):
        fetch(f"{url}/a.wav", here, len(FILE) - 1, 30)
    with pytest.raises(OSError, match="localhost did not send the file within 0.5 s"):
        fetch(f"{url}/slow", here, 2**20, 0.5)


def test_a_named_host_with_a_private_address_is_refused_unless_the_address_is_named(host):
    port, paths = host
    with pytest.raises(PermissionError, match="localhost has a private address"):
        fetch(f"http://localhost:{port}/a.wav", AllowedHosts(["localhost"]), 2**20, 30)
    assert not paths


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "::ffff:10.0.0.1",
        "224.0.0.1",
    ],
)
def test_a_name_never_leads_to_a_private_address(monkeypatch, address):
    found = [(None, None, None, "", ("93.184.215.14", 443)), (None, None, None, "", (address, 443))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **options: found)
    with pytest.raises(PermissionError, match="private address"):
        AllowedHosts(["example.com"]).resolve("example.com", 443)
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **options: found[:1])
    assert AllowedHosts(["example.com"]).resolve("Example.com", 443) == "93.184.215.14"
    with pytest.raises(PermissionError, match=r"does not fetch audio from other\.example"):
        AllowedHosts(["example.com"]).resolve("other.example", 443)
