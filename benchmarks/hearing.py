"""Measures what a Whisper hears in `trim` against `full`: `make bench ARGS="hearing --encoder DIR --speech MANIFEST"`.

No training is needed. The encoder's vectors of the real frames are compared, layer by layer and by their distance from
the end of the clip, and Whisper's own decoder transcribes from the vectors of each setting. `trim + 1 s` leaves a
second of silence behind the clip, of which the encoder's vectors are handed on, too.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.manifests import evenly, read_manifest
from llaso.commands.option_types import at_least_1, seconds_up_to_10
from llaso.training.run.held_out import word_errors
from llaso_common.audio import ENCODER_FRAMES_PER_SECOND, MEL_FRAMES_PER_SECOND, SAMPLE_RATE, read_audio
from llaso_common.output_folder import refuse_existing
from modeling_llaso.compatibility_llaso import CACHE_SINCE_5_24
from modeling_llaso.configuration_llaso import count_audio_tokens
from modeling_llaso.modeling_llaso import LlasoEncoder
from modeling_llaso.processing_llaso import LlasoProcessor, add_audio_tokens

FULL, TRIM = "full", "trim"
TAILS = (0.2, 0.5, 1.0, 2.0)
"""Seconds of silence left behind a clip."""
NEAR_THE_END = 10
"""Vectors that the table calls the last 0.2 s."""
MOST_TOKENS = 224
"""Of a transcript, as OpenAI's decoder has it; what never ends is cut there."""
START = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")


def setting_names(tails: Sequence[float]) -> dict[str, float | None]:
    """Return the seconds of silence behind the clip by setting; None stands for whole windows."""
    return {FULL: None, TRIM: 0.0} | {f"{TRIM} + {tail:g} s": tail for tail in tails}


@dataclass(frozen=True)
class SpokenClip:
    """One recording with its transcript: samples mono at 16 kHz."""

    samples: np.ndarray
    text: str
    source: str


class WhisperBaseline:
    """A Whisper's encoder as LLaSO runs it, and its own decoder.

    Args:
        whisper: folder or Hub id.
    """

    def __init__(self, whisper: str) -> None:
        from transformers import AutoConfig, AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        if (kind := AutoConfig.from_pretrained(whisper).model_type) != "whisper":
            raise ValueError(f"{whisper}: this is a {kind}, not a Whisper")
        self.whisper = WhisperForConditionalGeneration.from_pretrained(whisper, dtype=torch.float32).eval()
        self.encoder = LlasoEncoder(self.whisper.config).eval()
        self.encoder.load_state_dict(self.whisper.model.encoder.state_dict())
        self.tokenizer = AutoTokenizer.from_pretrained(whisper)
        self.end = self.whisper.config.eos_token_id
        self.start = self.tokenizer.convert_tokens_to_ids(list(START))
        self.not_first = [
            self.end,
            *self.tokenizer(" ", add_special_tokens=False)["input_ids"],
        ]  # as in OpenAI's decoder
        extractor, tokenizer = WhisperFeatureExtractor.from_pretrained(whisper), AutoTokenizer.from_pretrained(whisper)
        add_audio_tokens(tokenizer)
        made = {
            padding: LlasoProcessor(extractor, tokenizer, chat_template="none", audio_padding=padding)
            for padding in (FULL, TRIM)
        }
        self.log_mel = {padding: processor.log_mel for padding, processor in made.items()}

    @torch.no_grad()
    def states(self, samples: np.ndarray, tail: float | None) -> list[torch.Tensor]:
        """Return the encoder's states `(vectors, d_model)`: before the first layer, after each, and its output."""
        if tail is None:
            (mel,) = self.log_mel[FULL]([samples])
        else:
            silence = np.zeros(round(tail * SAMPLE_RATE), dtype=np.float32)
            (mel,) = self.log_mel[TRIM]([np.concatenate([samples, silence])])
        found: list[torch.Tensor] = []
        hooks = [self.encoder.layers[0].register_forward_pre_hook(lambda module, given: found.append(given[0][0]))]
        hooks += [
            layer.register_forward_hook(
                lambda module, given, out: found.append((out if torch.is_tensor(out) else out[0])[0])
            )
            for layer in self.encoder.layers
        ]
        output = self.encoder(mel[None]).last_hidden_state[0]
        for hook in hooks:
            hook.remove()
        return [*found, output]

    @torch.no_grad()
    def transcribe(self, vectors: torch.Tensor, most_tokens: int = MOST_TOKENS) -> tuple[str, bool]:
        """Transcribe the encoder's output `(vectors, d_model)` greedily by Whisper's own decoder.

        Returns:
            The transcript, and whether it ended within `most_tokens`.
        """
        said: list[int] = []
        ended = False
        ids, cache = torch.tensor([self.start]), None
        while not ended and len(said) < most_tokens:
            out = self.whisper.model.decoder(
                input_ids=ids, encoder_hidden_states=vectors[None], use_cache=True, **{CACHE_SINCE_5_24: cache}
            )
            cache = out.get(CACHE_SINCE_5_24)
            logits = self.whisper.proj_out(out.last_hidden_state[0, -1])
            if not said:
                logits[self.not_first] = -math.inf
            token = int(logits.argmax())
            ended = token == self.end
            said.append(token)
            ids = torch.tensor([[token]])
        return self.tokenizer.decode(said, skip_special_tokens=True).strip(), ended


def cosines(states: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], real: int) -> np.ndarray:
    """Return the cosine of each real vector with its counterpart, `(layers, real)`."""
    pairs = zip(states, reference, strict=True)
    return torch.stack([nn.functional.cosine_similarity(one[:real], other[:real]) for one, other in pairs]).numpy()


def measure(
    whisper: WhisperBaseline, clips: Sequence[SpokenClip], tails: Sequence[float] = TAILS, decode: bool = True
) -> dict[str, Any]:
    """Compare every setting with `full` on every clip.

    Returns:
        By setting: `layers`, the mean cosine of each; `output`, its mean and 5th percentile over vectors, and the mean
        of the last 0.2 s; `from_end`, the output's mean cosine by distance from the end, in vectors; and, by source,
        `errors` and `words` of Whisper's own decoder, and `runaways`, transcripts that did not end.
    """
    settings = setting_names(tails)
    like: dict[str, list[np.ndarray]] = {name: [] for name in settings}
    heard: dict[str, dict[str, list[int]]] = {name: {} for name in settings}
    for clip in clips:
        real = count_audio_tokens(-(-len(clip.samples) // (SAMPLE_RATE // MEL_FRAMES_PER_SECOND)))
        reference = whisper.states(clip.samples, None)
        for name, tail in settings.items():
            states = reference if tail is None else whisper.states(clip.samples, tail)
            like[name].append(cosines(states, reference, real))
            if decode:
                text, ended = whisper.transcribe(states[-1])
                errors, words = word_errors(text, clip.text)
                counts = heard[name].setdefault(clip.source, [0, 0, 0])
                heard[name][clip.source] = [counts[0] + errors, counts[1] + words, counts[2] + (not ended)]
    found: dict[str, Any] = {"clips": len(clips), "settings": {}}
    for name in settings:
        output = np.concatenate([each[-1] for each in like[name]])
        last = [each[-1][::-1][:ENCODER_FRAMES_PER_SECOND] for each in like[name]]
        by_distance = [
            np.mean([row[place] for row in last if place < len(row)]) for place in range(max(map(len, last)))
        ]
        found["settings"][name] = {
            "layers": np.concatenate(like[name], axis=1).mean(axis=1).tolist(),
            "output": {
                "mean": float(output.mean()),
                "low": float(np.quantile(output, 0.05)),
                "end": float(np.concatenate([row[:NEAR_THE_END] for row in last]).mean()),
            },
            "from_end": [float(value) for value in by_distance],
            "heard": {
                source: dict(zip(("errors", "words", "runaways"), counts, strict=True))
                for source, counts in heard[name].items()
            },
        }
    return found


def table(found: dict[str, Any]) -> str:
    """Write the measurements as a Markdown table."""
    sources = list(next(iter(found["settings"].values()))["heard"])
    head = ["setting", "cosine to `full`", "lowest 5 %", "last 0.2 s", *(f"WER, {name}" for name in sources)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, values in found["settings"].items():
        cells = [f"`{name}`" if name in (FULL, TRIM) else f"`{TRIM}`{name.removeprefix(TRIM)}"]
        cells += [f"{values['output'][key]:.3f}" for key in ("mean", "low", "end")]
        for source in sources:
            counts = values["heard"][source]
            endless = f" ({counts['runaways']} never end)" if counts["runaways"] else ""
            cells.append(f"{counts['errors'] / counts['words']:.3f}{endless}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(found: dict[str, Any], file: Path) -> None:
    """Draw the cosine by layer, and by distance from the end of the clip."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_layer, by_place) = pyplot.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for name, values in found["settings"].items():
        if name != FULL:
            by_layer.plot(values["layers"], marker="o", markersize=3, label=name)
            by_place.plot(
                np.arange(len(values["from_end"])) / ENCODER_FRAMES_PER_SECOND, values["from_end"], label=name
            )
    layers = len(found["settings"][TRIM]["layers"])
    by_layer.set_xticks(range(layers), ["in", *map(str, range(1, layers - 1)), "out"])
    by_layer.set(xlabel="encoder layer", ylabel="cosine to the vectors of `full`", title="mean over real frames")
    by_place.set(xlabel="seconds before the end of the clip", title="the encoder's output")
    by_place.legend()
    for axes in (by_layer, by_place):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def read_clips(manifest: Path, count: int, seconds: float = 30.0) -> list[SpokenClip]:
    """Read clips of a manifest: as many of each source, and at most so many seconds of each clip."""
    rows = read_manifest(manifest)
    longest = round(seconds * SAMPLE_RATE)
    each = math.ceil(count / len(rows))
    return [
        SpokenClip(read_audio(manifest.parent / row["audio"], SAMPLE_RATE)[:longest], row["text"], source)
        for source, found in rows.items()
        for row in evenly(found, each)
    ]


def main() -> None:
    """Measure, and write numbers, table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="a Whisper with its decoder: a folder or a Hub id")
    parser.add_argument("--speech", type=Path, required=True, help="JSON lines with `audio`, `text` and `source`")
    parser.add_argument("--clips", type=at_least_1, default=40, help="in all, as many of each source (default: 40)")
    parser.add_argument("--tails", type=seconds_up_to_10, nargs="*", default=list(TAILS), help="of silence, seconds")
    parser.add_argument("--no-decoder", action="store_true", help="compare the vectors only")
    parser.add_argument("--out", type=Path, default=Path("runs/hearing"), help="for hearing.json, .md and .png")
    parser.add_argument("--overwrite", action="store_true", help="write into --out although it holds something")
    arguments = parser.parse_args()
    refuse_existing(arguments.out, arguments.overwrite)
    clips = read_clips(arguments.speech, arguments.clips, 30 - max(arguments.tails, default=0))  # a window in all
    found = measure(WhisperBaseline(arguments.encoder), clips, arguments.tails, decode=not arguments.no_decoder)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "hearing.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (arguments.out / "hearing.md").write_text(table(found) + "\n", encoding="utf-8")
    plot(found, arguments.out / "hearing.png")
    print(f"{len(clips)} clips\n\n{table(found)}\n\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
