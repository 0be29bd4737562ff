"""Measures what exported files hear: `python -m benchmarks exported MODEL --speech MANIFEST` (needs xllamacpp).

Clips are transcribed by the model itself and by llama.cpp with files of each type. The table has the word error rate
with its interval, and how many transcripts have the model's own token ids. `--loud` scales every clip to a peak of 1
first, once more: llama.cpp hears silence in quiet recordings differently.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llaso.exporting.gguf_files import RATE, WEIGHT_TYPES, WINDOW_SECONDS, export_gguf
from llaso.exporting.llama_cpp_check import LlamaCppServer, context_for, is_quiet
from llaso.exporting.own_answers import end_ids, own_answer
from llaso.training.run.held_out import word_errors
from llaso_common.audio import read_audio
from modeling_llaso.loading import load

DRAWS = 2000
"""Resamples of the clips for an interval."""


@dataclass
class Heard:
    """The answers of one program to all clips.

    Attributes:
        errors: wrong words of each clip.
        words: words of each clip's reference.
        ids: of each transcript, without the token that ends it.
    """

    errors: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)

    def add(self, text: str, reference: str, ids: list[int]) -> None:
        """Score a transcript."""
        errors, words = word_errors(text, reference)
        self.errors.append(errors)
        self.words.append(words)
        self.ids.append(ids)

    def rate(self) -> float:
        """The word error rate over all clips."""
        return sum(self.errors) / sum(self.words)

    def interval(self) -> tuple[float, float]:
        """Its 95 % interval: clips drawn with replacement."""
        return _interval(np.asarray(self.errors), np.asarray(self.words))

    def difference(self, other: Heard) -> tuple[float, float]:
        """The 95 % interval of this rate less another's, over the same draws of clips."""
        return _interval(np.asarray(self.errors) - np.asarray(other.errors), np.asarray(self.words))


def _interval(errors: np.ndarray, words: np.ndarray) -> tuple[float, float]:
    drawn = np.random.default_rng(0).integers(len(words), size=(DRAWS, len(words)))
    low, high = np.quantile(errors[drawn].sum(1) / words[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def measure(
    name: str, clips: Sequence[tuple[np.ndarray, str]], types: Sequence[str], max_new_tokens: int, report: Callable
) -> dict[str, Heard]:
    """Transcribe clips by the model and by llama.cpp with files of each type.

    Args:
        name: the model's folder or Hub id.
        clips: samples at 16 kHz, shorter than a window, with their transcripts.
        types: keys of `WEIGHT_TYPES`.
        max_new_tokens: of a transcript, at most.
        report: takes a line when a program is done.

    Returns:
        What each heard; the model's own first, under `"own"`.
    """
    model, processor = load(name, device="cpu")
    model = model.float()
    question = processor.default_transcription_prompt
    found = {"own": Heard()}
    for clip, text in clips:
        own = own_answer(model, processor, clip, question, max_new_tokens)
        found["own"].add(processor.decode(own.said, skip_special_tokens=True), text, own.said)
    report(f"own: {found['own'].rate():.3f}")
    ends = set(end_ids(model))
    for kind in types:
        found[kind] = Heard()
        with tempfile.TemporaryDirectory() as folder:
            export_gguf(model, processor, Path(folder, "gguf"), kind)
            server = LlamaCppServer(Path(folder, "gguf"), context_for(processor, question, max_new_tokens))
            for clip, text in clips:
                answer = server.answer(question, clip, max_new_tokens)
                ids = [number for number in answer["tokens"] if number not in ends]
                found[kind].add(answer["content"], text, ids)
            del server
        report(f"{kind}: {found[kind].rate():.3f}")
    return found


def table(found: dict[str, Heard]) -> str:
    """Write the measurements as a Markdown table."""
    own = found["own"]
    lines = ["| | WER | less the model's own | equal ids |", "|---|---|---|---|"]
    for name, heard in found.items():
        low, high = heard.interval()
        cells = [f"`{name}`", f"{heard.rate():.3f} ({low:.3f} to {high:.3f})", "–", "–"]
        if heard is not own:
            less, more = heard.difference(own)
            equal = sum(one == other for one, other in zip(heard.ids, own.ids, strict=True))
            cells[2:] = [
                f"{heard.rate() - own.rate():+.3f} ({less:+.3f} to {more:+.3f})",
                f"{equal} of {len(own.ids)}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_manifest(manifest: Path, count: int) -> list[tuple[np.ndarray, str]]:
    """Read clips shorter than a window, evenly spread over a manifest of JSON lines (`audio`, `text`)."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    clips = []
    for row in rows[:: max(1, len(rows) // count)]:
        clip = read_audio(manifest.parent / row["audio"])
        if len(clip) < WINDOW_SECONDS * RATE and row["text"].strip():
            clips.append((clip, row["text"]))
    return clips[:count]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id, made with audio_padding full")
    parser.add_argument("--speech", type=Path, required=True, help="JSON lines with audio and text")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--types", nargs="+", choices=WEIGHT_TYPES, default=list(WEIGHT_TYPES))
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--loud", action="store_true", help="measure clips scaled to a peak of 1 as well")
    arguments = parser.parse_args()
    clips = read_manifest(arguments.speech, arguments.clips)
    _, processor = load(arguments.model, device="cpu")
    quiet = sum(is_quiet(processor, clip) for clip, _ in clips)
    print(f"{len(clips)} clips, {sum(len(clip) for clip, _ in clips) / RATE / 60:.0f} min, {quiet} of them quiet")
    sets = {"as they are": clips}
    if arguments.loud:
        sets["scaled to a peak of 1"] = [(clip / np.abs(clip).max(), text) for clip, text in clips]
    for how, some in sets.items():
        found = measure(arguments.model, some, arguments.types, arguments.max_new_tokens, print)
        print(f"\nclips {how}\n\n{table(found)}\n", flush=True)


if __name__ == "__main__":
    main()
