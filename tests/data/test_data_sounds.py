"""Made sounds: speech that depends on nothing but its words, phonemes, notes, rooms, and the store of clips."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_corpus import SOURCE

from dataset_scripts import acoustics, draw, musical_notes, synthesize
from dataset_scripts.build import build
from dataset_scripts.clips import ClipStore, decode, encode, read_recording, seconds
from dataset_scripts.sources.base import Acoustics, Fact, Item, Note, Recording, Speech

pytest.importorskip("espeakng_loader", reason="the extra tts is not installed")

LINES = [
    Speech("set the lamp to red", "en-us+f3"),
    Speech("one two three", "en-gb-scotland+m2", rate=190, pitch=70),
    Speech("stop", "en+whisper"),
]


@pytest.fixture(scope="module")
def espeak() -> synthesize.Espeak:
    return synthesize.Espeak()


def test_speech_depends_on_nothing_before_it(espeak: synthesize.Espeak):
    """The same clip first, last, alone, and beside phonemes that use the same library."""
    first = espeak.speak(LINES)
    espeak.phonemes("something in between", "en-us")
    again = espeak.speak([*reversed(LINES), *LINES])
    alone = synthesize.Espeak().speak([LINES[1]])[0]
    for expected, backward, forward in zip(first, again[2::-1], again[3:], strict=True):
        assert np.array_equal(expected, backward) and np.array_equal(expected, forward)
    assert np.array_equal(alone, first[1])
    assert all(x.dtype == np.float32 and 0.2 < x.size / 16_000 < 3 for x in first)


def test_speech_follows_its_settings(espeak: synthesize.Espeak):
    base = Speech("the quick brown fox jumps", "en-us+m3")
    low, fast, high = espeak.speak([base, replace(base, rate=240), replace(base, pitch=99)])
    assert fast.size < 0.85 * low.size

    def pitch(samples: np.ndarray) -> float:
        """Fundamental by autocorrelation, 60 to 400 Hz."""
        spectrum = np.abs(np.fft.rfft(samples, 2 * samples.size)) ** 2
        correlation = np.fft.irfft(spectrum)[40:266]
        return 16_000 / (40 + int(np.argmax(correlation)))

    assert pitch(high) > 1.2 * pitch(low)


@pytest.mark.parametrize("voice", ["en-gb", "en-us+f99", "en-xx", "en-gb+f3"])
def test_voices_that_are_not_there(voice: str, espeak: synthesize.Espeak):
    """espeak-ng itself speaks all of these, in some other voice."""
    with pytest.raises(ValueError, match="has no voice"):
        espeak.speak([Speech("hello", voice)])


def test_every_listed_voice_is_there(espeak: synthesize.Espeak):
    for voice in synthesize.voices(variants=("f3",)) + synthesize.voices(("american",)):
        assert espeak.phonemes("car", voice)


def test_phonemes_follow_the_voice():
    assert synthesize.phonemes("park the car") == "pɑːɹk ðə kɑːɹ"
    assert synthesize.phonemes("park the car", "en") == "pɑːk ðə kɑː"
    assert synthesize.phonemes("bath", "en-gb-scotland+f3") != synthesize.phonemes("bath", "en-gb-x-rp")
    assert synthesize.phonemes("") == ""


def test_phonemes_agree_with_phonemizer():
    """phonemizer over the same library, which matched the released references."""
    backend = pytest.importorskip("phonemizer.backend")
    import espeakng_loader
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    texts = [
        "Cook and footman whispered doubtfully for half a minute, and then shut the door upon Mr. Secretan.",
        "hello, world; it's 25 degrees. isn't it?",
        "the record was recorded naive déjà vu",
    ]
    expected = backend.EspeakBackend("en-us", with_stress=False).phonemize(texts, strip=True)
    assert [synthesize.phonemes(text) for text in texts] == [" ".join(line.split()) for line in expected]


@given(
    pitch=st.integers(36, 96),
    timbre=st.sampled_from(sorted(musical_notes.TIMBRES)),
    velocity=st.sampled_from(musical_notes.VELOCITIES),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_notes_have_their_pitch(pitch: int, timbre: str, velocity: int):
    """The spectrum's lines lie at multiples of the note's frequency, the first among them."""
    samples = musical_notes.play(Note(timbre, pitch, velocity, 1.0))
    assert samples.shape == (16_000,) and 0 < np.abs(samples).max() <= 0.5
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(16_000)))  # bins of 1 Hz
    near = slice(int(frequency * 0.97) - 2, int(frequency * 1.03) + 3)
    assert spectrum[near].max() > 0.3 * spectrum.max()
    between = slice(int(frequency * 0.6), int(frequency * 0.8))
    assert spectrum[near].max() > 5 * spectrum[between].max()


def test_notes_follow_their_velocity():
    peaks = [
        float(np.abs(musical_notes.play(Note("organ", 60, velocity))).max()) for velocity in musical_notes.VELOCITIES
    ]
    assert peaks == sorted(peaks) and peaks[-1] > 5 * peaks[0]
    for note in (Note("organ", 128, 75), Note("organ", 60, 0), Note("kazoo", 60, 75), Note("organ", 60, 75, 1e-5)):
        with pytest.raises(ValueError):
            musical_notes.play(note)


@pytest.mark.parametrize("snr", [0.0, 10.0, 30.0])
def test_noise_has_its_level(snr: float):
    tone = (0.1 * np.sin(np.arange(16_000) * 0.3)).astype(np.float32)
    noise = acoustics.apply(tone, Acoustics(seed=3, snr_db=snr)) - tone
    assert 10 * np.log10(np.mean(tone**2) / np.mean(noise**2)) == pytest.approx(snr, abs=0.3)


def test_reverberation_has_its_decay_time():
    click = np.zeros(16_000, np.float32)
    click[100] = 0.5
    heard = acoustics.apply(click, Acoustics(seed=1, reverb_s=0.4))
    assert heard[100] == pytest.approx(0.5, rel=1e-3) and heard.size == click.size and not heard[:100].round(5).any()
    early, late = np.mean(heard[200:1800] ** 2), np.mean(heard[4000:5600] ** 2)
    # 60 dB in 0.4 s: between windows 3,800 samples (0.2375 s) apart the level falls by about 36 dB.
    assert 10 * np.log10(early / late) == pytest.approx(36, abs=4)
    quiet = acoustics.apply(click, Acoustics(seed=1, gain_db=-6))
    assert quiet[100] == pytest.approx(0.25, abs=0.002)
    assert np.abs(acoustics.apply(click, Acoustics(seed=1, gain_db=40))).max() < 1
    drawn = acoustics.drawn(0, "a")
    assert np.array_equal(acoustics.apply(click, drawn), acoustics.apply(click, acoustics.drawn(0, "a")))
    assert drawn != acoustics.drawn(0, "b") != acoustics.drawn(1, "b")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**31), st.text(max_size=20))
def test_draws_are_functions_of_their_arguments(seed: int, id: str):
    assert draw.unit(seed, id, "x") == draw.unit(seed, id, "x") and 0 <= draw.unit(seed, id, "x") < 1
    assert sorted(draw.shuffled(seed, id, "x", "abcdef")) == list("abcdef")
    assert draw.weighted(seed, id, "x", {"never": 0.0, "always": 1.0}) == "always"


def test_draws_are_even():
    found = np.array([draw.unit(0, str(n), "x") for n in range(4_000)])
    assert abs(found.mean() - 0.5) < 0.02 and abs(np.mean(found < 0.1) - 0.1) < 0.02
    other = np.array([draw.unit(0, str(n), "y") for n in range(4_000)])
    assert abs(np.corrcoef(found, other)[0, 1]) < 0.05


# --- the store ----------------------------------------------------------------------------------------------------


def make(root: Path) -> bytes:
    return ClipStore(root).clip((LINES[0],))


def test_store_makes_each_clip_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = ClipStore(tmp_path)
    store.prepare(LINES)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.flac")}
    assert len(files) == 3 and not list(tmp_path.rglob("*.part"))
    made = store.clip((LINES[0],))
    assert made in files.values() and seconds(made) == decode(made).size / 16_000
    monkeypatch.setattr(synthesize.Espeak, "speak", lambda *_: pytest.fail("made again"))
    assert ClipStore(tmp_path).clip((LINES[0],)) == made
    louder = replace(LINES[0], acoustics=Acoustics(seed=1, gain_db=-3))
    with pytest.raises(pytest.fail.Exception):
        store.clip((louder,))


def test_two_workers_may_make_the_same_clip(tmp_path: Path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        one, two = pool.map(make, [tmp_path, tmp_path])
    assert one == two and len(list(tmp_path.rglob("*.flac"))) == 1 and len(list(tmp_path.rglob("*"))) == 3


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only on Linux can a copy lie in memory alone")
def test_a_killed_worker_leaves_no_copy_of_espeak(tmp_path: Path):
    code = (
        "from dataset_scripts import synthesize; e = synthesize.Espeak(); print(e.phonemes('hut', 'en'), flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; input()"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "hʌt\n"
    process.kill()
    process.communicate()
    assert not list(tmp_path.iterdir())


def test_sounds_are_joined_with_a_pause(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.full(8_000, 0.5), 8_000)
    whole = Recording(str(tmp_path / "a.wav"))
    joined = decode(ClipStore(tmp_path / "clips").clip((whole, replace(whole, start=0.25, end=0.75))))
    assert joined.size == 16_000 + 5_600 + 8_000
    assert not joined[16_000:21_600].any() and joined[12_000] == pytest.approx(0.5, abs=0.01)


def test_recordings_of_any_format_are_read(tmp_path: Path):
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    for name, subtype in (
        ("a.wav", "PCM_24"),
        ("a.flac", "PCM_16"),
        ("a.ogg", "VORBIS"),
        ("a.mp3", None),
        ("a.aiff", "PCM_16"),
    ):
        soundfile.write(tmp_path / name, np.stack([tone, tone], axis=1), 44_100, subtype=subtype)
        samples = read_recording(Recording(str(tmp_path / name)))
        assert samples.dtype == np.float32 and abs(samples.size - 16_000) < 1_500
        assert int(np.argmax(np.abs(np.fft.rfft(samples[1_000:9_000])))) == 220  # bins of 2 Hz
    with pytest.raises(ValueError, match="^the recording is silent$"):
        soundfile.write(tmp_path / "s.wav", np.zeros(100), 16_000)
        read_recording(Recording(str(tmp_path / "s.wav")))
    assert np.abs(decode(encode(np.array([3.0, -1.0], np.float32)))).max() < 1


# --- a model as the second backend ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VITS with random weights and two speakers, saved as from the Hub."""
    import json

    import torch
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    folder = tmp_path_factory.mktemp("vits")
    vocabulary = {letter: n for n, letter in enumerate("_ abcdefghijklmnopqrstuvwxyz'")}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    VitsTokenizer(str(folder / "vocab.json"), pad_token="_", unk_token="_", phonemize=False).save_pretrained(folder)
    torch.manual_seed(0)
    config = VitsConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
        flow_size=16, spectrogram_bins=9, prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1, upsample_initial_channel=16, upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
        duration_predictor_num_flows=1, depth_separable_num_layers=1, num_speakers=2, speaker_embedding_size=8,
        sampling_rate=8_000,
    )  # fmt: skip
    VitsModel(config).save_pretrained(folder)
    return folder


def test_a_speech_model_speaks_alike_in_any_order(vits: Path, tmp_path: Path):
    speaker = synthesize.backend(str(vits))
    lines = [Speech("hello there", "0"), Speech("hello there", "1"), Speech("other words", "0")]
    first = speaker.speak(lines)
    assert all(samples.dtype == np.float32 and samples.size for samples in first)
    assert not np.array_equal(first[0], first[1])
    again = speaker.speak(lines[::-1])[::-1]
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    store = ClipStore(tmp_path, speech=str(vits))
    assert seconds(store.clip((lines[0],))) == pytest.approx(first[0].size / 16_000, abs=1e-3)


def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="speech: .*/nothing is no text-to-audio model that can be loaded: "):
        synthesize.backend(str(tmp_path / "nothing"))


def test_what_a_model_cannot_say(vits: Path, tmp_path: Path):
    """A text without a letter it knows is set aside by itself; a voice it has not is an error of the settings."""
    store = ClipStore(tmp_path, speech=str(vits))
    store.prepare([Speech("日本", "0"), Speech("hello", "0")])
    assert len(list(tmp_path.rglob("*.flac"))) == 1
    for text in ("日本", "!?", ""):
        with pytest.raises(ValueError, match="^the recording holds no samples$"):
            store.clip((Speech(text, "0"),))
    for voice in ("2", "x", "-1"):
        with pytest.raises(ValueError, match=f"voice '{voice}' is no speaker of the model, which has 0 to 1"):
            store.clip((Speech("hello", voice),))


def test_a_corpus_spoken_by_a_model(vits: Path, tmp_path: Path):
    """The same bytes with one worker and two; voices by hash, none in two splits; clips are made once and found."""
    words = ("hello there", "other words", "some more", "and so on", "one thing", "at the end")

    def read(root: Path):
        for n, said in enumerate(words):
            yield Item(f"{n}", (Fact("ASR", said),), (Speech(said),), split="train" if n else "test")

    source = replace(SOURCE, needs=(), tasks=("ASR",), read=read)
    chosen = {"speech": str(vits), "voices": {"train": ["0"], "test": ["1"]}, "rows_per_shard": 2, "eval_rows": 1}
    one, two = (build("align", [source], tmp_path / f"{n}", workers=n, **chosen) for n in (1, 2))
    files = [sorted(folder.glob("data/*/*")) for folder in (one, two)]
    assert len(files[0]) > 1 and [a.read_bytes() for a in files[0]] == [b.read_bytes() for b in files[1]]
    clips = {file: file.stat().st_mtime_ns for file in (one / ".build" / "clips").rglob("*.flac")}
    assert len(clips) == 5
    build("eval", [source], tmp_path / "eval", clips=one / ".build" / "clips", against=[one], **chosen)
    held = pq.read_table(next((tmp_path / "eval").glob("data/*/*"))).to_pylist()
    assert [row["voice"] for row in held] == ["1"]
    assert {row["voice"] for file in files[0] for row in pq.read_table(file).to_pylist()} == {"0"}
    again = build("align", [source], tmp_path / "again", clips=one / ".build" / "clips", **chosen)
    assert again and {file: file.stat().st_mtime_ns for file in clips} == clips


def test_clips_do_not_depend_on_who_else_has_loaded_espeak():
    import ctypes

    import espeakng_loader

    held = ctypes.CDLL(espeakng_loader.get_library_path())
    voices = ("en-us+f3", "en+m1", "en-us+f3", "en+m1")
    clips = synthesize.Espeak().speak([synthesize.Speech("hello there friend", voice=voice) for voice in voices])
    assert held is not None
    assert clips[0].tobytes() == clips[2].tobytes() and clips[1].tobytes() == clips[3].tobytes()
