"""What the demo asks of a model, what it shows of a recording, and what it refuses."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread
from support.tiny_demo import direct_answer, talking_llaso
from support.tiny_llaso import RATE, tiny_llaso, tone

from llaso.demo import pictures
from llaso.demo.question import DemoModel, DemoQuestion
from llaso_common.audio import PAUSE_S


@pytest.fixture(scope="module")
def demo_model() -> DemoModel:
    return DemoModel(*talking_llaso(), max_new_tokens=20)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("clips") / "clip.wav"
    soundfile.write(file, tone(0.6), RATE, subtype="FLOAT")
    return str(file)


TEXT, AUDIO = {"type": "text", "text": "what is in the garden"}, {"type": "audio"}


@pytest.mark.parametrize(
    ("modality", "texts", "content"),
    [
        ("text_audio", {"instruction": TEXT["text"]}, [TEXT, AUDIO]),
        ("audio_text", {"content": TEXT["text"]}, [AUDIO, TEXT]),
        ("audio", {}, [AUDIO]),
        ("audio", {"instruction": "left over", "content": "from another format"}, [AUDIO]),
    ],
)
def test_each_format_is_answered_as_the_model_answers_it(demo_model, clip_file, modality, texts, content):
    *growing, last = demo_model.stream(DemoQuestion(modality, (clip_file,), **texts))
    assert last.text == direct_answer(demo_model.model, demo_model.processor, content, tone(0.6), 20) != ""
    assert last.done and not any(answer.done for answer in growing)
    assert last.audio_s == pytest.approx(0.6)


def test_the_answer_comes_piece_by_piece(demo_model, clip_file):
    texts = [answer.text for answer in demo_model.stream(DemoQuestion("audio", (clip_file,)))]
    assert len(set(texts)) > 2
    assert all(texts[-1].startswith(text) for text in texts)


def test_generation_stops_when_its_reader_leaves(clip_file):
    model, processor = tiny_llaso()
    demo_model = DemoModel(model, processor, max_new_tokens=2000)
    steps = []
    model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    answers = demo_model.stream(DemoQuestion("audio", (clip_file,)))
    next(answers)
    answers.close()
    assert len(steps) < 1000
    assert not [thread for thread in threading.enumerate() if thread.name == "answer"]
    assert next(demo_model.stream(DemoQuestion("audio", (clip_file,)))).audio_s  # and the next visitor has a turn


def test_an_error_of_the_model_is_raised_to_the_reader(clip_file):
    model, processor = tiny_llaso()

    def broken(*_):
        raise RuntimeError("broken")

    model.lm_head.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        list(DemoModel(model, processor).stream(DemoQuestion("audio", (clip_file,))))


def test_two_recordings_are_one_clip_with_a_pause(demo_model, clip_file, tmp_path):
    second = tmp_path / "second.flac"
    soundfile.write(second, tone(0.5, pitch=500), 2 * RATE)
    clip = demo_model.read_recordings((clip_file, str(second)))
    pause, end = round(PAUSE_S * RATE), round(0.6 * RATE)
    assert len(clip) == end + pause + round(0.25 * RATE)
    assert np.array_equal(clip[:end], tone(0.6))
    assert not clip[end : end + pause].any()
    assert np.array_equal(demo_model.read_recordings((None, clip_file)), tone(0.6))


def silent() -> np.ndarray:
    return np.zeros(RATE, np.float32)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (None, "no recording yet"),
        (b"", "clip.wav: the file is empty"),
        (b"not a sound at all", "clip.wav: not readable as audio"),
        (silent()[:0], "clip.wav: the recording holds no samples"),
        (silent(), "clip.wav: the recording is silent"),
        (tone(31.0), "lasts 0:31, and this model takes 0:30 at most"),
    ],
)
def test_recordings_that_cannot_be_heard_are_told(tmp_path, sound, message):
    model, processor = tiny_llaso()
    processor.max_audio_len = 30
    file = tmp_path / "clip.wav"
    if isinstance(sound, bytes):
        file.write_bytes(sound)
    elif sound is not None:
        soundfile.write(file, sound, RATE)
    question = DemoQuestion("audio", (None if sound is None else str(file),))
    with pytest.raises(ValueError, match=message):
        next(DemoModel(model, processor).stream(question))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"modality": "text_audio"}, "instruction is empty"),
        ({"modality": "text_audio", "instruction": " \n"}, "instruction is empty"),
        ({"modality": "audio_text", "instruction": "x"}, "content is empty"),
        ({"modality": "audio_text", "content": "a <|eot_id|>"}, "special token"),
        ({"modality": "text_audio", "instruction": "word " * 2000}, "The text is too long for this model"),
    ],
)
def test_texts_that_cannot_be_asked_are_told(demo_model, clip_file, question, message):
    with pytest.raises(ValueError, match=message):
        next(demo_model.stream(DemoQuestion(recordings=(clip_file,), **question)))


@pytest.mark.parametrize("audio_padding", ["trim", "full"])
@pytest.mark.parametrize("seconds", [0.004, 1.3, 31.0])
def test_the_picture_shows_what_the_encoder_gets(audio_padding, seconds):
    _, processor = tiny_llaso(audio_padding)
    clip = tone(seconds)
    mel = pictures.log_mel(clip, processor)
    features = processor(text="<audio>", audio=[clip])["input_features"]
    frames = processor.feature_extractor.nb_max_frames
    first = min(mel.shape[1], frames)
    assert np.array_equal(mel[:, :first], features[0, :, :first].numpy())
    if len(features) == 2:
        assert np.array_equal(mel[:, frames:], features[1, :, : mel.shape[1] - frames].numpy())


@pytest.mark.parametrize("samples", [1, 700, 100_000])
def test_long_recordings_are_drawn_without_losing_their_peaks(samples):
    clip = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    low, high = pictures.envelope(clip)
    assert len(low) == min(samples, pictures.COLUMNS)
    assert (low.min(), high.max()) == (clip.min(), clip.max())
    drawn = pictures.max_pooled(clip[None])
    assert drawn.shape == (1, min(samples, pictures.COLUMNS)) and drawn.max() == clip.max()


def test_the_picture_is_an_image_that_follows_the_sound():
    _, processor = tiny_llaso()
    quiet, loud = (imread(io.BytesIO(pictures.picture(clip, processor))) for clip in (tone(1.0), tone(1.0, 900.0)))
    assert quiet.shape == loud.shape and quiet.ndim == 3
    assert not np.array_equal(quiet, loud)
