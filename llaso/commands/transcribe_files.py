"""Transcribing several files into one output: what `llaso transcribe` does.

Files are read as they are needed; one that cannot be read is reported, and the others are transcribed. If the output
is a file, finished segments are kept beside it until it is complete, so that the same command continues after an
interruption.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from llaso_common.atomic_write import write_atomically
from llaso_common.folder_lock import FolderBusy, alone_in

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
        out: file to write; printed by default. Finished segments are kept in the folder `OUT.partial` until then.

    Returns:
        The number of files that could not be transcribed. Each was reported on the standard error stream.

    Raises:
        ValueError: several files in a format for one recording, nowhere to print, or another process writes the same
            output.
    """
    if format in ("srt", "vtt") and len(files) > 1:
        raise ValueError(f"--format {format} describes one recording; name one FILE, or use text or json")
    if out is None:
        if sys.stdout is None:
            raise ValueError("the standard output is closed, and the transcript would be lost; name a file with --out")
        return _transcribe(files, load, format, None, lambda text: print(text, end="", flush=True))
    unfinished, transcripts = out.with_name(f"{out.name}.partial"), list[str]()
    try:
        with alone_in(unfinished):
            failed = _transcribe(files, load, format, unfinished, transcripts.append)
            if transcripts:
                write_atomically(out, "".join(transcripts))
                for number in range(len(files)):
                    _segments_of(number, unfinished).unlink(missing_ok=True)
    except FolderBusy as busy:
        raise ValueError(
            f"{out} is being written by {busy.holder}; wait for it, stop it, or name another --out"
        ) from busy
    with suppress(OSError):  # it holds segments of an earlier command with more files
        unfinished.rmdir()
    return failed


def _transcribe(
    files: Sequence[str],
    load: Callable[[], Transcriber],
    format: str,
    unfinished: Path | None,
    give: Callable[[str], object],
) -> int:
    """Transcribe files, and give the transcript of each; finished segments are kept in the folder `unfinished`."""
    several, failed = len(files) > 1, 0
    transcriber: Transcriber | None = None
    for number, file in enumerate(files):
        if not Path(file).is_file():
            failed += _report(f"{shown_name(file)}: {_what_it_is(Path(file))}")
            continue
        transcriber = transcriber or load()
        try:
            with tqdm(desc=file, unit="s", bar_format=BAR, disable=not sys.stderr.isatty(), leave=False) as bar:

                def progress(done: float, seconds: float, bar: tqdm = bar) -> None:
                    bar.total = round(seconds)
                    bar.update(round(done) - bar.n)

                segments, seconds = transcriber.transcribe_file(
                    file,
                    times=format != "text",
                    partial=None if unfinished is None else _segments_of(number, unfinished),
                    progress=progress,
                )
        except ValueError as error:
            failed += _report(str(error))
            continue
        except OSError as error:
            raise OSError(f"{shown_name(file)}: {error}; the temporary folder is {tempfile.gettempdir()}") from error
        cut = [segment for segment in segments if segment.finish_reason == "length"]
        if cut:
            print(
                f"llaso: warning: {shown_name(file)}: {len(cut)} of {len(segments)} segments were cut at "
                f"{transcriber.max_new_tokens} tokens, the first at {cut[0].start:.1f} s; raise --max-new-tokens",
                file=sys.stderr,
            )
        if format in ("srt", "vtt") and not any(segment.text for segment in segments):
            print(f"llaso: warning: {shown_name(file)}: no words in {len(segments)} segments", file=sys.stderr)
        content = transcript(segments, format, seconds, shown_name(file))
        give(f"{shown_name(file)}: {content}" if format == "text" and several else content)
    return failed


def shown_name(file: str) -> str:
    """Return a file's name as text: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(file).decode("utf-8", "replace")


def _segments_of(number: int, unfinished: Path) -> Path:
    """The file that keeps the segments of one of the recordings."""
    return unfinished / f"{number}.jsonl"


def _what_it_is(path: Path) -> str:
    if path.is_dir():
        return "a folder; name the files in it"
    return "not a regular file; copy its content into one" if path.exists() else "there is no such file"


def _report(reason: str) -> int:
    """Report why a file failed; return 1, to be counted."""
    print(f"llaso: error: {reason}", file=sys.stderr)
    return 1
