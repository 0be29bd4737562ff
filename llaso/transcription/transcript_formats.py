"""Transcripts as text, JSON, SRT and WebVTT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

FORMATS = ("text", "json", "srt", "vtt")


@dataclass(frozen=True)
class Segment:
    """A transcribed piece.

    Args:
        start: seconds from the beginning of the recording.
        end: likewise.
        text: its transcript; empty if nothing was said.
        avg_logprob: mean log-probability of its tokens, the end token included.
        finish_reason: "stop", or "length" if the transcript was cut at the maximum number of tokens.
    """

    start: float
    end: float
    text: str
    avg_logprob: float
    finish_reason: str = "stop"


def joined_text(segments: Sequence[Segment]) -> str:
    """Return the text of all segments."""
    return " ".join(segment.text for segment in segments if segment.text)


def transcript(segments: Sequence[Segment], format: str, duration: float, file: str | None = None) -> str:
    """Format a transcript.

    Args:
        segments: the transcribed pieces, in order.
        format: one of `FORMATS`.
        duration: length of the recording, seconds.
        file: name of the recording, for JSON.

    Returns:
        The transcript, ending in a line break.
    """
    if format == "text":
        return joined_text(segments) + "\n"
    if format == "json":
        record = {"file": file, "duration": duration, "text": joined_text(segments)}
        return json.dumps({**record, "segments": list(map(asdict, segments))}, ensure_ascii=False) + "\n"
    spoken = [segment for segment in segments if segment.text]
    if format == "srt":
        cues = [f"{number}\n{_cue(segment, ',')}" for number, segment in enumerate(spoken, 1)]
        return "\n".join(cues)
    if format == "vtt":
        return "\n".join(["WEBVTT\n", *(_cue(segment, ".", escape=True) for segment in spoken)])
    raise ValueError(f"the format is {format!r}; choose one of {', '.join(FORMATS)}")


def _cue(segment: Segment, decimal: str, escape: bool = False) -> str:
    """Return the times and text of a cue; a blank line in the text would end it, and players refuse controls."""
    text = "".join(letter for letter in " ".join(segment.text.split()) if letter.isprintable())
    if escape:
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_clock(segment.start, decimal)} --> {_clock(segment.end, decimal)}\n{text}\n"


def _clock(seconds: float, decimal: str) -> str:
    """Format a time as HH:MM:SS,mmm."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{decimal}{milliseconds % 1000:03}"
