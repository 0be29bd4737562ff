"""Long recordings: every piece is transcribed as it would be alone, with its times; work that is done is kept."""

from __future__ import annotations

import copy
import json
import os
import shutil

import numpy as np
import pytest
import soundfile
import torch
from support.spoken import without_speech
from support.tiny_llaso import RATE, tiny_llaso, tone

from llaso.cli import main
from llaso.commands.transcribe_files import transcribe_files
from llaso.transcription.recordings import decoded
from llaso.transcription.transcriber import Transcriber, repeats_itself
from llaso.transcription.transcript_formats import Segment, joined_text, transcript
from llaso_common.folder_lock import alone_in


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return Transcriber(*tiny_llaso("trim"), max_new_tokens=6, batch_size=3)


def long_recording(count: int = 5) -> np.ndarray:
    pause = np.zeros(RATE, np.float32)
    parts = [part for number in range(count) for part in (tone(0.6 + 0.2 * number, 200.0 + 60 * number), pause)]
    return np.concatenate(parts)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, long_recording(), RATE, subtype="FLOAT")
    return path


def test_each_piece_is_transcribed_as_alone_with_its_mean_log_probability(transcriber, file):
    segments, seconds = transcriber.transcribe_file(file)
    samples = long_recording()
    assert seconds == len(samples) / RATE and len(segments) == 5
    model, processor = transcriber.model, transcriber.processor
    for segment in segments:
        clip = samples[round(segment.start * RATE) : round(segment.end * RATE)]
        inputs = processor.apply_transcription_request(clip)
        out = model.generate(
            **inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens = out.sequences[0, inputs["input_ids"].shape[1] :]
        assert segment.text == processor.decode(tokens, skip_special_tokens=True).strip()
        logprobs = torch.stack(out.logits)[:, 0].log_softmax(-1).gather(1, tokens[:, None])
        assert segment.avg_logprob == pytest.approx(float(logprobs.mean()), abs=1e-4)
        assert segment.finish_reason == "length"


def test_the_end_token_ends_text_and_mean(transcriber):
    model = transcriber.model
    clips = [tone(0.5), tone(1.1, 700.0)]
    tokens = model.generate(**transcriber.processor.apply_transcription_request(clips[:1]), max_new_tokens=6)[0, -6:]
    model.generation_config.eos_token_id = int(tokens[2])
    try:
        together = transcriber.transcribe(clips)
        alone = [transcriber.transcribe([clip])[0] for clip in clips]
    finally:
        model.generation_config.eos_token_id = None
    assert alone[0][2] == "stop"
    for one, other in zip(together, alone, strict=True):
        assert one[0] == other[0] and one[1] == pytest.approx(other[1], abs=1e-4) and one[2] == other[2]


def test_a_short_recording_is_one_piece_unless_times_are_wanted(transcriber, file):
    whole, _ = transcriber.transcribe_file(file, times=False)
    assert [(segment.start, segment.end) for segment in whole] == [(0, len(long_recording()) / RATE)]


def test_a_long_recording_without_speech_has_an_empty_transcript(transcriber, tmp_path):
    soundfile.write(tmp_path / "click.wav", without_speech(transcriber.window_seconds + 1), RATE)
    for times in (True, False):
        segments, seconds = transcriber.transcribe_file(tmp_path / "click.wav", times=times)
        assert segments == [] and seconds == transcriber.window_seconds + 1


def test_an_interrupted_transcription_goes_on_where_it_stopped(transcriber, file, tmp_path, monkeypatch):
    expected = transcriber.transcribe_file(file)
    partial, asked = tmp_path / "long.partial", []
    transcribe = transcriber.transcribe

    def breaks(clips):
        if asked:
            raise KeyboardInterrupt
        asked.append(len(clips))
        return transcribe(clips)

    monkeypatch.setattr(transcriber, "transcribe", breaks)
    with pytest.raises(KeyboardInterrupt):
        transcriber.transcribe_file(file, partial=partial)
    with partial.open("a") as cut:
        cut.write('{"start": 3.')  # the process ended within a line

    def counted(clips):
        asked.append(len(clips))
        return transcribe(clips)

    monkeypatch.setattr(transcriber, "transcribe", counted)
    done = []
    assert transcriber.transcribe_file(file, partial=partial, progress=lambda *at: done.append(at)) == expected
    assert asked == [3, 2] and done == [(expected[0][-1].end, expected[1])]
    other = Transcriber(transcriber.model, transcriber.processor, max_new_tokens=5, batch_size=3)
    assert len(other.transcribe_file(file, partial=partial)[0]) == 5  # other settings: from the beginning
    assert json.loads(partial.read_text().splitlines()[0])["max_new_tokens"] == 5


def change_weights(model, processor):
    """Swap two rows: the sum of the weights stays as it was."""
    weight = model.model.language_model.layers[0].mlp.down_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def change_config(model, processor):
    model.config.text_config.rms_norm_eps *= 2


def change_generation(model, processor):
    model.generation_config.repetition_penalty = 1.5


def change_template(model, processor):
    processor.chat_template += " "


@pytest.mark.parametrize("change", [change_weights, change_config, change_generation, change_template])
def test_segments_of_another_model_are_not_gone_on_with(change, transcriber, file, tmp_path, caplog):
    partial = tmp_path / "0.jsonl"
    transcriber.transcribe_file(file, partial=partial)
    model, processor = copy.deepcopy((transcriber.model, transcriber.processor))
    change(model, processor)
    other = Transcriber(model, processor, max_new_tokens=6, batch_size=3)
    done = []
    segments, _ = other.transcribe_file(file, partial=partial, progress=lambda *at: done.append(at))
    assert len(done) == 2 and len(segments) == 5  # two batches: from the beginning
    assert "begun anew, because of another" in caplog.text


@pytest.mark.parametrize("content", [b"a text", b"\xff\x00", b"[]\n", b'{"another": "file"}\n'], ids=repr)
def test_a_file_that_is_no_partial_transcript_is_kept(content, transcriber, file, tmp_path):
    partial = tmp_path / "0.jsonl"
    partial.write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.jsonl: not a partial transcript; delete it"):
        transcriber.transcribe_file(file, partial=partial)
    assert partial.read_bytes() == content


def test_segments_count_as_far_as_they_are_those_of_the_pieces(transcriber, file, tmp_path):
    """After a doubled segment, zero bytes as of a power cut, or more segments than pieces, the rest is made again."""
    partial = tmp_path / "0.jsonl"
    expected = transcriber.transcribe_file(file, partial=partial)
    whole = partial.read_bytes()
    header, *lines = whole.splitlines(keepends=True)
    for damaged in ([*lines[:2], lines[1], *lines[2:]], [*lines[:3], b"\0\0\0\n", *lines[3:]], [*lines, lines[0]]):
        partial.write_bytes(b"".join([header, *damaged]))
        assert transcriber.transcribe_file(file, partial=partial) == expected
        assert partial.read_bytes() == whole


@pytest.mark.parametrize(("kind", "rate", "channels"), [("WAV", 44_100, 2), ("FLAC", 8_000, 1), ("OGG", 48_000, 1)])
def test_blocks_are_the_recording_as_a_whole(tmp_path, monkeypatch, kind, rate, channels):
    from llaso_common.audio import read_audio

    path = tmp_path / f"clip.{kind.lower()}"
    sound = np.random.default_rng(0).normal(0, 0.1, (round(3.3 * rate), channels)).astype(np.float32)
    soundfile.write(path, sound, rate, format=kind)
    monkeypatch.setattr("llaso_common.audio.BLOCK_FRAMES", rate)
    with decoded(path, RATE) as samples:
        np.testing.assert_allclose(samples, read_audio(path), atol=2e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [(np.zeros(RATE), "is silent"), (np.zeros(0), "no samples"), (np.full(9, np.nan), "NaN"), (None, "not readable")],
)
def test_recordings_that_cannot_be_used_are_named(tmp_path, content, message):
    path = tmp_path / "bad.wav"
    if content is None:
        path.write_bytes(b"no audio")
    else:
        soundfile.write(path, content, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=rf"bad\.wav: .*{message}"), decoded(path, RATE):
        pass


# ---- Several files ----


def test_files_are_transcribed_in_turn_and_a_bad_one_is_named(transcriber, file, tmp_path, capsys):
    bad, missing = tmp_path / "bad.wav", tmp_path / "missing.wav"
    bad.write_bytes(b"no audio")
    files = [str(path) for path in (bad, file, missing, file, tmp_path)]
    text = joined_text(transcriber.transcribe_file(file, times=False)[0])
    assert transcribe_files(files, lambda: transcriber) == 3
    printed = capsys.readouterr()
    assert printed.out == 2 * f"{file}: {text}\n"
    assert "bad.wav: not readable as audio" in printed.err and "missing.wav: there is no such file" in printed.err
    assert f"{tmp_path}: a folder; name the files in it" in printed.err
    assert "1 of 1 segments were cut at 6 tokens" in printed.err
    out = tmp_path / "new" / "out.jsonl"
    assert transcribe_files(files, lambda: transcriber, "json", out) == 3
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["file"] for record in records] == [str(file)] * 2
    assert len(records[0]["segments"]) == 5 and list(out.parent.iterdir()) == [out]


def test_the_model_is_not_loaded_for_files_that_are_not_there(tmp_path):
    assert transcribe_files([str(tmp_path / "none.wav")], lambda: pytest.fail("loaded")) == 1


def test_an_interrupted_command_continues_with_the_segments_it_has(transcriber, file, tmp_path, monkeypatch):
    out, transcribe, sizes = tmp_path / "out.srt", transcriber.transcribe, []

    def breaks(clips):
        if sizes:
            raise KeyboardInterrupt
        sizes.append(len(clips))
        return transcribe(clips)

    monkeypatch.setattr(transcriber, "transcribe", breaks)
    with pytest.raises(KeyboardInterrupt):
        transcribe_files([str(file)], lambda: transcriber, "srt", out)
    assert not out.exists()
    monkeypatch.setattr(transcriber, "transcribe", lambda clips: sizes.append(len(clips)) or transcribe(clips))
    assert transcribe_files([str(file)], lambda: transcriber, "srt", out) == 0
    assert sizes == [3, 2] and out.read_text().count(" --> ") == 5
    assert not list(tmp_path.glob("*.partial"))


def test_two_commands_do_not_write_one_output(transcriber, file, tmp_path):
    with (
        alone_in(tmp_path / "out.srt.partial"),
        pytest.raises(ValueError, match="out.srt is being written by process"),
    ):
        transcribe_files([str(file)], lambda: transcriber, "srt", tmp_path / "out.srt")


def test_a_recording_is_never_replaced_by_its_transcript(file, capsys):
    content = file.read_bytes()
    for command in (["transcribe", str(file)], ["ask", str(file), "What is said?"]):
        assert main([*command, "--model", "none", "--out", str(file), "--overwrite"]) == 2
        assert "is a file that is read; choose another path" in capsys.readouterr().err
    assert file.read_bytes() == content


def test_names_that_are_not_utf8_are_written_as_text(transcriber, file, tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9.wav")
    shutil.copy(file, odd)
    out = tmp_path / "out.json"
    assert transcribe_files([os.fsdecode(odd)], lambda: transcriber, "json", out) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["file"].endswith("caf\ufffd.wav")


def test_subtitles_describe_one_recording(transcriber, file):
    with pytest.raises(ValueError, match="--format srt describes one recording"):
        transcribe_files([str(file)] * 2, lambda: transcriber, "srt")


# ---- Formats ----

SEGMENTS = [
    Segment(0.0, 1.25, "Hello <b>", -0.1),
    Segment(2.0, 2.5, "", -0.2),
    Segment(3599.9996, 3661.5, "R&D\n\n--> end", -0.3, "length"),
]


def test_srt():
    assert transcript(SEGMENTS, "srt", 3700.0) == (
        "1\n00:00:00,000 --> 00:00:01,250\nHello <b>\n\n2\n01:00:00,000 --> 01:01:01,500\nR&D --> end\n"
    )


def test_vtt():
    assert transcript(SEGMENTS, "vtt", 3700.0) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHello &lt;b&gt;\n\n"
        "01:00:00.000 --> 01:01:01.500\nR&amp;D --&gt; end\n"
    )


def test_text_and_json():
    assert transcript(SEGMENTS[:2], "text", 3.0) == "Hello <b>\n" and joined_text(SEGMENTS[:2]) == "Hello <b>"
    record = json.loads(transcript(SEGMENTS, "json", 3700.0, "a.wav"))
    assert record["file"] == "a.wav" and record["duration"] == 3700.0
    assert [Segment(**segment) for segment in record["segments"]] == SEGMENTS
    with pytest.raises(ValueError, match="choose one of text, json, srt, vtt"):
        transcript(SEGMENTS, "docx", 1.0)


def test_a_transcript_that_repeats_itself_is_made_again_without_repeats(transcriber, monkeypatch):
    clips, asked = [tone(0.5), tone(1.1, 700.0)], []
    generate = transcriber.model.generate

    def loops_unless_forbidden(*args, **rules):
        asked.append(len(rules["input_features"]))
        out = generate(*args, **rules)
        if "no_repeat_ngram_size" not in rules:
            letters = transcriber.processor.tokenizer("is " * 20, add_special_tokens=False, return_tensors="pt")
            out = torch.cat([out[:, :-6], letters["input_ids"].expand(len(out), -1)[:, :6]], dim=1)
        return out

    monkeypatch.setattr(transcriber.model, "generate", loops_unless_forbidden)
    monkeypatch.setattr("llaso.transcription.transcriber.repeats_itself", lambda text: text == "is is")
    results = transcriber.transcribe(clips)
    assert asked == [2, 2] and all(text != "is is" for text, *_ in results)
    expected = generate(
        **transcriber.processor.apply_transcription_request(clips),
        max_new_tokens=6, do_sample=False, num_beams=1, no_repeat_ngram_size=3,
    )  # fmt: skip
    texts = transcriber.processor.batch_decode(expected[:, -6:], skip_special_tokens=True)
    assert [text for text, *_ in results] == [text.strip() for text in texts]


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("bet " * 40, True),
        ("bet " * 12, False),
        ("by the way " * 12, True),
        ("", False),
        ("one one one one one one", False),
        ("seven three seven three seven three seven three nine", False),
        ("he was at the house of the lord, and then he went to the other house of the other lord", False),
    ],
)
def test_what_counts_as_repeating(text, loops):
    assert repeats_itself(text) == loops
