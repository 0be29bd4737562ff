"""Transcribing a recording of any length for the page: its pieces with their times, as they are done."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..transcription.recordings import decoded
from ..transcription.speech_finders import speech_finder
from ..transcription.transcriber import Transcriber
from ..transcription.transcript_formats import Segment
from .question import NO_RECORDING, DemoModel, StopWhenSet

PIECES_AT_ONCE = 4
"""Pieces of a batch: more are faster, fewer are on the page sooner, and a question waits for one batch."""
TURN_SECONDS = 0.01
"""Pause between two batches, in which a question that waits gets the model: a lock alone has no queue."""
TICK_SECONDS = 0.5
"""An iterator can be closed only while it is not waiting, so it yields at least so often."""


@dataclass(frozen=True)
class GrowingTranscript:
    """A transcript, as far as it is done.

    Attributes:
        segments: the pieces that are done, in order.
        pieces: number of all pieces; 0 before the recording is cut.
        audio_s: length of the recording, seconds; 0 before it is read.
        seconds: time since the request.
        done: whether the transcript is complete.
    """

    segments: tuple[Segment, ...] = ()
    pieces: int = 0
    audio_s: float = 0.0
    seconds: float = 0.0
    done: bool = False


def stream_transcript(
    demo_model: DemoModel, recording: str | None, finder: str = "energy"
) -> Iterator[GrowingTranscript]:
    """Yield the growing transcript; the last one is `done`. Closing the iterator stops the transcription.

    Between two batches of pieces, the model answers questions that wait.

    Args:
        demo_model: the model.
        recording: an audio file; None for an empty recorder.
        finder: name of the speech finder.

    Raises:
        ValueError: there is no recording, it cannot be read, or it holds no speech; the message is shown to the
            visitor.
    """
    if not recording:
        raise ValueError(NO_RECORDING)
    name, stop = Path(recording).name, StopWhenSet()
    transcriber = Transcriber(
        demo_model.model,
        demo_model.processor,
        demo_model.max_new_tokens,
        PIECES_AT_ONCE,
        finder=speech_finder(finder),
        stopping=stop,
    )
    told: queue.SimpleQueue[GrowingTranscript | None] = queue.SimpleQueue()
    errors: list[Exception] = []

    def work() -> None:
        try:
            with decoded(recording, transcriber.rate, name=name) as samples:
                pieces = transcriber.pieces(samples)
                if not pieces:
                    raise ValueError(f"{name}: no speech was found in it.")
                growing = GrowingTranscript((), len(pieces), len(samples) / transcriber.rate)
                told.put(growing)
                batches = transcriber.segments(samples, pieces)
                while len(growing.segments) < len(pieces) and not stop.event.wait(TURN_SECONDS):
                    with demo_model.lock:
                        batch = next(batches)
                    if not stop.event.is_set():  # otherwise its texts are cut off
                        growing = replace(growing, segments=(*growing.segments, *batch))
                        told.put(growing)
        except Exception as error:  # raised again below, in the thread that asked
            errors.append(error)
        finally:
            told.put(None)

    started = time.perf_counter()
    worker = threading.Thread(target=work, name="transcript", daemon=True)
    worker.start()
    growing: GrowingTranscript | None = GrowingTranscript()
    try:
        while growing is not None:
            latest = replace(growing, seconds=time.perf_counter() - started)
            yield latest
            try:
                growing = told.get(timeout=TICK_SECONDS)
            except queue.Empty:
                pass
    finally:
        stop.event.set()
        worker.join()
    if errors:
        raise errors[0]
    yield replace(latest, done=True, seconds=time.perf_counter() - started)
