"""Recordings of every kind that people have, whole, cut off and silent."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT, SHARED
from support.phone_files import FILES, film_or_recording

from llaso_common.audio import SAMPLE_RATE, AudioError, audio_blocks, audio_seconds, join_clips, read_audio
from modeling_llaso.processing_llaso import read_clip

RATE = 24_000
NOISE = (0.1 * np.random.default_rng(0).standard_normal((2 * RATE, 2))).clip(-1, 1).astype(np.float32)
HEARD = soxr.resample(NOISE.mean(axis=1), RATE, SAMPLE_RATE, quality="HQ")
"""What is heard of `NOISE`."""
CASES = SHARED / "cases"


def encoded(kind: str, samples: np.ndarray = NOISE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=kind, **options)
    return buffer.getvalue()


def reason(source: Any, **options: Any) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(source, **options)
    assert str(caught.value) == f"{caught.value.name}: {caught.value.reason}"
    return caught.value.reason


# Formats and forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_24", "PCM_16"])
@pytest.mark.parametrize("kind", ["WAV", "AIFF", "RF64", "FLAC"])
def test_lossless_files_are_averaged_over_channels_and_resampled(kind: str, subtype: str):
    if (kind, subtype) == ("FLAC", "FLOAT"):
        subtype = "PCM_S8"
    heard = read_audio(encoded(kind, subtype=subtype))
    assert heard.dtype == np.float32 and heard.shape == (2 * SAMPLE_RATE,)
    assert np.abs(heard - HEARD).max() < (0.01 if subtype == "PCM_S8" else 1e-4)
    assert audio_seconds(encoded(kind, subtype=subtype)) == 2.0


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_lossy_files_last_as_long(kind: str):
    assert read_audio(encoded(kind)).shape == HEARD.shape and audio_seconds(encoded(kind)) == 2.0


def test_files_come_as_paths_bytes_and_values_of_a_table(tmp_path: Path):
    file = encoded("WAV", subtype="FLOAT")
    path = tmp_path / "a.wav"
    path.write_bytes(file)
    sources = [str(path), path, file, bytearray(file), memoryview(file)]
    sources += [{"bytes": file, "path": "not there.wav"}, {"bytes": None, "path": str(path)}]
    for source in sources:
        np.testing.assert_array_equal(read_audio(source), HEARD)


def test_samples_come_as_arrays_tensors_lists_and_decoders():
    mono = NOISE.mean(axis=1)
    for source in (mono, mono[:, None], mono.astype(np.float64), mono.tolist(), torch.tensor(mono)[None]):
        np.testing.assert_allclose(read_audio(source, rate=RATE), HEARD, atol=1e-6)
    halves = torch.tensor(mono, dtype=torch.bfloat16)
    np.testing.assert_allclose(read_audio(halves, rate=RATE), HEARD, atol=1e-2)
    np.testing.assert_array_equal(read_audio({"array": mono, "sampling_rate": RATE, "path": None}), HEARD)
    samples = SimpleNamespace(data=torch.tensor(NOISE.T), sample_rate=RATE)  # torchcodec.AudioSamples
    np.testing.assert_allclose(read_audio(samples), HEARD, atol=1e-6)
    np.testing.assert_allclose(read_audio(SimpleNamespace(get_all_samples=lambda: samples)), HEARD, atol=1e-6)
    np.testing.assert_array_equal(read_audio(HEARD, rate=SAMPLE_RATE), HEARD)


def test_samples_of_unknown_or_contradicted_rate_are_refused():
    mono = NOISE.mean(axis=1)
    assert "do not tell their sampling rate" in reason(mono)
    assert "do not tell their sampling rate" in reason({"array": mono})
    assert reason({"array": mono, "sampling_rate": RATE}, rate=16_000).startswith("its sampling rate is 24000 Hz, not")
    assert reason(encoded("WAV"), rate=16_000).startswith("its sampling rate is 24000 Hz, not 16000 Hz")


@pytest.mark.parametrize("rate", ["16000", -1, 1, 16_000.5, 1e12, 10**30, float("nan"), float("inf")])
def test_a_sampling_rate_that_is_none_is_refused(rate: Any):
    assert "its sampling rate is " in reason({"array": HEARD, "sampling_rate": rate})
    with pytest.raises(ValueError, match="^audio 0: its sampling rate is "):
        read_clip({"array": HEARD, "sampling_rate": rate}, SAMPLE_RATE, "audio 0", read_audio)


def test_what_is_no_recording_is_refused():
    assert "average several beforehand" in reason(NOISE, rate=RATE)
    whole_numbers = (NOISE[:, 0] * 32767).astype(np.int16)
    for source in (whole_numbers, torch.tensor(whole_numbers), whole_numbers.tolist()):
        assert "divide 16-bit samples by 32768" in reason(source, rate=RATE)
    for source in (object(), None, "text".split(), {1, 2}):
        assert "is neither a file nor samples" in reason(source, rate=RATE)
    assert "neither `bytes` nor a `path`" in reason({"bytes": None, "path": None})


def test_a_stretch_of_a_file(tmp_path: Path):
    path = tmp_path / "a.flac"
    path.write_bytes(encoded("FLAC"))
    whole, _ = soundfile.read(path, dtype="float32")
    part = soxr.resample(whole[12_000:36_000].mean(axis=1), RATE, SAMPLE_RATE, quality="HQ")
    np.testing.assert_array_equal(read_audio(path, start=0.5, end=1.5), part)
    assert audio_seconds(path, start=0.5, end=1.5) == 1.0 and audio_seconds(path, start=0.5) == 1.5
    assert len(read_audio(path, start=1.5, end=2.05)) == SAMPLE_RATE // 2  # ends within the tolerance
    assert reason(path, start=1.5, end=2.2) == "the audio ends before its stretch does"
    for start, end in ((2.0, None), (-1.0, None), (1.0, 1.0), (1.0, 0.5)):
        assert reason(path, start=start, end=end) == "there is no audio in this stretch"
    assert reason(path, max_seconds=1.9) == "longer than 1.9 s"
    assert len(read_audio(path, start=0.2, max_seconds=1.9)) == 1.8 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [SAMPLE_RATE, RATE, 44_100])
def test_blocks_are_the_whole(monkeypatch: pytest.MonkeyPatch, rate: int):
    buffer = io.BytesIO()
    soundfile.write(buffer, NOISE, rate, format="WAV", subtype="FLOAT")
    whole = read_audio(buffer.getvalue())
    monkeypatch.setattr("llaso_common.audio.BLOCK_FRAMES", 7_001)
    blocks = list(audio_blocks(buffer.getvalue()))
    assert len(blocks) > 5 and max(map(len, blocks)) < 10_000
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-5)
    np.testing.assert_array_equal(read_audio(buffer.getvalue()), whole)


def test_blocks_tell_at_their_end_what_is_wrong():
    file = encoded("WAV", subtype="FLOAT")
    for broken, said in (
        (file[: len(file) // 2], "clip: the file is cut off: the last 1.00 of 2.00 s are missing"),
        (encoded("WAV", NOISE * 0), "clip: the recording is silent"),
        (encoded("WAV", NOISE * np.inf, subtype="FLOAT"), "clip: the recording holds NaN or infinite samples"),
        (encoded("WAV", NOISE[:0]), "clip: the recording holds no samples"),
    ):
        with pytest.raises(AudioError, match=said):
            list(audio_blocks(broken, name="clip"))


def test_clips_are_joined_with_a_pause():
    one, two = np.ones(5, np.float32), np.full(3, 2, np.float32)
    joined = join_clips([one, two], 1000)
    assert joined.tolist() == [1] * 5 + [0] * 350 + [2] * 3 and joined.dtype == np.float32
    assert join_clips([one], 1000).tolist() == [1] * 5


# What is missing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "RF64", "MP3", "FLAC", "OGG"])
def test_half_a_file_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(encoded(kind)[: len(encoded(kind)) // 2])
    for source in (path, path.read_bytes()):
        said = reason(source)
        if kind in ("WAV", "AIFF", "RF64", "MP3"):
            missing = float(said.removeprefix("the file is cut off: the last ").split()[0])
            assert missing == pytest.approx(1.0, abs=0.1) and "of 2.00 s are missing" in said
        else:
            assert said.startswith(("not readable as audio", "the file is cut off"))


def test_the_end_of_a_cut_off_file_is_not_missed_by_a_stretch_before_it():
    half = encoded("WAV")[: len(encoded("WAV")) // 2]
    assert len(read_audio(half, start=0.2, end=0.7)) == SAMPLE_RATE // 2
    assert "cut off" in reason(half, start=0.2)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_streamed_wav_that_does_not_know_its_length_is_whole(size: int):
    file = bytearray(encoded("WAV", subtype="PCM_16"))
    file[40:44] = struct.pack("<I", size)
    if size:
        assert len(read_audio(bytes(file))) == len(HEARD)
    else:
        assert reason(bytes(file)) == "the recording holds no samples"


def test_a_header_that_promises_more_than_any_memory_holds():
    file = bytearray(encoded("FLAC"))
    file[21] |= 0x0F  # 36 bits of samples
    assert reason(bytes(file)).startswith(("not readable as audio", "the file is cut off"))
    assert reason(bytes(file), max_seconds=60) == "longer than 60 s"


@pytest.mark.parametrize("amplitude, silent", [(0.0, True), (0.9e-4, True), (1.1e-4, False)])
def test_silence(amplitude: float, silent: bool):
    tone = amplitude * np.sign(np.sin(np.arange(RATE) * 0.1))
    for source in (encoded("WAV", tone, subtype="FLOAT"), {"array": tone, "sampling_rate": RATE}):
        if silent:
            assert reason(source) == "the recording is silent"
        else:
            read_audio(source)


def test_empty_and_broken_files_are_named(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not a sound at all")
    (tmp_path / "none.wav").write_bytes(encoded("WAV", NOISE[:0]))
    (tmp_path / "nan.wav").write_bytes(encoded("WAV", NOISE * np.nan, subtype="FLOAT"))
    os.mkfifo(tmp_path / "pipe")
    for name, said in {
        "empty.wav": "the file is empty",
        "text.wav": "not readable as audio",
        "none.wav": "the recording holds no samples",
        "nan.wav": "the recording holds NaN or infinite samples",
        "folder": "a folder; name the files in it",
        "pipe": "there is no such file",
        "x" * 5000: "there is no such file",
        "a\0b": "there is no such file",
    }.items():
        with pytest.raises(AudioError) as caught:
            read_audio(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {said}")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(AudioError, match=r"none\.wav: the recording holds no samples"):
        audio_seconds(tmp_path / "none.wav")
    assert reason(b"") == "the file is empty"
    assert reason(str(tmp_path / "lost.wav"), name="clip 3") == f"there is no file {tmp_path / 'lost.wav'}"


# By PyAV -----------------------------------------------------------------------------------------------------------


def recorded(container: str, codec: str, rate: int, picture: bool = False, **options: str) -> bytes:
    return film_or_recording(NOISE.T, RATE, container, codec, rate, picture, **options)


@pytest.mark.parametrize("kind", FILES)
def test_what_telephones_and_browsers_record(tmp_path: Path, kind: str):
    path = tmp_path / "recording"
    path.write_bytes(recorded(*FILES[kind]))
    for source in (path, path.read_bytes()):
        heard = read_audio(source)
        assert len(heard) == pytest.approx(len(HEARD), abs=0.15 * SAMPLE_RATE)
        assert np.abs(heard).std() > 0.01
        assert audio_seconds(source) == pytest.approx(2.0, abs=0.15)
        assert len(read_audio(source, start=0.5, end=1.0)) == SAMPLE_RATE // 2
        assert reason(source, max_seconds=1.5) == "longer than 1.5 s"


@pytest.mark.parametrize("kind", ["webm", "mkv", "mp4 with its index first"])
def test_half_a_recording_is_refused(kind: str):
    options = {"movflags": "faststart"} if kind.startswith("mp4") else {}
    file = recorded(*FILES.get(kind, ("mp4", "aac", 48_000)), **options)
    said = reason(file[: len(file) // 2])
    missing = float(said.removeprefix("the file is cut off: the last ").split()[0])
    assert missing == pytest.approx(1.0, abs=0.2)


def test_a_recording_without_its_index_is_refused():
    file = recorded("mp4", "aac", 48_000)
    assert reason(file[: len(file) // 2]).startswith("not readable as audio")


def test_a_recording_that_does_not_state_its_length_is_whole():
    """As browsers stream it."""
    for kind, codec, options in (
        ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}),
        ("webm", "libopus", {"live": "1"}),
    ):
        file = recorded(kind, codec, 48_000, **options)
        assert len(read_audio(file)) == pytest.approx(len(HEARD), abs=0.1 * SAMPLE_RATE)
        assert audio_seconds(file) == pytest.approx(2.0, abs=0.1)


def test_a_film_without_sound_is_refused():
    av = pytest.importorskip("av", reason="the extra formats is not installed")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        film = out.add_stream("mpeg4", rate=25)
        film.width = film.height = 64
        out.mux(film.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        out.mux(film.encode(None))
    assert reason(buffer.getvalue()) == "the file holds no sound"


def test_a_playlist_opens_nothing(tmp_path: Path):
    """FFmpeg would follow it to any file or address."""
    (tmp_path / "secret.wav").write_bytes(encoded("WAV"))
    listing = f"#EXTM3U\n#EXTINF:2,\n{tmp_path / 'secret.wav'}\n#EXT-X-ENDLIST\n"
    assert reason(listing.encode()).startswith("not readable as audio")


def test_without_the_extra_its_name_is_told(tmp_path: Path):
    (tmp_path / "phone.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    (tmp_path / "browser.webm").write_bytes(b"\x1aE\xdf\xa3" + bytes(100))
    (tmp_path / "ok.wav").write_bytes(encoded("WAV"))
    program = (
        "import sys; sys.modules['av'] = None\n"
        "from llaso_common.audio import read_audio\n"
        "for file in sys.argv[1:]:\n"
        "    try: print(len(read_audio(file)))\n"
        "    except ValueError as error: print(error)\n"
    )
    files = [str(tmp_path / name) for name in ("ok.wav", "phone.m4a", "browser.webm")]
    done = subprocess.run(
        [sys.executable, "-c", program, *files], cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, *others = done.stdout.splitlines()
    assert first == str(len(HEARD)) and len(others) == 2
    for file, line in zip(files[1:], others, strict=True):
        assert line.startswith(f"{file}: ") and line.endswith("need the extra `formats`: pip install 'llaso[formats]'")


# The shared cases --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not beside this checkout")
@pytest.mark.parametrize(
    "name, said",
    {
        "ok.wav": None,
        "ok.mp3": None,
        "phone.m4a": None,
        "browser.webm": None,
        "cut.wav": "the file is cut off: the last 0.24 of 0.49 s are missing",
        "cut.mp3": "the file is cut off: the last 0.25 of 0.49 s are missing",
        "silence.wav": "the recording is silent",
    }.items(),
)
def test_shared_cases(name: str, said: str | None):
    if name in ("phone.m4a", "browser.webm"):
        pytest.importorskip("av", reason="the extra formats is not installed")
    if said:
        assert reason(CASES / name).startswith(said)
        return
    heard, spoken = read_audio(CASES / name), read_audio(CASES / "ok.wav")
    short = min(len(heard), len(spoken))
    assert abs(len(heard) - len(spoken)) < 0.01 * SAMPLE_RATE
    assert np.corrcoef(heard[:short], spoken[:short])[0, 1] > 0.9


# MP3 -------------------------------------------------------------------------------------------------------------

TWO_HALVES = np.concatenate(
    [np.full(10 * SAMPLE_RATE, 1e-3), np.random.default_rng(1).normal(0, 0.2, 10 * SAMPLE_RATE)]
)
"""Twenty seconds, of which a variable bit rate spends little on the first half."""


@functools.cache
def mp3(bitrate_mode: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, TWO_HALVES, SAMPLE_RATE, format="MP3", bitrate_mode=bitrate_mode, compression_level=0.5)
    return buffer.getvalue()


def without_header(file: bytes) -> bytes:
    """Leave out the first frame, which states the length."""
    tag = max(file.find(b"Xing"), file.find(b"Info"))
    return file[file.index(file[:2], tag) :]


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
def test_an_mp3_without_a_length_header_is_read_whole(mode: str):
    """libsndfile alone takes the first frame's bit rate for that of all: 5.5 s of 20."""
    whole, bare = read_audio(mp3(mode)), without_header(mp3(mode))
    tagged = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048) + bare + b"TAG" + b"x" * 125
    for file in (bare, tagged, bare + bytes(3000)):
        heard = read_audio(file)
        assert len(heard) == pytest.approx(20 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
        assert audio_seconds(file) == len(heard) / SAMPLE_RATE
        middle = slice(len(whole) // 2, len(whole) - 5000)
        assert np.abs(heard[576:][middle] - whole[middle]).max() < 1e-5  # the delay that the header states


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_that_ends_within_a_frame_is_cut_off(mode: str):
    bare = without_header(mp3(mode))
    for file in (bare[:-1], bare[:-50], bare + bare[:2], bare + bare[:40]):
        assert reason(file) == "the file is cut off: its last frame is incomplete; copy or record it again"
    assert len(read_audio(bare[:-50], start=1, end=2)) == SAMPLE_RATE  # the stretch is whole


@settings(max_examples=30, deadline=None)
@given(end=st.integers(min_value=3000))
def test_a_bare_mp3_that_is_cut_anywhere_is_refused_or_read_as_far_as_it_goes(end: int):
    """Cut between two frames it is a shorter MP3 like any other; no test can tell."""
    bare = without_header(mp3("CONSTANT"))[:30_000]
    file = bare[: 3000 + end % 27_000]
    try:
        heard = read_audio(file)
    except AudioError as error:
        assert "its last frame is incomplete" in error.reason
    else:
        assert len(heard) / SAMPLE_RATE == pytest.approx(20 * len(file) / len(mp3("CONSTANT")), abs=0.1)


@pytest.mark.parametrize("between", [b"", b"TAG" + bytes(125), b"ID3\x04\0\0\0\0\x02\0" + bytes(256)])
def test_mp3_files_appended_to_one_another_are_read_to_the_end(between: bytes):
    """The header of the first states its own length only."""
    file = mp3("VARIABLE")
    heard = read_audio(file + between + file)
    assert len(heard) == pytest.approx(40 * SAMPLE_RATE, abs=0.3 * SAMPLE_RATE)
    assert np.abs(heard[-5 * SAMPLE_RATE :]).max() > 0.3


def test_an_mp3_is_the_same_in_blocks_and_in_stretches(monkeypatch: pytest.MonkeyPatch):
    """soundfile seeks after every read, and decodes wrongly what a frame before the seek holds."""
    file = mp3("VARIABLE")
    whole = read_audio(file)
    for start in (11, 12, 12.3, 15):
        first = round(start * SAMPLE_RATE)
        assert np.abs(read_audio(file, start=start, end=start + 1) - whole[first : first + SAMPLE_RATE]).max() < 1e-5
    monkeypatch.setattr("llaso_common.audio.BLOCK_FRAMES", 7000)
    assert np.abs(np.concatenate(list(audio_blocks(file))) - whole).max() < 1e-5


# Other formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["OGG", "FLAC"])
def test_files_of_which_only_the_first_would_be_heard_are_refused(kind: str):
    for file in (encoded(kind), encoded(kind, NOISE[:100])):
        assert reason(file + encoded(kind)).startswith("the file holds several recordings, one after the other")


@pytest.mark.parametrize("kind", ["AU", "NIST"])
def test_telephone_and_laboratory_files_are_held_to_their_headers(kind: str):
    file = encoded(kind)
    assert len(read_audio(file)) == len(HEARD)
    assert reason(file[: len(file) // 2]).startswith("the file is cut off: the last 1.0")
    for broken in (b"banana", b"-1", b"9" * 40):
        odd = file.replace(b"sample_count -i", b"sample_count -i " + broken)
        with contextlib.suppress(AudioError):
            read_audio(odd)


@pytest.mark.parametrize("kind", ["VOC", "IRCAM", "W64", "PAF"])
def test_formats_whose_loss_would_not_be_noticed_are_refused(kind: str):
    subtype = {"subtype": "PCM_16"}
    assert reason(encoded(kind, NOISE[:, :1], **subtype)).endswith("may be cut off without a sign; convert it to WAV")


def test_a_flac_that_was_streamed_does_not_know_its_length():
    pytest.importorskip("av", reason="the extra `formats` is not installed")
    file = bytearray(encoded("FLAC"))
    stated = int.from_bytes(file[18:26], "big")
    file[18:26] = (stated >> 36 << 36).to_bytes(8, "big")
    assert len(read_audio(bytes(file))) == pytest.approx(len(HEARD), abs=100)


MUTABLE = [*FILES, "WAV", "AIFF", "MP3", "FLAC", "OGG", "AU", "NIST"]


@functools.cache
def pristine(kind: str) -> bytes:
    return recorded(*FILES[kind]) if kind in FILES else encoded(kind)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(MUTABLE),
    cut=st.integers(min_value=0),
    changed=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=20),
    inserted=st.binary(max_size=50),
)
def test_a_damaged_file_is_read_or_refused_by_name(kind: str, cut: int, changed: list, inserted: bytes):
    """Whatever a library underneath raises, what comes out is an AudioError."""
    file = bytearray(pristine(kind))
    for place, value in changed:
        file[place % len(file)] = value
    place = cut % len(file)
    file = file[:place] + inserted + (file[place:] if cut % 2 else b"")
    for read in (lambda: read_audio(bytes(file), max_seconds=60), lambda: audio_seconds(bytes(file))):
        with contextlib.suppress(AudioError):
            read()


def test_the_metadata_of_a_film_may_be_in_any_encoding():
    file = recorded(*FILES["m4a"])
    name = file.index(b"SoundHandler")
    assert len(read_audio(file[:name] + b"\xf9\xfe\xff" + file[name + 3 :])) == len(read_audio(file))
