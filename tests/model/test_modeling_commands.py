"""`llaso transcribe` and `llaso ask`: every format and rate, and one clear line for every bad file."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file, save_file
from support.tiny_llaso import ask, question, save_parts, tiny_llaso, tone

from llaso.cli import main
from llaso_common.audio import read_audio
from modeling_llaso.loading import load


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    model, processor = tiny_llaso("trim")
    folder = tmp_path_factory.mktemp("commands") / "llaso-tiny"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answers():
    model, processor = tiny_llaso("trim")

    def answer(inputs) -> str:
        generated = model.generate(**inputs, max_new_tokens=4)
        return processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    return answer, processor


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        ("clip.wav", 16_000, 1),
        ("clip.flac", 44_100, 2),
        ("clip.ogg", 48_000, 1),
        ("clip.mp3", 22_050, 2),
        ("clip.aiff", 8_000, 1),
    ],
)
def test_every_format_and_rate_is_read(tmp_path, name, rate, channels):
    samples = np.sin(2 * np.pi * 300 * np.arange(rate) / rate).astype(np.float32) * 0.5
    soundfile.write(tmp_path / name, np.stack([samples] * channels, axis=1), rate)
    read = read_audio(tmp_path / name)
    assert read.dtype == np.float32 and read.ndim == 1
    assert len(read) == pytest.approx(16_000, abs=1_200)  # MP3 and OGG pad their frames
    spectrum = np.abs(np.fft.rfft(read[2_000:10_000]))
    assert abs(spectrum.argmax() * 16_000 / 8_000 - 300) < 4
    assert np.abs(read).max() == pytest.approx(0.5, abs=0.06)
    assert np.array_equal(read_audio((tmp_path / name).read_bytes()), read)


def test_transcribe_and_ask(checkpoint, answers, tmp_path, capsys):
    answer, processor = answers
    clips = {name: tone(seconds, seed=len(name)) for name, seconds in (("one.wav", 0.4), ("three.wav", 1.1))}
    for name, clip in clips.items():
        soundfile.write(tmp_path / name, clip, 16_000, subtype="FLOAT")
    model = ["--model", str(checkpoint), "--max-new-tokens", "4", "--device", "cpu"]
    files = [str(tmp_path / name) for name in clips]

    wanted = {name: answer(processor.apply_transcription_request(clip)) for name, clip in clips.items()}
    assert main(["transcribe", files[0], *model]) == 0
    assert capsys.readouterr().out == f"{wanted['one.wav']}\n"
    assert main(["transcribe", *files, *model]) == 0
    assert capsys.readouterr().out == "".join(f"{tmp_path / name}: {text}\n" for name, text in wanted.items())

    out = tmp_path / "out.vtt"
    assert main(["transcribe", files[0], "--format", "vtt", "--out", str(out), *model]) == 0
    assert out.read_text() == f"WEBVTT\n\n00:00:00.000 --> 00:00:00.400\n{' '.join(wanted['one.wav'].split())}\n"
    assert main(["transcribe", files[0], "--out", str(out), *model]) == 2
    assert "exists. Choose another file, or replace it with --overwrite" in capsys.readouterr().err

    assert main(["ask", files[1], "How many speak?", *model]) == 0
    inputs = ask(processor, [question("How many speak?")], [clips["three.wav"]])
    assert capsys.readouterr().out == f"{answer(inputs)}\n"
    answered = tmp_path / "new" / "answer.txt"
    assert main(["ask", files[1], "How many speak?", "--out", str(answered), *model]) == 0
    assert answered.read_text() == f"{answer(inputs)}\n"


def test_bad_files_end_in_one_line_and_exit_code_2(checkpoint, tmp_path, capsys):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "none.wav", np.zeros(0, dtype=np.float32), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000, dtype=np.float32), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    expected = {
        "missing.wav": "there is no such file",
        "empty.wav": "the file is empty",
        "text.wav": "not readable as audio",
        "none.wav": "the recording holds no samples",
        "silent.wav": "the recording is silent",
        "nan.wav": "the recording holds NaN",
    }
    for name, reason in expected.items():
        for command in (["transcribe", str(tmp_path / name)], ["ask", str(tmp_path / name), "Who?"]):
            assert main([*command, "--model", str(checkpoint)]) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith(f"llaso: error: {tmp_path / name}: {reason}")
            assert captured.err.count("\n") == 1


def test_bad_models_and_questions_end_in_one_line(checkpoint, tmp_path, capsys):
    soundfile.write(tmp_path / "clip.wav", tone(0.3), 16_000)
    clip = str(tmp_path / "clip.wav")
    assert main(["transcribe", clip, "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"llaso: error: {tmp_path}: no checkpoint is there (config.json is missing)\n"
    shutil.copytree(checkpoint, tmp_path / "part")
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.multi_modal_projector.linear_1.bias"]
    save_file(tensors, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    assert main(["transcribe", clip, "--model", str(tmp_path / "part")]) == 2
    error = capsys.readouterr().err
    assert "1 tensors are missing from the checkpoint, model.multi_modal_projector.linear_1.bias among them" in error
    cut = (checkpoint / "model.safetensors").read_bytes()[:9_000]
    (tmp_path / "part" / "model.safetensors").write_bytes(cut)
    plain = tmp_path / "plain"
    shutil.copytree(checkpoint, plain)
    (plain / "config.json").write_text('{"model_type": "llama"}')
    official = tmp_path / "official"
    shutil.copytree(checkpoint, official)
    (official / "config.json").write_text('{"model_type": "llava_llama"}')
    for model, message in {
        tmp_path / "part": "the weights cannot be read",
        plain: "this is a llama, not a LLaSO model",
        official: f"convert it first: llaso convert --from-official {official} --out DIR",
        tmp_path / "nowhere": "no checkpoint is there",
        "runs/nowhere": "neither a folder here nor a model that can be fetched from the Hub",
    }.items():
        assert main(["transcribe", clip, "--model", str(model)]) == 2, model
        error = capsys.readouterr().err
        assert error.startswith(f"llaso: error: {model}: ") and message in error and error.count("\n") == 1
    for device in ("nonsense", "cuda:7", "meta:x"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used: "):
            load(str(checkpoint), device)
    assert main(["ask", clip, " ", "--model", str(checkpoint)]) == 2
    assert capsys.readouterr().err == "llaso: error: the question is empty\n"
    assert main(["ask", clip, "What is <audio>?", "--model", str(checkpoint)]) == 2
    assert "the text holds the special token '<audio>'" in capsys.readouterr().err


def named(said: str) -> list[str]:
    """The files of the lines that name an error."""
    return [line.split(": ")[2] for line in said.splitlines() if line.startswith("llaso: error: ")]


def test_weights_that_may_not_be_read_are_not_called_missing(checkpoint, tmp_path, capsys, monkeypatch):
    """As safetensors calls them. Tests may run as root, to whom no file is closed."""
    soundfile.write(tmp_path / "clip.wav", tone(0.5), 16_000)
    monkeypatch.setattr("modeling_llaso.loading.os.access", lambda file, mode: file.suffix != ".safetensors")
    assert main(["transcribe", str(tmp_path / "clip.wav"), "--model", str(checkpoint)]) == 2
    said = capsys.readouterr().err
    assert f"no permission for {checkpoint}/model.safetensors; change its permissions or choose another path" in said


def test_one_bad_file_of_many_is_named_and_the_others_are_written(checkpoint, answers, tmp_path, capsys, monkeypatch):
    answer, processor = answers
    clips = {name: tone(seconds, seed=len(name)) for name, seconds in (("one.wav", 0.4), ("three.wav", 1.1))}
    for name, clip in clips.items():
        soundfile.write(tmp_path / name, clip, 16_000, subtype="FLOAT")
    (tmp_path / "bad.wav").write_text("this is no audio")
    monkeypatch.chdir(tmp_path)
    files = ["one.wav", "bad.wav", "three.wav", "missing.wav"]
    model = ["--model", str(checkpoint), "--max-new-tokens", "4", "--device", "cpu"]
    wanted = {name: answer(processor.apply_transcription_request(clip)) for name, clip in clips.items()}

    assert main(["transcribe", *files, *model]) == 2
    said = capsys.readouterr()
    assert said.out == "".join(f"{name}: {text}\n" for name, text in wanted.items())
    assert named(said.err) == ["bad.wav", "missing.wav"]

    asked = {name: answer(ask(processor, [question("How many?")], [clip])) for name, clip in clips.items()}
    assert main(["ask", *files, "How many?", *model]) == 2
    said = capsys.readouterr()
    assert said.out == "".join(f"{name}: {text}\n" for name, text in asked.items())
    assert named(said.err) == ["bad.wav", "missing.wav"]
    assert main(["ask", *files, "How many?", *model, "--out", "texts.jsonl", "--format", "json"]) == 2
    lines = [json.loads(line) for line in Path("texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [{"file": name, "text": text} for name, text in asked.items()]
    assert capsys.readouterr().out == ""


def test_files_are_read_one_by_one_and_the_model_once(checkpoint, tmp_path, monkeypatch):
    """The second file is read after the first is answered; no model is loaded for bad files alone."""
    events = []

    class Recorder:
        def __init__(self, model):
            self.device, self._model = model.device, model

        def generate(self, **inputs):
            events.append("answer")
            return self._model.generate(**inputs)

    def read(file):
        events.append(f"read {file}")
        return read_audio(file)

    def loaded(*arguments):
        events.append("load")
        model, processor = load(*arguments)
        return Recorder(model), processor

    monkeypatch.setattr("llaso_common.audio.read_audio", read)
    monkeypatch.setattr("modeling_llaso.loading.load", loaded)
    monkeypatch.chdir(tmp_path)
    for name in ("one.wav", "two.wav"):
        soundfile.write(name, tone(0.3), 16_000)
    model = ["--model", str(checkpoint), "--max-new-tokens", "1"]
    assert main(["ask", "one.wav", "missing.wav", "two.wav", "Who?", *model]) == 2
    assert events == ["read one.wav", "load", "answer", "read missing.wav", "read two.wav", "answer"]
    events.clear()
    assert main(["ask", "missing.wav", "Who?", *model]) == 2 and events == ["read missing.wav"]


def test_files_and_folders_that_are_there_are_kept(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", tone(0.3), 16_000)
    for command in ("transcribe", "ask"):
        question = ["Who?"] if command == "ask" else []
        options = ["--model", str(checkpoint), "--max-new-tokens", "2", "--out", "mine.txt"]
        Path("mine.txt").write_text("mine")
        assert main([command, "clip.wav", *question, *options]) == 2
        assert capsys.readouterr().err == (
            "llaso: error: mine.txt exists. Choose another file, or replace it with --overwrite\n"
        )
        assert main([command, "missing.wav", *question, *options, "--overwrite"]) == 2
        capsys.readouterr()
        assert Path("mine.txt").read_text() == "mine"  # nothing to write in its place
        assert main([command, "clip.wav", *question, *options, "--overwrite"]) == 0
        assert Path("mine.txt").read_text() != "mine"
        capsys.readouterr()

    shutil.copytree(checkpoint, "trained")
    Path("trained/README.md").write_text("the card of the trained model")
    before = (Path("trained") / "model.safetensors").read_bytes()
    encoder, llm = save_parts(tmp_path / "parts")
    Path("other").mkdir()
    Path("other/trained.txt").touch()
    for line in (
        ["new", "--encoder", str(encoder), "--llm", str(llm), "--out", "trained"],
        ["convert", "--to-official", str(checkpoint), "--out", "trained"],
        ["convert", "--to-official", "trained", "--out", "./trained", "--overwrite"],
        ["convert", "--to-official", "trained", "--out", ".", "--overwrite"],
        ["new", "--encoder", str(encoder), "--llm", str(llm), "--out", "other", "--overwrite"],
    ):
        assert main(line) == 2
        said = capsys.readouterr().err
        assert said.startswith("llaso: error: ") and said.count("\n") == 1
        assert (Path("trained") / "model.safetensors").read_bytes() == before
    assert main(["new", "--encoder", str(encoder), "--llm", str(llm), "--out", "trained", "--overwrite"]) == 0
    assert (Path("trained") / "model.safetensors").read_bytes() != before
    assert not Path("trained/README.md").exists()  # it spoke of other weights


@pytest.mark.parametrize("device", ["banana", "cuda:99", "meta", ""])
def test_devices_that_are_not_there_are_refused_before_anything_is_loaded(device, capsys):
    for command in (
        ["transcribe", "clip.wav", "--model", "missing"],
        ["ask", "clip.wav", "Who?", "--model", "missing"],
        ["serve", "missing"],
        ["demo", "missing"],
        ["eval", "generate", "--model", "missing", "--data", "missing", "--out", "missing"],
    ):
        assert main([*command, "--device", device]) == 2
        said = capsys.readouterr().err
        assert f"argument --device: {device!r} is " in said and said.count("\n") == 1


def test_faults_of_the_program_end_in_one_line_and_exit_code_3(capsys, monkeypatch):
    def fails(*arguments, **options):
        raise KeyError("a fault")

    monkeypatch.setattr("modeling_llaso.conversion.new_model", fails)
    command = ["new", "--encoder", "e", "--llm", "l", "--out", "nowhere"]
    assert main(command) == 3
    said = capsys.readouterr().err
    assert said == "llaso: unexpected KeyError: 'a fault'; `llaso --debug new …` shows where it was raised\n"
    with pytest.raises(KeyError):
        main(["--debug", *command])


def test_errors_of_the_operating_system_name_the_path_and_the_remedy(capsys, monkeypatch, tmp_path):
    """Not the system's own "[Errno 20] Not a directory"."""
    file = tmp_path / "file"
    file.write_text("")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    def denied(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    below = f"{file} is a file, and a folder is needed there; choose another path"
    for fails, message in (
        (lambda *_, **__: (file / "below" / "deep").mkdir(parents=True), below),
        (lambda *_, **__: (file / "below").write_text(""), below),
        (lambda *_, **__: file.mkdir(), below),
        (lambda *_, **__: tmp_path.mkdir(), f"{tmp_path} exists; choose another path"),
        (lambda *_, **__: tmp_path.read_text(), f"{tmp_path} is a folder, and a file is needed there; "),
        (lambda *_, **__: (tmp_path / "none").read_text(), f"no such file or folder: {tmp_path / 'none'}\n"),
        (denied, f"no permission for {file}; change its permissions or choose another path"),
        (full, f"no space left on the disk of {file}; free some or choose another path"),
    ):
        monkeypatch.setattr("modeling_llaso.conversion.new_model", fails)
        assert main(["new", "--encoder", "e", "--llm", "l", "--out", "nowhere"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"llaso: error: {message}") and said.count("\n") == 1
