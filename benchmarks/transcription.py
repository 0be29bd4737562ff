"""Measures `llaso transcribe` on an hour of speech with known pieces, and the live transcription of `llaso serve`.

The recording is made of strings of digits that the model has not heard, over faint noise, with pauses between them.
Its word error rate is set against that of the same strings given by hand, piece by piece. The command is killed on its
way and started again; its memory is watched all along. What goes out is a report and a picture of the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
from rapidfuzz.distance import Levenshtein

from benchmarks.digits_model import DigitString, digit_string, noisy, read_digits
from benchmarks.serving import server
from llaso.transcription.transcriber import Transcriber
from llaso_common.audio import SAMPLE_RATE
from modeling_llaso.loading import load

NOISE = 1e-3
"""Root mean square of the noise; speech has about a tenth."""
PAUSES = (0.7, 2.0)
"""Seconds between two strings, least and most."""
WATCH_SECONDS = 0.25
TOKENS = 32


@dataclass(frozen=True)
class Recording:
    """Strings in one recording, and where each begins, in samples."""

    samples: np.ndarray
    strings: list[DigitString]
    starts: list[int]

    @property
    def words(self) -> list[str]:
        """Return everything that is said."""
        return [word for string in self.strings for word in string.words]


def recording(digits: Path, seconds: float) -> Recording:
    """Make a recording of held-out digits, at least so long."""
    held_out, chance = read_digits(digits, held_out=True), random.Random("recording")
    parts, strings, starts, length = [np.zeros(SAMPLE_RATE, np.float32)], [], [], SAMPLE_RATE
    while length < seconds * SAMPLE_RATE:
        string = digit_string(held_out, chance)
        pause = np.zeros(round(chance.uniform(*PAUSES) * SAMPLE_RATE), np.float32)
        strings.append(string)
        starts.append(length)
        parts += [string.samples, pause]
        length += len(string.samples) + len(pause)
    return Recording(noisy(np.concatenate(parts), 0, NOISE).clip(-1, 1), strings, starts)


def error_rate(said: list[str], heard: list[str]) -> float:
    """Return the word error rate of one long text."""
    return Levenshtein.distance(said, heard) / len(said)


def by_hand(transcriber: Transcriber, made: Recording) -> list[str]:
    """Return the words heard in each string, cut where it is known to begin and end."""
    spans = [(start, start + len(one.samples)) for start, one in zip(made.starts, made.strings, strict=True)]
    return [
        word
        for batch in transcriber.segments(made.samples, spans)
        for segment in batch
        for word in segment.text.split()
    ]


def watched(command: list[str], kill: Path | None = None, pieces: int = 0) -> tuple[list[tuple[float, float]], float]:
    """Run a command; return its resident MiB over time, and its seconds.

    Args:
        command: what to run.
        kill: a file of segments; once it holds `pieces` of them, the command is killed by SIGKILL.
        pieces: see `kill`.
    """
    started, curve = time.monotonic(), []
    with subprocess.Popen(command) as process:
        running = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                curve.append((time.monotonic() - started, running.memory_info().rss / 2**20))
            except psutil.NoSuchProcess:
                break
            if kill is not None and kill.exists() and kill.read_bytes().count(b"\n") > pieces:
                process.kill()
                break
            time.sleep(WATCH_SECONDS)
    if kill is None and process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return curve, time.monotonic() - started


def long_recording(model: str, made: Recording, out: Path) -> tuple[list[str], dict[str, Any]]:
    """Transcribe a recording by the command, killed at two fifths and started again.

    Returns:
        The words that were heard, and what was measured.
    """
    file, result = out / "recording.wav", out / "recording.json"
    soundfile.write(file, made.samples, SAMPLE_RATE, subtype="PCM_16")
    result.unlink(missing_ok=True)
    partial = out / f"{result.name}.partial" / "0.jsonl"
    partial.unlink(missing_ok=True)
    command = [sys.executable, "-m", "llaso.cli", "transcribe", str(file), "--model", model, "--device", "cpu"]
    command += ["--format", "json", "--out", str(result), "--max-new-tokens", str(TOKENS)]
    first, first_seconds = watched(command, partial, 2 * len(made.strings) // 5)
    if result.exists():
        raise SystemExit("the command had finished before it could be killed; take more --minutes")
    kept = partial.read_bytes().count(b"\n") - 1
    second, second_seconds = watched(command)
    record = json.loads(result.read_text(encoding="utf-8"))
    measured = {
        "seconds_of_sound": record["duration"],
        "pieces_found": len(record["segments"]),
        "kept_after_the_kill": kept,
        "seconds": {"until_killed": first_seconds, "after": second_seconds},
        "most_resident_mib": max(mib for _, mib in [*first, *second]),
        "curves": {"killed": first, "resumed": second},
    }
    return record["text"].split(), measured


# --- live ------------------------------------------------------------------------------------------------------------


async def live(model: str, made: Recording, seconds: float) -> dict[str, Any]:
    """Speak the beginning of a recording into a server in real time; measure how long each piece's transcript takes.

    Returns:
        Pieces, the delay of their transcripts from their last sound as a share of their length, and the passes.
    """
    import openai

    ended: dict[str, float] = {}
    begun: dict[str, float] = {}
    shares, delays, deltas = [], [], 0
    samples = made.samples[: round(seconds * SAMPLE_RATE)]
    with server(model) as (url, _):
        client = openai.AsyncOpenAI(base_url=url, api_key="none")
        for _ in range(600):
            try:
                await client.models.list()
                break
            except openai.APIConnectionError:
                await asyncio.sleep(0.1)
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            sound = {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}}
            await connection.session.update(session={"type": "transcription", "audio": {"input": sound}})
            started = time.monotonic()

            async def speak() -> None:
                block = SAMPLE_RATE // 10
                for start in range(0, len(samples), block):
                    await asyncio.sleep(max(0.0, started + start / SAMPLE_RATE - time.monotonic()))
                    pcm = (samples[start : start + block] * 32767).astype("<i2").tobytes()
                    await connection.input_audio_buffer.append(audio=base64.b64encode(pcm).decode())

            speaking = asyncio.create_task(speak())
            while not (speaking.done() and len(shares) == len(ended)):
                try:
                    event = await asyncio.wait_for(connection.recv(), 5)
                except TimeoutError:
                    continue
                if event.type == "error" or event.type.endswith(".failed"):
                    raise RuntimeError(f"the server answered {event}")
                if event.type == "input_audio_buffer.speech_started":
                    begun[event.item_id] = event.audio_start_ms / 1000
                elif event.type == "input_audio_buffer.speech_stopped":
                    ended[event.item_id] = event.audio_end_ms / 1000
                elif event.type == "conversation.item.input_audio_transcription.delta":
                    deltas += event.item_id not in ended
                elif event.type == "conversation.item.input_audio_transcription.completed":
                    now = time.monotonic() - started
                    delays.append(now - ended[event.item_id])
                    shares.append(delays[-1] / (ended[event.item_id] - begun[event.item_id]))
        await client.close()
    return {
        "seconds": seconds,
        "pieces": len(shares),
        "deltas_while_speaking": deltas,
        "delay_seconds": {"median": statistics.median(delays), "most": max(delays)},
        "delay_by_length": {"median": statistics.median(shares), "most": max(shares)},
    }


# --- the report ------------------------------------------------------------------------------------------------------


def draw(curves: dict[str, list[tuple[float, float]]], file: Path) -> None:
    """Draw the memory of the killed run and of the one that went on."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    begin = 0.0
    for label, color in (("killed", "#9a9a9a"), ("resumed", "#4f46e5")):
        times, mib = np.array(curves[label]).T
        axes.plot(
            begin + times, mib, color=color, label={"killed": "until SIGKILL", "resumed": "the same command"}[label]
        )
        begin += times[-1]
    axes.set(xlabel="seconds", ylabel="resident MiB", ylim=(0, None), title="An hour of speech: llaso transcribe")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transcription", description=__doc__)
    parser.add_argument("model", metavar="DIR", help="a checkpoint, of benchmarks.digits_model for one")
    parser.add_argument("digits", type=Path, metavar="DIGITS", help="the Free Spoken Digit Dataset")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--live-seconds", type=float, default=60, help="spoken into a server in real time")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/transcription"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    made = recording(arguments.digits, 60 * arguments.minutes)
    report: dict[str, Any] = {"cores": os.cpu_count(), "strings": len(made.strings), "words": len(made.words)}

    def add(**measured: Any) -> None:
        """Add to the report and write it: an hour takes long, and what is measured is kept."""
        report.update(measured, load=os.getloadavg()[0])
        (arguments.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    heard, measured = long_recording(arguments.model, made, arguments.out)
    draw(measured.pop("curves"), arguments.out / "memory.png")
    found = error_rate(made.words, heard)
    add(**measured, word_error_rate={"found": found})
    alone = error_rate(made.words, by_hand(Transcriber(*load(arguments.model, "cpu"), max_new_tokens=TOKENS), made))
    add(word_error_rate={"found": found, "by_hand": alone}, ratio=found / alone)
    add(live=asyncio.run(live(arguments.model, made, arguments.live_seconds)))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
