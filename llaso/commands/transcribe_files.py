"""Transcribing several files into one output: what `llaso transcribe` does.

Files are read as they are needed; one that cannot be read is reported, and the others are transcribed. If the output
is a file, finished segments are kept beside it until it is complete, so that the same command continues after an
interruption.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from llaso_common.atomic_write import write_atomically

from ..transcription.transcriber import Transcriber
from ..transcription.transcript_formats import transcript

BAR = "{desc} {percentage:3.0f} % of {total} s [{elapsed}<{remaining}]"


def transcribe_files(
    files: Sequence[str],
    load: Callable[[], Transcriber],
    format: str = "text",
    out: Path | None = None,
) -> int:
    """Transcribe files, and print the transcripts or write them to `out`.

    Args:
        files: audio files.
        load: loads the model; called once, before the first file that exists is transcribed.
        format: one of `FORMATS`. SRT and WebVTT describe one recording.
        out: file to write; printed by default.

    Returns:
        The number of files that could not be transcribed. Each was reported on the standard error stream.

    Raises:
        ValueError: several files in a format for one recording.
    """
    if format in ("srt", "vtt") and len(files) > 1:
        raise ValueError(f"a {format} file describes one recording; name one FILE, or use --format text or json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    several, failed = len(files) > 1, 0
    transcriber: Transcriber | None = None
    transcripts, partials = [], []
    for number, file in enumerate(files):
        if not Path(file).is_file():
            folder = Path(file).is_dir()
            failed += _report(f"{file}: {'a folder; name the files in it' if folder else 'there is no such file'}")
            continue
        transcriber = transcriber or load()
        partial = None if out is None else out.with_name(f"{out.name}.{number}.partial")
        try:
            with tqdm(desc=file, unit="s", bar_format=BAR, disable=not sys.stderr.isatty(), leave=False) as bar:

                def progress(done: float, seconds: float, bar: tqdm = bar) -> None:
                    bar.total = round(seconds)
                    bar.update(round(done) - bar.n)

                segments, seconds = transcriber.transcribe_file(
                    file, times=format != "text", partial=partial, progress=progress
                )
        except ValueError as error:
            failed += _report(str(error))
            continue
        cut = [segment for segment in segments if segment.finish_reason == "length"]
        if cut:
            print(
                f"llaso: warning: {file}: {len(cut)} of {len(segments)} segments were cut at "
                f"{transcriber.max_new_tokens} tokens, the first at {cut[0].start:.1f} s; raise --max-new-tokens",
                file=sys.stderr,
            )
        content = transcript(segments, format, seconds, file)
        if format == "text" and several:
            content = f"{file}: {content}"
        if out is None:
            print(content, end="", flush=True)
        else:
            transcripts.append(content)
            partials.append(partial)
    if out is not None and transcripts:
        write_atomically(out, "".join(transcripts))
        for partial in filter(None, partials):
            partial.unlink()
    return failed


def _report(reason: str) -> int:
    """Report why a file failed; return 1, to be counted."""
    print(f"llaso: error: {reason}", file=sys.stderr)
    return 1
