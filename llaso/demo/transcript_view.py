"""A transcript with times as the page shows it: how far it is, files to download, and a table of its pieces."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from ..transcription.transcript_formats import transcript
from .timed_transcript import GrowingTranscript

EMPTY_TRANSCRIPT = '<div class="seen empty">What is said, with times, appears here.</div>'
FILE_TYPES = {"srt": "application/x-subrip", "vtt": "text/vtt", "json": "application/json", "text": "text/plain"}
"""Media types of the files by their formats."""


def transcript_html(growing: GrowingTranscript, recording: str) -> str:
    """Return the HTML of a transcript.

    Args:
        growing: the transcript.
        recording: its audio file, after which the downloads are named.
    """
    reached = growing.audio_s if growing.done else growing.segments[-1].end if growing.segments else 0.0
    value = f' value="{reached / growing.audio_s:.4f}"' if growing.audio_s else ""
    parts = [f'<progress aria-label="Transcribed"{value}></progress>']
    if growing.audio_s:
        parts.append(f'<p class="hint">{time_text(reached)} of {time_text(growing.audio_s)}</p>')
    if growing.segments:
        links = " ".join(_link(growing, format, Path(recording)) for format in FILE_TYPES)
        parts.append(f'<p class="files">Download {links}</p>')
    rows = "".join(
        f"<tr><td>{time_text(segment.start)}</td><td>{time_text(segment.end)}</td>"
        f"<td>{html.escape(segment.text)}</td></tr>"
        for segment in growing.segments
        if segment.text
    )
    if rows:
        head = "<thead><tr><th>Start</th><th>End</th><th>Text</th></tr></thead>"
        parts.append(f'<div class="pieces" tabindex="0"><table>{head}<tbody>{rows}</tbody></table></div>')
    return f'<div class="transcript">{"".join(parts)}</div>'


def time_text(seconds: float) -> str:
    """Format a time with tenths of a second, and hours if there are any."""
    tenths = round(10 * seconds)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    shown = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{shown}:{tenths // 10:02}.{tenths % 10}"


def _link(growing: GrowingTranscript, format: str, recording: Path) -> str:
    """Return a link that holds the file itself, so that no transcript is kept on the server."""
    content = transcript(growing.segments, format, growing.audio_s, recording.name)
    encoded = base64.b64encode(content.encode()).decode()
    file = html.escape(f"{recording.stem}.{'txt' if format == 'text' else format}")
    return f'<a download="{file}" href="data:{FILE_TYPES[format]};charset=utf-8;base64,{encoded}">{format}</a>'
