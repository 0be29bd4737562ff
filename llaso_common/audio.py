"""Reads recordings of every kind as the model takes them: mono float32 samples at one rate.

libsndfile decodes WAV, FLAC, OGG, MP3 and AIFF; PyAV (the extra `formats`) decodes M4A, AAC, WebM and the sound of
video files. Channels are averaged, and soxr resamples at its high quality, as librosa does by default and the released
code with it. A file that is cut off, silent or no audio is refused by name.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from .mp3_frames import unstated_frames

SAMPLE_RATE = 16_000
"""Hz: the rate of Whisper's input, and of the clips in every corpus."""
MEL_FRAMES_PER_SECOND = 100
"""Frames per second of Whisper's log-mel spectrogram: one every 160 samples."""
ENCODER_FRAMES_PER_SECOND = MEL_FRAMES_PER_SECOND // 2
"""Output vectors per second of Whisper's encoder, whose second convolution has a stride of 2."""
SILENT_PEAK = 1e-4
"""Peak amplitude below which a recording is silent: -80 dB of full scale."""
TOLERANCE_S = 0.1
"""Seconds by which a recording may end before the end that its header or its corpus states."""
PAUSE_S = 0.35
"""Silence between recordings that are joined into one clip, seconds."""

BLOCK_FRAMES = 1 << 20
"""Frames decoded at once; a header may state more than fit into memory."""
_MP3_RESERVOIR_FRAMES = 9 * 1152
"""Frames to decode and drop before a stretch of an MP3: after a seek, what earlier frames hold of it is lacking."""
_STATING = {"WAV", "WAVEX", "RF64", "AIFF", "FLAC", "OGG", "MP3", "CAF", "AU", "NIST"}
"""libsndfile's names of the formats that state their length, so that a file which is cut off is noticed."""
_OGG_PAGE = 65_307
"""Bytes of the largest page of an Ogg file."""
_UNKNOWN_SIZE = 0x7FFF0000
"""Smallest placeholder size: programs that stream a WAV write this or more, as its length is not known yet."""


class AudioError(ValueError):
    """A recording that cannot be used; the message is `name: reason`.

    Args:
        name: what the recording is called.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[Any, ...]:  # errors of worker processes are pickled
        return type(self), (self.name, self.reason)


class SilentAudio(AudioError):
    """A recording in which nothing can be heard."""


def read_audio(
    source: Any,
    sampling_rate: int = SAMPLE_RATE,
    *,
    rate: int | None = None,
    name: str | None = None,
    start: float = 0.0,
    end: float | None = None,
    max_seconds: float = math.inf,
) -> np.ndarray:
    """Decode a recording, or a stretch of one.

    Args:
        source: a path; the bytes of a file; samples as an array, a tensor or a list, with their `rate`; a value of a
            `datasets` Audio column (`{"bytes", "path"}`, `{"array", "sampling_rate"}` or a decoder); or a decoder or
            samples of torchcodec.
        sampling_rate: Hz of the samples to return.
        rate: Hz of `source`; required for bare samples, checked for everything that states its own.
        name: what to call the recording in errors; its path by default.
        start: seconds at which the stretch begins.
        end: seconds at which the stretch ends; None for the recording's end.
        max_seconds: a longer stretch is an error, and is not decoded further than this.

    Returns:
        Mono float32 samples, `(num_samples,)`.

    Raises:
        AudioError: the recording is missing, empty, in no format that is read here, cut off, silent, longer than
            `max_seconds`, or ends before the stretch does; or its rate is unknown.
    """
    name = name or _name_of(source)
    samples, found_rate = _read(source, rate, name, start, end, max_seconds)
    if rate is not None and rate != found_rate:
        raise AudioError(name, f"its sampling rate is {found_rate} Hz, not {rate} Hz as stated")
    mono = samples.mean(axis=1)
    check_heard(mono, name)
    if found_rate != sampling_rate:
        mono = soxr.resample(mono, found_rate, sampling_rate, quality="HQ")
    if not len(mono):
        raise AudioError(name, "the recording holds no samples")
    return mono


def audio_blocks(
    source: str | Path | bytes, sampling_rate: int = SAMPLE_RATE, *, name: str | None = None
) -> Iterator[np.ndarray]:
    """Decode a file of any length, a block at a time, in little memory.

    Args:
        source: a path, or the bytes of a file.
        sampling_rate: Hz of the samples to return.
        name: what to call the recording in errors; its path by default.

    Yields:
        Mono float32 samples, one block after the other; together those of `read_audio`, to rounding.

    Raises:
        AudioError: as `read_audio` does; that the file is cut off or silent is known at its end.
    """
    name = name or _name_of(source)
    with _file_blocks(source, name) as (rate, blocks):
        stream = soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32", quality="HQ")
        loudest = np.empty(0, np.float32)
        for block in blocks:
            mono = block.mean(axis=1)
            loudest = np.append(loudest, np.abs(mono).max())  # NaN and infinity included
            yield mono if rate == sampling_rate else stream.resample_chunk(mono)
        check_heard(loudest, name)
        if rate != sampling_rate:
            yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def audio_seconds(source: Any, *, name: str | None = None, start: float = 0.0, end: float | None = None) -> float:
    """Return how long a file, or a stretch of one, is by its header, without decoding it.

    Args:
        source: a path, the bytes of a file, or `{"bytes", "path"}`.
        name, start, end: as for `read_audio`.

    Raises:
        AudioError: the file is missing, empty, or in no format that is read here, or the stretch lies outside it.
    """
    name = name or _name_of(source)
    if isinstance(source, dict):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    with _opened(source, name) as stream:
        if container := _container(stream):
            with _av_stream(stream, container, name) as (opened, track):
                seconds = _av_seconds(track)
                if seconds is None:  # as browsers record: only decoding tells
                    seconds = sum(map(len, _av_blocks(opened, track, name, 0.0, None, math.inf))) / track.rate
            first, last = _stretch(seconds, 1.0, start, end, name)
            return last - first
        with _sndfile(stream, name) as file:
            if not file.frames:
                raise AudioError(name, "the recording holds no samples")
            first, last = _stretch(file.frames, file.samplerate, start, end, name)
            return (last - first) / file.samplerate


def check_heard(samples: np.ndarray, name: str) -> None:
    """Refuse mono samples in which nothing can be heard.

    Raises:
        AudioError: there are none, some are no numbers, or all are below `SILENT_PEAK`.
    """
    if not len(samples):
        raise AudioError(name, "the recording holds no samples")
    if not np.isfinite(samples).all():
        raise AudioError(name, "the recording holds NaN or infinite samples")
    if np.abs(samples).max() < SILENT_PEAK:
        raise SilentAudio(name, "the recording is silent")


def join_clips(clips: Sequence[np.ndarray], sampling_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Join mono clips into one, with a short pause between them."""
    pause = np.zeros(round(PAUSE_S * sampling_rate), np.float32)
    return np.concatenate([part for clip in clips for part in (pause, clip)][1:])


# What sources there are ------------------------------------------------------------------------------------------


def _name_of(source: Any) -> str:
    if isinstance(source, dict) and source.get("path"):
        source = source["path"]
    return str(source) if isinstance(source, str | Path) else "the audio"


def _read(
    source: Any, rate: int | None, name: str, start: float, end: float | None, max_seconds: float
) -> tuple[np.ndarray, int]:
    """Read any source: float32 samples `(frames, channels)`, and their rate in Hz."""
    if isinstance(source, dict):
        if source.get("array") is not None:
            source, rate = source["array"], source.get("sampling_rate", rate)
        elif (held := source.get("bytes")) is not None:
            source = held
        elif source.get("path"):
            source = source["path"]
        else:
            raise AudioError(name, "it has neither `bytes` nor a `path`, nor an `array` with its `sampling_rate`")
    if isinstance(source, str | Path | bytes | bytearray | memoryview):
        with _file_blocks(source, name, start, end, max_seconds) as (found, blocks):
            decoded = [*blocks]
        return np.concatenate(decoded) if decoded else np.empty((0, 1), np.float32), found
    if hasattr(source, "get_all_samples"):  # a decoder of torchcodec, or of a `datasets` Audio column
        source = source.get_all_samples()
    if hasattr(source, "data") and hasattr(source, "sample_rate"):  # torchcodec.AudioSamples: (channels, samples)
        samples, rate = np.asarray(source.data, np.float32).T, source.sample_rate
    else:
        samples = _array(source, name)
    if not rate:
        raise AudioError(name, "samples alone do not tell their sampling rate: state it, or give a file")
    if not isinstance(rate, int | float | np.number) or not 100 <= rate <= 10_000_000 or rate != int(rate):
        raise AudioError(name, f"its sampling rate is {rate!r}; it is a whole number of Hz, such as 16000")
    if len(samples):
        first, last = _stretch(len(samples), rate, start, end, name)
        samples = samples[first:last]
    if len(samples) > max_seconds * rate:
        raise AudioError(name, f"longer than {max_seconds:g} s")
    return samples, int(rate)


def _array(source: Any, name: str) -> np.ndarray:
    """Return samples, checked to be mono floats, as a column."""
    if hasattr(source, "detach"):  # a tensor, perhaps of another device
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source  # numpy has no bfloat16
    try:
        samples = np.asarray(source)
        if samples.dtype.kind not in "fiu":
            raise TypeError(f"{samples.dtype} values")
    except (TypeError, ValueError) as error:
        raise AudioError(name, f"{type(source).__name__} is neither a file nor samples ({error})") from None
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    if samples.ndim != 1:
        raise AudioError(
            name, f"samples of shape {samples.shape}: give one channel, `(samples,)`; average several beforehand"
        )
    if samples.dtype.kind in "iu":
        raise AudioError(
            name, f"{samples.dtype} samples: give floats between -1 and 1; divide 16-bit samples by 32768"
        )
    return samples.astype(np.float32)[:, None]


@contextlib.contextmanager
def _opened(source: str | Path | bytes | bytearray | memoryview, name: str) -> Iterator[BinaryIO]:
    """Open a file that is not empty."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not os.path.isfile(path):
            missing = "a folder; name the files in it" if os.path.isdir(path) else "there is no such file"
            raise AudioError(name, missing if name == str(source) else f"there is no file {path}")
        try:
            stream: BinaryIO = path.open("rb")
        except OSError as error:
            raise AudioError(name, f"the file cannot be read ({error.strerror})") from None
    else:
        stream = io.BytesIO(source)
    with stream:
        if not stream.read(1):
            raise AudioError(name, "the file is empty")
        stream.seek(0)
        yield stream


@contextlib.contextmanager
def _file_blocks(
    source: str | Path | bytes | bytearray | memoryview,
    name: str,
    start: float = 0.0,
    end: float | None = None,
    max_seconds: float = math.inf,
) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Yield a file's rate, and the blocks `(frames, channels)` of a stretch of it, to be read within the context."""
    with _opened(source, name) as stream:
        if container := _container(stream):
            with _av_stream(stream, container, name) as (opened, track):
                yield int(track.rate), _av_blocks(opened, track, name, start, end, max_seconds)
            return
        if end is None and _is_chained(stream):
            raise AudioError(name, "the file holds several recordings, one after the other; give each as a file")
        whole = _share_present(stream)
        if end is None and _ends_within_a_page(stream):
            raise AudioError(name, "the file is cut off: its last page is incomplete; copy or record it again")
        with _sndfile(stream, name, to_the_end=end is None) as file:
            first, last = _stretch(file.frames, file.samplerate, start, end, name) if file.frames else (0, 0)
            # A stretch that ends where its file does is held to what the header promised.
            promised = round(file.frames / whole) - first if end is None else last - first
            if min(last - first, promised) > max_seconds * file.samplerate:
                raise AudioError(name, f"longer than {max_seconds:g} s")
            if first:
                before = min(first, _MP3_RESERVOIR_FRAMES if file.format == "MP3" else 0)
                file.seek(first - before)
                file.read(before)
            yield file.samplerate, _sndfile_blocks(file, last - first, promised, name)


def _stretch(frames: float, rate: float, start: float, end: float | None, name: str) -> tuple[Any, Any]:
    """Return the first frame of a stretch and the one after its last."""
    exact = isinstance(frames, int)
    first, last = start * rate, frames if end is None else end * rate
    if exact:
        first, last = round(first), round(last)
    if not 0 <= first < min(last, frames):
        raise AudioError(name, "there is no audio in this stretch")
    if last > frames + TOLERANCE_S * rate:
        raise AudioError(name, "the audio ends before its stretch does")
    return first, min(last, frames)


def _check_arrived(arrived: float, promised: float, rate: float, name: str) -> None:
    """Compare what was decoded with what the header promised, both in frames."""
    if arrived < promised - TOLERANCE_S * rate:
        lacking, whole = (promised - arrived) / rate, promised / rate
        raise AudioError(
            name,
            f"the file is cut off: the last {lacking:.2f} of {whole:.2f} s are missing; copy or record it again",
        )


# libsndfile --------------------------------------------------------------------------------------------------------


class _SequentialFile(soundfile.SoundFile):
    """A file that is read on without the seek that soundfile adds to each read, after which MP3 decodes wrongly."""

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def _sndfile(stream: BinaryIO, name: str, to_the_end: bool = False) -> Iterator[soundfile.SoundFile]:
    """Open a file, an MP3 with its true length; if it is to be read to its end, its last frame must be whole."""
    stream.seek(0)
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(_SequentialFile(stream))
            if file.format not in _STATING:
                raise AudioError(name, f"{file.format_info} files may be cut off without a sign; convert it to WAV")
            place = stream.tell()
            if file.format == "MP3" and (frames := unstated_frames(stream)):
                if frames.incomplete and to_the_end:
                    raise AudioError(
                        name, "the file is cut off: its last frame is incomplete; copy or record it again"
                    )
                file = stack.enter_context(_SequentialFile(frames.with_length(stream)))
            else:
                stream.seek(place)
            yield file
    except soundfile.LibsndfileError as error:
        raise AudioError(name, f"not readable as audio: {error.error_string.rstrip('.')}; give another file") from None


def _sndfile_blocks(file: soundfile.SoundFile, frames: int, promised: int, name: str) -> Iterator[np.ndarray]:
    """Decode the next frames, as many as there are, and compare them with the promised ones."""
    arrived = 0
    while len(block := file.read(min(frames - arrived, BLOCK_FRAMES), dtype="float32", always_2d=True)):
        arrived += len(block)
        yield block
    _check_arrived(arrived, promised, file.samplerate, name)


def _is_chained(stream: BinaryIO) -> bool:
    """Return whether FLAC or Ogg files were appended to one another; libsndfile decodes the first only."""
    stream.seek(0)
    kind = stream.read(4)
    if kind == b"fLaC":
        return _find(stream, b"fLaC\0\0\0\x22", 4) >= 0
    if kind != b"OggS":
        return False
    later = _find(stream, b"OggS\0\0", 4)  # streams that sound together begin before this page
    return later >= 0 and _find(stream, b"OggS\0\2", later) >= 0


def _find(stream: BinaryIO, signature: bytes, place: int) -> int:
    """Return where a file holds a signature, from a byte on; -1 if it does not."""
    stream.seek(place)
    held = b""
    while block := stream.read(BLOCK_FRAMES):
        if (found := (held + block).find(signature)) >= 0:
            return place - len(held) + found
        place += len(block)
        held = (held + block)[1 - len(signature) :]
    return -1


def _share_present(stream: BinaryIO) -> float:
    """Return the share of the samples of a WAV, AIFF, AU or NIST file that is in the file; 1.0 for other formats.

    Source: Multimedia Programming Interface and Data Specifications 1.0 (RIFF), EBU Tech 3306 (RF64), AIFF-1.3, the
    descriptions of Sun's AU and NIST's SPHERE headers.
    """
    stream.seek(0)
    head = stream.read(1024)
    if head[:4] in (b".snd", b"dns."):
        begin, promised = struct.unpack(">II" if head[:1] == b"." else "<II", head[4:12])
        return _present(stream, begin, promised, promised != 0xFFFFFFFF)
    if head.startswith(b"NIST_1A"):
        sizes = re.findall(rb"^(?:sample_count|channel_count|sample_n_bytes) -i (\d{1,18})", head, re.MULTILINE)
        begin = re.match(rb"NIST_1A\s+(\d{1,9})\s", head)
        return _present(stream, int(begin[1]), math.prod(map(int, sizes))) if begin and len(sizes) == 3 else 1.0
    order: Any = {b"RIFF": "little", b"RF64": "little", b"RIFX": "big", b"FORM": "big"}.get(head[:4])
    if order is None or head[8:12] not in (b"WAVE", b"AIFF", b"AIFC"):
        return 1.0
    large = None
    stream.seek(12)
    while len(chunk := stream.read(8)) == 8:
        kind, size = chunk[:4], int.from_bytes(chunk[4:], order)
        place = stream.tell()
        if kind == b"ds64":
            large = int.from_bytes(stream.read(16)[8:], "little")
        if kind in (b"data", b"SSND"):
            promised = large if large and size == 0xFFFFFFFF else size
            return _present(stream, place, promised, promised < _UNKNOWN_SIZE or promised == large)
        stream.seek(place + size + size % 2)
    return 1.0


def _present(stream: BinaryIO, begin: int, promised: int, known: bool = True) -> float:
    """Return the share of the promised bytes that a file holds from a byte on; 1.0 if the promise is not known."""
    present = stream.seek(0, io.SEEK_END) - begin
    return min(1.0, present / promised) if known and promised > 0 and present > 0 else 1.0


def _ends_within_a_page(stream: BinaryIO) -> bool:
    """Return whether the last page of an Ogg file is incomplete (RFC 3533); libsndfile ignores such a page."""
    stream.seek(0)
    if stream.read(4) != b"OggS":
        return False
    stream.seek(max(0, stream.seek(0, io.SEEK_END) - _OGG_PAGE))
    page = stream.read()
    page = page[max(0, page.rfind(b"OggS")) :]
    return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


# PyAV --------------------------------------------------------------------------------------------------------------


def _container(stream: BinaryIO) -> str | None:
    """Return FFmpeg's name of a format that libsndfile does not read, by the file's first bytes; else None.

    The name is handed to FFmpeg, which otherwise may take a file for a playlist and open what it names.
    """
    stream.seek(0)
    head = stream.read(189)
    stream.seek(0)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return "mov"
    if len(head) == 189 and head[0] == head[188] == 0x47:
        return "mpegts"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"fLaC" and len(head) > 26 and not int.from_bytes(head[21:26], "big") & (1 << 36) - 1:
        return "flac"  # its length is not stated, as in a stream
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:  # an ADTS frame; MP3's has a layer
        return "aac"
    signatures = {b"\x1aE\xdf\xa3": "matroska", b"0&\xb2u": "asf", b"FLV\x01": "flv", b"#!AM": "amr"}
    return signatures.get(head[:4])


@contextlib.contextmanager
def _av_stream(stream: BinaryIO, container: str, name: str) -> Iterator[tuple[Any, Any]]:
    """Open a file's container and its first audio track by PyAV."""
    try:
        import av
    except ImportError:
        raise AudioError(
            name, f"files of this kind ({container}) need the extra `formats`: pip install 'llaso[formats]'"
        ) from None
    try:
        with av.open(stream, format=container, metadata_errors="replace") as opened:
            if not opened.streams.audio:
                raise AudioError(name, "the file holds no sound")
            track = opened.streams.audio[0]
            if track.codec_context is None or not track.rate:  # the head is damaged, or the codec unknown to FFmpeg
                raise AudioError(
                    name, "not readable as audio: its codec or sampling rate is unknown; give another file"
                )
            yield opened, track
    except av.FFmpegError as error:
        raise AudioError(name, f"not readable as audio: {error.strerror or error}; give another file") from None


def _av_seconds(track: Any) -> float | None:
    """Return the length of a track by its header; None if the header has none."""
    if track.duration:
        return float(track.duration * track.time_base)
    return track.container.duration / 1_000_000 if track.container.duration else None


def _av_blocks(
    opened: Any, track: Any, name: str, start: float, end: float | None, max_seconds: float
) -> Iterator[np.ndarray]:
    """Decode a stretch of a track, and compare what is there with the header's promise."""
    from av import AudioResampler, FFmpegError

    rate, promised = int(track.rate), _av_seconds(track) or 0.0
    first, last = round(start * rate), None if end is None else round(end * rate)
    if first < 0 or (last is not None and last <= first):
        raise AudioError(name, "there is no audio in this stretch")
    if (end or promised) - start > max_seconds:
        raise AudioError(name, f"longer than {max_seconds:g} s")
    floats, position = AudioResampler(format="fltp"), 0
    try:
        for frame in itertools.chain(opened.decode(track), [None]):
            for piece in floats.resample(frame):
                block = piece.to_ndarray().T[max(0, first - position) :]
                position += piece.samples
                block = block[: len(block) - max(0, position - (position if last is None else last))]
                if len(block):
                    yield block
            if last is not None and position >= last:
                return
            if position - first > max_seconds * rate:
                raise AudioError(name, f"longer than {max_seconds:g} s")
    except FFmpegError:  # of the packet that the file ends in
        if position:
            _check_arrived(position, promised * rate, rate, name)
        raise
    if position:
        _stretch(position, rate, start, end, name)
    _check_arrived(position, promised * rate if end is None else 0, rate, name)
