"""Measures what exported files hear: `python -m benchmarks exported MODEL --speech MANIFEST` (needs xllamacpp).

Clips are transcribed by the model itself and by llama.cpp with files of each type. The table has the word error rate
with its interval, and how many transcripts have the model's own token ids. With `--loud` the clips are measured a
second time, scaled to a peak of 1: llama.cpp hears silence in quiet recordings differently.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.manifests import evenly, read_manifest
from llaso.commands.option_types import at_least_1
from llaso.exporting.gguf_files import HOP, RATE, WEIGHT_TYPES, WINDOW_SECONDS, export_gguf, refuse_inexpressible
from llaso.exporting.llama_cpp_check import LlamaCppServer, context_for, is_quiet
from llaso.exporting.own_answers import own_answer
from llaso.training.run.held_out import word_errors
from llaso_common.audio import read_audio
from modeling_llaso.loading import end_ids, load
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

DRAWS = 2000
"""Resamples of the clips for an interval."""


@dataclass
class ScoredTranscripts:
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

    def difference(self, other: ScoredTranscripts) -> tuple[float, float]:
        """The 95 % interval of this rate less another's, over the same draws of clips."""
        return _interval(np.asarray(self.errors) - np.asarray(other.errors), np.asarray(self.words))


def _interval(errors: np.ndarray, words: np.ndarray) -> tuple[float, float]:
    drawn = np.random.default_rng(0).integers(len(words), size=(DRAWS, len(words)))
    low, high = np.quantile(errors[drawn].sum(1) / words[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def measure(
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    clips: Sequence[tuple[np.ndarray, str]],
    types: Sequence[str],
    max_new_tokens: int,
    report: Callable[[str], None],
) -> dict[str, ScoredTranscripts]:
    """Transcribe clips by the model and by llama.cpp with files of each type.

    Args:
        model: in single precision.
        processor: the model's.
        clips: samples at 16 kHz, shorter than a window, with their transcripts.
        types: keys of `WEIGHT_TYPES`.
        max_new_tokens: of a transcript, at most.
        report: takes a line when a program is done.

    Returns:
        What each heard; the model's own first, under `"own"`.
    """
    question = processor.default_transcription_prompt
    found = {"own": ScoredTranscripts()}
    for clip, text in clips:
        own = own_answer(model, processor, clip, question, max_new_tokens)
        found["own"].add(processor.decode(own.said, skip_special_tokens=True), text, own.said)
    report(f"own: {found['own'].rate():.3f}")
    ends = set(end_ids(model))
    for kind in types:
        found[kind] = ScoredTranscripts()
        with tempfile.TemporaryDirectory() as folder:
            export_gguf(model, processor, Path(folder, "gguf"), kind)
            with LlamaCppServer(Path(folder, "gguf"), context_for(processor, question, max_new_tokens)) as server:
                for clip, text in clips:
                    answer = server.answer(question, clip, max_new_tokens)
                    ids = [number for number in answer["tokens"] if number not in ends]
                    found[kind].add(answer["content"], text, ids)
        report(f"{kind}: {found[kind].rate():.3f}")
    return found


def table(found: dict[str, ScoredTranscripts]) -> str:
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


def read_clips(manifest: Path, most: int) -> list[tuple[np.ndarray, str]]:
    """Read clips evenly spread over a manifest, without those that are as long as a window or longer."""
    rows = [row for of_source in read_manifest(manifest).values() for row in of_source]
    clips = [(read_audio(manifest.parent / row["audio"]), row["text"]) for row in evenly(rows, most)]
    short = [(clip, text) for clip, text in clips if len(clip) < WINDOW_SECONDS * RATE - HOP]
    if not short:
        raise ValueError(f"{manifest}: no clip is shorter than llama.cpp's window of {WINDOW_SECONDS} s")
    return short


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id, made with audio_padding full")
    parser.add_argument("--speech", type=Path, required=True, help="JSON lines with audio and text")
    parser.add_argument("--clips", type=at_least_1, default=100, help="at most (default: %(default)s)")
    parser.add_argument("--types", nargs="+", choices=WEIGHT_TYPES, default=list(WEIGHT_TYPES))
    parser.add_argument("--max-new-tokens", type=at_least_1, default=128)
    parser.add_argument("--loud", action="store_true", help="measure clips scaled to a peak of 1 as well")
    arguments = parser.parse_args()
    if find_spec("xllamacpp") is None:
        raise ValueError("xllamacpp, which holds llama.cpp, is not installed: pip install xllamacpp")
    clips = read_clips(arguments.speech, arguments.clips)
    model, processor = load(arguments.model, device="cpu")
    refuse_inexpressible(model, processor)
    model = model.float()
    quiet = sum(is_quiet(processor, clip) for clip, _ in clips)
    print(f"{len(clips)} clips, {sum(len(clip) for clip, _ in clips) / RATE / 60:.0f} min, {quiet} of them quiet")
    sets = {"as they are": clips}
    if arguments.loud:
        sets["scaled to a peak of 1"] = [(clip / np.abs(clip).max(), text) for clip, text in clips]
    for how, some in sets.items():
        found = measure(model, processor, some, arguments.types, arguments.max_new_tokens, print)
        print(f"\nclips {how}\n\n{table(found)}\n", flush=True)


if __name__ == "__main__":
    main()
