"""What telephones and browsers record, through every door: command line, Python, server, demo."""

from __future__ import annotations

import base64
from pathlib import Path

import openai
import pytest
import soundfile
from support.phone_files import FILES, film_or_recording
from support.tiny_llaso import RATE, ask, question, tiny_llaso, tone
from support.tiny_server import NAME, Served, served

from llaso.cli import main
from llaso.demo.question import DemoModel, DemoQuestion
from llaso.serving.limits import Limits
from llaso_common.audio import audio_seconds, read_audio

TOKENS = 16


@pytest.fixture(scope="module")
def tiny():
    return tiny_llaso("trim")


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    for part in tiny:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(tiny):
    with served(*tiny, Limits(answer_tokens=TOKENS, audio_seconds=120)) as running:
        yield running


def answered(tiny, inputs) -> str:
    model, processor = tiny
    generated = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["webm", "m4a", "film"])
def test_a_phones_file_is_answered_alike_at_every_door(kind, tiny, checkpoint, server: Served, tmp_path, capsys):
    processor = tiny[1]
    file = tmp_path / "recording.bin"
    file.write_bytes(film_or_recording(tone(1.5)[None], RATE, *FILES[kind]))
    samples = read_audio(file)
    written = answered(tiny, processor.apply_transcription_request(samples))
    said = answered(tiny, ask(processor, question("Who?"), [samples]))

    options = ["--model", checkpoint, "--max-new-tokens", str(TOKENS), "--device", "cpu"]
    assert main(["transcribe", str(file), *options]) == 0
    assert capsys.readouterr().out.strip() == written
    assert main(["ask", str(file), "Who?", *options]) == 0
    assert capsys.readouterr().out.strip() == said

    assert answered(tiny, processor.apply_transcription_request(str(file))) == written
    assert answered(tiny, ask(processor, question("Who?"), [file.read_bytes()])) == said

    with file.open("rb") as opened:
        transcript = server.client.audio.transcriptions.create(model=NAME, file=opened, temperature=0)
    assert transcript.text.strip() == written
    data = base64.b64encode(file.read_bytes()).decode()
    content = [
        {"type": "text", "text": "Who?"},
        {"type": "input_audio", "input_audio": {"data": data, "format": "webm"}},
    ]
    completion = server.ask([{"role": "user", "content": content}], max_tokens=TOKENS, temperature=0)
    assert completion.choices[0].message.content.strip() == said

    *_, last = DemoModel(*tiny, max_new_tokens=TOKENS).stream(
        DemoQuestion("text_audio", (str(file),), instruction="Who?")
    )
    assert last.text.strip() == said


def test_a_recording_longer_than_the_window_at_every_door(tiny, checkpoint, server: Served, tmp_path, capsys):
    """It is transcribed in pieces, answered in windows, or refused with both durations; never cut in silence."""
    file = tmp_path / "long.wav"
    soundfile.write(file, tone(70), RATE)
    assert audio_seconds(file) == 70
    options = ["--model", checkpoint, "--max-new-tokens", "2", "--device", "cpu"]
    assert main(["transcribe", str(file), "--format", "vtt", *options]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "-->" in line]
    assert len(lines) >= 3 and lines[-1].endswith("00:01:10.000")
    with file.open("rb") as opened:
        whole = server.client.audio.transcriptions.create(model=NAME, file=opened, response_format="verbose_json")
    assert whole.duration == pytest.approx(70) and whole.segments[-1].end == pytest.approx(70, abs=0.1)

    model, processor = tiny
    demo = DemoModel(model, processor, max_new_tokens=TOKENS)
    asked = DemoQuestion("text_audio", (str(file),), instruction="Who?")
    processor.max_audio_len = 60
    try:
        with pytest.raises(ValueError, match="The recording lasts 1:10, and this model takes 1:00 at most: cut it"):
            [*demo.stream(asked)]
        with pytest.raises(ValueError, match="70"):
            ask(processor, question("Who?"), [str(file)])
    finally:
        processor.max_audio_len = 600


@pytest.mark.parametrize("kind", ["webm", "film"])
def test_a_cut_off_phones_file_is_refused_at_every_door(kind, tiny, checkpoint, server: Served, tmp_path, capsys):
    data = film_or_recording(tone(3)[None], RATE, *FILES[kind])
    file = Path(tmp_path / "half.bin")
    file.write_bytes(data[: len(data) // 2])
    options = ["--model", checkpoint, "--max-new-tokens", "2", "--device", "cpu"]
    for command in (["transcribe", str(file)], ["ask", str(file), "Who?"]):
        assert main([*command, *options]) == 2
        assert "half.bin: " in capsys.readouterr().err
    with pytest.raises(ValueError, match="cut off|not readable"):
        tiny[1].apply_transcription_request(str(file))
    with file.open("rb") as opened, pytest.raises(openai.BadRequestError, match="cut off|not readable"):
        server.client.audio.transcriptions.create(model=NAME, file=opened)
    with pytest.raises(ValueError, match="cut off|not readable"):
        [*DemoModel(*tiny).stream(DemoQuestion("text_audio", (str(file),), instruction="Who?"))]
