"""`llaso serve` as its users meet it: OpenAI's own client, and every answer compared with `generate`'s."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import openai
import pytest
from support.spoken import without_speech
from support.tiny_llaso import ask, question, tiny_llaso, tone
from support.tiny_server import NAME, Served, audio_file, audio_part, heard, served

from llaso.serving.limits import Limits
from llaso_common.audio import read_audio

TOKENS = 48
"""Of an answer at most."""
CLIPS = [tone(0.25 + 0.3 * number, pitch=180 + 70 * number, seed=number) for number in range(4)]


@pytest.fixture(scope="module")
def tiny():
    return tiny_llaso("trim")


@pytest.fixture(scope="module")
def server(tiny):
    with served(*tiny, Limits(answer_tokens=TOKENS)) as running:
        yield running


@pytest.fixture(scope="module")
def answer(tiny):
    """What `generate` answers, one request at a time."""
    model, processor = tiny

    def answer(conversation: list[dict], clips: list[np.ndarray], tokens: int) -> str:
        inputs = ask(processor, [conversation], clips)
        generated = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


# ---- Chat ----


def test_an_answer_is_generates_answer_with_its_usage(tiny, server: Served, answer):
    _, processor = tiny
    completion = server.ask(heard("What is this?", CLIPS[0]), max_tokens=7, temperature=0)
    assert (
        completion.object == "chat.completion" and completion.model == NAME and completion.id.startswith("chatcmpl-")
    )
    (choice,) = completion.choices
    assert choice.message.role == "assistant" and choice.finish_reason == "length"
    assert choice.message.content == answer(question("What is this?"), CLIPS[:1], 7)
    prompt = ask(processor, [question("What is this?")], CLIPS[:1])["input_ids"].shape[1]
    assert completion.usage.completion_tokens == 7 and completion.usage.prompt_tokens == prompt
    assert completion.usage.total_tokens == prompt + 7
    assert completion.usage.prompt_tokens_details.audio_tokens == processor.count_audio_tokens(len(CLIPS[0]))


@pytest.mark.parametrize(("kind", "rate"), [("WAV", 44_100), ("MP3", 16_000), ("FLAC", 8_000), ("OGG", 48_000)])
def test_every_format_and_rate_is_heard(server: Served, answer, kind, rate):
    file = audio_file(CLIPS[2], kind, rate)
    part = audio_part(file, kind.lower())
    completion = server.ask([{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}], max_tokens=4)
    assert completion.choices[0].message.content == answer(question("What?"), [read_audio(file)], 4)


def test_conversations_of_several_turns_and_clips(server: Served, answer):
    messages = [
        {"role": "developer", "content": "Answer in one word."},
        *heard("First?", CLIPS[0]),
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [audio_part(audio_file(CLIPS[1])), {"type": "text", "text": "And the second?"}]},
    ]
    conversation = [
        {"role": "system", "content": "Answer in one word."},
        *question("First?"),
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "And the second?"}]},
    ]
    completion = server.ask(messages, max_completion_tokens=6)
    assert completion.choices[0].message.content == answer(conversation, CLIPS[:2], 6)
    # What a client was given can be sent back as it came.
    messages += [completion.choices[0].message.model_dump(), {"role": "user", "content": "Why?"}]
    assert server.ask(messages, max_tokens=2).usage.completion_tokens == 2


def test_streams_say_the_same_piece_by_piece(server: Served, answer):
    messages = heard("What is this?", CLIPS[1])
    chunks = list(
        server.ask(messages, max_tokens=12, stream=True, stream_options={"include_usage": True}, temperature=0)
    )
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *told, last, used = chunks
    assert told[0].choices[0].delta.role == "assistant"
    chunks = [chunk.choices[0].delta.content for chunk in told[1:]]
    assert len(chunks) > 2 and "".join(chunks) == answer(question("What is this?"), [CLIPS[1]], 12)
    assert {chunk.choices[0].finish_reason for chunk in told} == {None} and last.choices[0].finish_reason == "length"
    assert used.choices == [] and used.usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in told)
    plain = list(server.ask(messages, max_tokens=3, stream=True))
    assert plain[-1].choices[0].finish_reason == "length"  # no usage unless asked for
    with server.client.chat.completions.with_streaming_response.create(
        model=NAME, messages=messages, max_tokens=3, stream=True
    ) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        assert list(raw.iter_lines())[-2] == "data: [DONE]"


def test_stop_sequences_and_the_end_token(tiny, server: Served, answer):
    model, processor = tiny
    whole = answer(question("What is this?"), CLIPS[:1], 12)
    stop = whole[5:7]
    assert whole.find(stop) > 0
    for stream in (False, True):
        told = server.ask(heard("What is this?", CLIPS[0]), max_tokens=12, stop=["never said", stop], stream=stream)
        if stream:
            chunks = list(told)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            text, reason = told.choices[0].message.content, told.choices[0].finish_reason
        assert (text, reason) == (whole[: whole.find(stop)], "stop")
    inputs = ask(processor, [question("What is this?")], CLIPS[:1])
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    model.generation_config.eos_token_id = [tokens[4], 257]
    try:
        with served(model, processor) as ending:
            completion = ending.ask(heard("What is this?", CLIPS[0]), max_tokens=12)
    finally:
        model.generation_config.eos_token_id = None
    place = tokens.index(tokens[4])
    assert completion.choices[0].finish_reason == "stop" and completion.usage.completion_tokens == place + 1
    assert completion.choices[0].message.content == processor.decode(tokens[:place], skip_special_tokens=True)


def test_seeds_repeat_and_temperatures_vary(server: Served):
    messages = heard("Say something", CLIPS[0])

    def text(**options) -> str:
        return server.ask(messages, max_tokens=12, **options).choices[0].message.content

    hot = {"temperature": 1.8, "top_p": 0.98}
    assert text(seed=5, **hot) == text(seed=5, **hot)
    assert len({text(seed=seed, **hot) for seed in range(4)}) > 1
    assert text(temperature=2, top_p=0, seed=1) == text(temperature=0)


def test_fifty_at_once_are_answered_as_one_by_one(server: Served, answer):
    """Different questions, clips and lengths, half of them streamed, in whatever batches come about."""

    asked = [(f"Question {number}: what?", CLIPS[number % 4], 3 + number % 11) for number in range(50)]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int, text: str, clip: np.ndarray, tokens: int) -> str:
                request = {"model": NAME, "messages": heard(text, clip), "max_tokens": tokens, "temperature": 0}
                if number % 2:
                    chunks = [c async for c in await client.chat.completions.create(stream=True, **request)]
                    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                return (await client.chat.completions.create(**request)).choices[0].message.content

            return await asyncio.gather(*(one(number, *rest) for number, rest in enumerate(asked)))

    told = asyncio.run(all_at_once())
    assert told == [answer(question(text), [clip], tokens) for text, clip, tokens in asked]


# ---- Transcriptions ----


def test_transcriptions_in_every_form(tiny, server: Served, answer):
    _, processor = tiny
    wanted = answer(question(processor.default_transcription_prompt), [CLIPS[3]], TOKENS).strip()
    file = ("speech.wav", audio_file(CLIPS[3]))
    create = server.client.audio.transcriptions.create
    told = create(model=NAME, file=file)
    assert told.text == wanted and told.usage.output_tokens == TOKENS and told.finish_reason == "length"
    assert told.usage.input_token_details.audio_tokens == processor.count_audio_tokens(len(CLIPS[3]))
    verbose = create(model=NAME, file=file, response_format="verbose_json")
    assert verbose.text == wanted and verbose.language is None
    assert verbose.duration == pytest.approx(len(CLIPS[3]) / 16_000)
    assert create(model=NAME, file=file, response_format="text") == wanted + "\n"
    *deltas, done = create(model=NAME, file=file, stream=True)
    assert len(deltas) > 2 and "".join(event.delta for event in deltas).strip() == wanted == done.text
    assert done.usage.total_tokens == told.usage.total_tokens


def test_a_long_recording_without_speech_has_an_empty_transcript(tiny, server: Served):
    _, processor = tiny
    file = ("click.wav", audio_file(without_speech(processor.feature_extractor.n_samples / 16_000 + 1)))
    create = server.client.audio.transcriptions.create
    told = create(model=NAME, file=file)
    assert (told.text, told.usage.total_tokens, told.finish_reason) == ("", 0, "stop")
    verbose = create(model=NAME, file=file, response_format="verbose_json")
    assert verbose.text == "" and verbose.segments == []
    (done,) = create(model=NAME, file=file, stream=True)
    assert done.type == "transcript.text.done" and done.text == ""


def test_a_language_is_accepted_and_changes_nothing(server: Served):
    create = server.client.audio.transcriptions.with_raw_response.create
    file = ("speech.wav", audio_file(CLIPS[0]))
    without, told = create(model=NAME, file=file), create(model=NAME, file=file, language="en")
    assert told.parse().text == without.parse().text
    assert told.headers["LLaSO-Unused"] == "language" and "LLaSO-Unused" not in without.headers
    assert create(model=NAME, file=file, language="en", response_format="verbose_json").parse().language == "en"


# ---- What is around ----


def test_models_health_and_metrics(server: Served):
    assert [model.id for model in server.client.models.list()] == [NAME]
    assert server.client.models.retrieve(NAME).owned_by == "llaso"
    assert server.http.get("/health").json() == {"status": "ok"}
    series = 'llaso_requests_total{endpoint="/v1/chat/completions",status="200"}'
    before = {name: server.metric(name) for name in (series, "llaso_answer_tokens_total", "llaso_audio_seconds_total")}
    server.ask(heard("?", CLIPS[0]), max_tokens=3)
    after = {name: server.metric(name) for name in before}
    gained = [after[name] - before[name] for name in before]
    assert gained == [1, 3, pytest.approx(len(CLIPS[0]) / 16_000)]
    assert server.metric("process_resident_memory_bytes") > 2**20
    assert server.idle()


def test_a_generation_config_that_samples_is_the_default(tiny):
    model, processor = tiny
    model.generation_config.update(do_sample=True, temperature=1.9, top_p=0.99)
    try:
        with served(model, processor) as sampling:
            texts = {
                sampling.ask(heard("Say", CLIPS[0]), max_tokens=12, seed=seed).choices[0].message.content
                for seed in range(4)
            }
            greedy = {
                sampling.ask(heard("Say", CLIPS[0]), max_tokens=12, seed=seed, temperature=0)
                .choices[0]
                .message.content
                for seed in range(2)
            }
    finally:
        model.generation_config.update(do_sample=None, temperature=None, top_p=None)
    assert len(texts) > 1 and len(greedy) == 1


# ---- Errors, in OpenAI's shape ----

CHAT = {"model": NAME, "max_tokens": 2}


def content(part: dict) -> dict:
    return {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]}


def said(text: str = "hello", **fields) -> dict:
    return {**CHAT, "messages": [{"role": "user", "content": text}], **fields}


SOUND = audio_file(tone(0.2))
NAN = audio_file(np.full(3000, np.nan, dtype=np.float32))
BAD_CHATS = {
    "model": (said(model="gpt-4o-audio"), 404, "model", "'gpt-4o-audio' is not here"),
    "no messages": ({**CHAT, "messages": []}, 400, "messages", "at least 1 item"),
    "no model": ({"messages": said()["messages"]}, 400, "model", "Field required"),
    "role": ({**CHAT, "messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0", "'tool'"),
    "part": (content({"type": "image_url", "image_url": {"url": "x"}}), 400, "messages.0.content.1", "image_url"),
    "system last": (
        {**CHAT, "messages": [*said()["messages"], {"role": "system", "content": "x"}]},
        400,
        "messages",
        "at most one system message first",
    ),
    "empty": (said(" "), 400, "messages", "is empty"),
    "special token": (said("what is <|eot_id|>"), 400, "messages", "<|eot_id|>"),
    "placeholder": (said("what is <audio>"), 400, "messages", "<audio>"),
    "base64": (
        content({"type": "input_audio", "input_audio": {"data": "*&^", "format": "wav"}}),
        400,
        "messages.0.content.1.input_audio.data",
        "not base64",
    ),
    "no audio": (content(audio_part(b"this is no audio")), 400, None, "not readable as audio"),
    "empty file": (content(audio_part(b"")), 400, None, "the file is empty"),
    "cut header": (content(audio_part(SOUND[:20])), 400, None, "not readable as audio"),
    "no samples": (content(audio_part(audio_file(np.zeros(0, np.float32)))), 400, None, "no samples"),
    "NaN audio": (content(audio_part(NAN)), 400, None, "NaN"),
    "silence": (content(audio_part(audio_file(np.zeros(8000, np.float32)))), 400, None, "silent"),
    "temperature": (said(temperature=2.5), 400, "temperature", "less than or equal to 2"),
    "NaN temperature": (said(temperature=float("nan")), 400, "temperature", ""),
    "text temperature": (said(temperature="hot"), 400, "temperature", "valid number"),
    "no tokens": (said(max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
    "true tokens": (said(max_tokens=True), 400, "max_tokens", "valid integer"),
    "too many tokens": (said(max_tokens=5000), 400, "max_tokens", "at most 48"),
    "both limits": (said(max_completion_tokens=3), 400, None, "give one of them"),
    "long prompt": (said("word " * 1700), 400, "messages", "the text is too long: 0 tokens of audio"),
    "absurd prompt": (
        said("x" * 140_000),
        400,
        "messages",
        "the text has 140000 characters; the model takes 8192 tokens",
    ),
    "five stops": (said(stop=list("abcde")), 400, "stop", "at most 4 items"),
    "several answers": (said(n=2), 400, "n", "1"),
    "tools": (said(tools=[{"type": "function"}]), 400, "tools", "does not take"),
    "spoken answer": (said(modalities=["text", "audio"]), 400, "modalities.1", "'text'"),
    "JSON mode": (said(response_format={"type": "json_object"}), 400, "response_format.type", "'text'"),
    "stream options": (said(stream_options={"include_usage": True}), 400, None, "stream=true"),
    "no JSON": (b'{"model": ', 400, None, "Invalid JSON"),
    "no UTF-8": (b'{"model": "\xff"}', 400, None, "Invalid JSON"),
    "no content": ({**CHAT, "messages": [{"role": "user", "content": []}]}, 400, "messages.0.content", "at least 1"),
    "empty stop": (said(stop=""), 400, "stop.0", "at least 1 character"),
    "no object": (b"[1, 2]", 400, None, "object"),
    "deep JSON": (b"[" * 100_000, 400, None, "Invalid JSON"),
    "no body": (b"", 400, None, "Invalid JSON"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_a_bad_chat_is_told_what_is_wrong_with_it(server: Served, case):
    body, status, param, message = BAD_CHATS[case]
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = server.http.post("/v1/chat/completions", content=given, headers={"Content-Type": "application/json"})
    check_error(response, status, param, message)


def check_error(response, status: int, param: str | None, message: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert param is None or error["param"] == param or error["param"].startswith(f"{param}.")
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


FORM = {"model": NAME}
BAD_TRANSCRIPTIONS = {
    "no file": (FORM, None, 400, "file", "an audio file must come"),
    "no audio": (FORM, b"no audio", 400, "file", "not readable as audio"),
    "NaN audio": (FORM, NAN, 400, "file", "NaN"),
    "model": ({"model": "whisper-1"}, SOUND, 404, "model", "'whisper-1' is not here"),
    "no model": ({"temperature": "0"}, SOUND, 400, "model", "Field required"),
    "diarization": ({**FORM, "response_format": "diarized_json"}, SOUND, 400, "response_format", "'verbose_json'"),
    "language": ({**FORM, "language": "in English"}, SOUND, 400, "language", "is no language tag"),
    "times": ({**FORM, "timestamp_granularities[]": "word"}, SOUND, 400, "timestamp_granularities", "'segment'"),
    "times in text": ({**FORM, "timestamp_granularities[]": "segment"}, SOUND, 400, None, "verbose_json"),
    "special token": ({**FORM, "prompt": "what is <audio>"}, SOUND, 400, "prompt", "<audio>"),
    "streamed text": ({**FORM, "response_format": "text", "stream": "true"}, SOUND, 400, None, "json"),
    "long field": ({**FORM, "prompt": "x" * 70_000}, SOUND, 400, None, "exceeded maximum size"),
}


@pytest.mark.parametrize("case", BAD_TRANSCRIPTIONS)
def test_a_bad_transcription_is_told_what_is_wrong_with_it(server: Served, case):
    fields, file, status, param, message = BAD_TRANSCRIPTIONS[case]
    files = {"file": ("speech.wav", file)} if file is not None else {"other": (None, "x")}
    check_error(server.http.post("/v1/audio/transcriptions", data=fields, files=files), status, param, message)


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/v1/embeddings", {}, b"", 404),
        ("GET", "/v1/chat/completions", {}, b"", 405),
        ("GET", "/v1/models/other", {}, b"", 404),
        ("POST", "/v1/chat/completions", {"Content-Type": "text/plain"}, b"{}", 415),
        ("POST", "/v1/audio/transcriptions", {"Content-Type": "application/json"}, b"{}", 400),
        ("POST", "/v1/audio/transcriptions", {"Content-Type": "multipart/form-data"}, b"x", 400),
        ("POST", "/v1/audio/transcriptions", {"Content-Type": "multipart/form-data; boundary=b"}, b"--b\r\nx", 400),
    ],
)
def test_other_errors_have_openais_shape(server: Served, method, path, headers, body, status):
    response = server.http.request(method, path, headers=headers, content=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


def test_the_client_raises_its_own_errors(server: Served):
    with pytest.raises(openai.NotFoundError, match="is not here"):
        server.client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="not base64") as caught:
        part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND)[:-1].decode(), "format": "wav"}}
        server.ask([{"role": "user", "content": [part]}])
    assert caught.value.code == "invalid_base64"
