"""Walks the frames of an MP3 file that does not state its length, or states less than it holds.

libsndfile estimates the length of a file without a header frame (Xing, Info, VBRI) from its first frame, believes the
first header of several files in one, and decodes no further. Here the frames are counted, and a header frame that
states their number is put before them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Hz by the version's bits (3 is MPEG-1, 2 MPEG-2, 0 MPEG-2.5) and the rate's (ISO/IEC 11172-3 and 13818-3)."""
_KBITS_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SEARCHED = 1 << 16
"""Bytes in which the next frame is looked for, at the beginning and after anything that is no frame."""
_ID3V1 = 128
"""Bytes of the tag that a file may end in."""


@dataclass(frozen=True)
class Mp3Frames:
    """The frames of an MP3 file.

    Attributes:
        count: whole frames.
        incomplete: whether the file ends within a frame.
        start: byte at which the first one begins; a tag with a picture may precede it.
        header: the first one's four bytes.
    """

    count: int
    incomplete: bool
    start: int
    header: bytes

    def with_length(self, stream: BinaryIO) -> BinaryIO:
        """Return the frames of the file, with an Info frame before them that states their number."""
        unpadded = bytes((0xFF, self.header[1] | 1, self.header[2] & ~2, self.header[3]))  # and without a checksum
        frame = bytearray(_frame_length(unpadded))
        frame[:4], place = unpadded, _tag_place(unpadded)
        frame[place : place + 12] = b"Info" + (1).to_bytes(4, "big") + self.count.to_bytes(4, "big")
        return io.BufferedReader(_Prefixed(bytes(frame), stream, self.start))


def unstated_frames(stream: BinaryIO) -> Mp3Frames | None:
    """Count the frames of an MP3 file whose header does not state their number.

    Args:
        stream: the file, seekable.

    Returns:
        The frames; None if a header states them all, or if the bit rate is free, so that no frame tells its length.
    """
    size = stream.seek(0, io.SEEK_END)
    start = _next_frame(stream, 0)
    if start is None:
        return None
    header = _read(stream, start, 4)
    stated, stated_bytes = _stated(_read(stream, start, 200))
    if stated and start + stated_bytes + _ID3V1 >= size:
        return None
    place: int | None = start
    count, incomplete = 0, False
    while place is not None and place < size:
        here = _read(stream, place, 4)
        length = _frame_length(here, header)
        if length:
            incomplete = place + length > size
            count += not incomplete
            place += length
        elif len(here) < 4:
            incomplete = len(here) > 1 and header.startswith(here[:2])
            break
        else:
            place = _next_frame(stream, place, header)
    return None if stated >= count - 1 else Mp3Frames(count, incomplete, start, header)  # the header is a frame itself


class _Prefixed(io.RawIOBase):
    """Some bytes, followed by a file from the byte `start` on."""

    def __init__(self, prefix: bytes, stream: BinaryIO, start: int):
        self._prefix, self._stream, self._skipped, self._place = prefix, stream, start - len(prefix), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += self._stream.seek(0, io.SEEK_END) - self._skipped
        self._place = offset + (self._place if whence == io.SEEK_CUR else 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        if self._place < len(self._prefix):
            data = self._prefix[self._place : self._place + len(buffer)]
        else:
            data = _read(self._stream, self._place + self._skipped, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _frame_length(header: bytes, like: bytes | None = None) -> int:
    """Return the bytes of a Layer III frame by its header; 0 if it is none, or its version or rate is not `like`'s."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, kbits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbits in (0, 15) or rate == 3:
        return 0
    if like is not None and (like[1] >> 3 & 3, like[2] >> 2 & 3) != (version, rate):
        return 0
    eighth, table = (144, _KBITS_1) if version == 3 else (72, _KBITS_2)  # of a frame's samples
    return eighth * table[kbits - 1] * 1000 // _RATES[version][rate] + (header[2] >> 1 & 1)


def _stated(frame: bytes) -> tuple[int, int]:
    """Return the frames and bytes of a file by its first frame; zeros if it is no header frame or leaves them out."""
    place = _tag_place(frame)
    if frame[place : place + 4] in (b"Xing", b"Info") and frame[place + 7] & 3 == 3:
        frames, size = frame[place + 8 : place + 12], frame[place + 12 : place + 16]
    elif frame[36:40] == b"VBRI":
        frames, size = frame[50:54], frame[46:50]
    else:
        return 0, 0
    return int.from_bytes(frames, "big"), int.from_bytes(size, "big")


def _tag_place(header: bytes) -> int:
    """Return where in a header frame "Xing" or "Info" stands: after the side information."""
    mono = header[3] >> 6 == 3
    return 4 + ((17 if mono else 32) if header[1] >> 3 & 3 == 3 else (9 if mono else 17))


def _next_frame(stream: BinaryIO, place: int, like: bytes | None = None) -> int | None:
    """Return where the next frame begins that another follows; None if there is none nearby."""
    while (tag := _read(stream, place, 10))[:3] == b"ID3" and len(tag) == 10:
        place += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
    window = _read(stream, place, _SEARCHED)
    at = window.find(b"\xff")
    while at >= 0:
        header = window[at : at + 4]
        if length := _frame_length(header, like):
            if _frame_length(_read(stream, place + at + length, 4), header):
                return place + at
        at = window.find(b"\xff", at + 1)
    return None


def _read(stream: BinaryIO, place: int, count: int) -> bytes:
    stream.seek(place)
    return stream.read(count)
