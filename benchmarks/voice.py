"""Measures what a model's audio vectors keep of a voice: `make bench ARGS="voice MODEL --speech MANIFEST"`.

A label of the manifest, such as the speaker's gender, is read from the mean and the standard deviation of a clip's
vectors by a linear classifier that was trained on other speakers: once from the encoder's vectors, and once from those
that the projector gives the language model. What the classifier reads from the first and not from the second, the
projector does not pass on, or not in a way that is easily read. Nothing is trained but the classifier.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.manifests import evenly, read_manifest
from eval_suite.intervals import Resampler
from llaso.commands.option_types import at_least_1
from llaso.progress import progress_report
from llaso_common.atomic_write import write_atomically
from llaso_common.audio import SAMPLE_RATE, read_audio
from modeling_llaso.loading import load
from modeling_llaso.processing_llaso import stack_windows

FOLDS = 5
"""Parts of the speakers; each is classified by what was trained on the others."""
WEIGHT_PENALTY = 0.01
"""Times the sum of the squared weights, beside the mean cross-entropy."""
DRAWS, LEVELS = 2000, (0.025, 0.975)
"""Resamples of the speakers for an interval, and the quantiles at which it begins and ends."""
REPORT_SECONDS = 15.0
ENCODER, PROJECTED = "encoder", "projector"


def labelled_clips(manifests: Sequence[Path], label: str, a_speaker: int, youngest: int = 0) -> list[dict[str, Any]]:
    """List the rows of manifests that have a speaker and the label, some of each speaker.

    Args:
        manifests: paths in them are relative to their folders.
        label: the column to read from the voice.
        a_speaker: rows of each speaker at most.
        youngest: rows with a smaller `age` are left out; those without one stay.

    Raises:
        ValueError: there are fewer than two labels, or a label has fewer speakers than there are folds.
    """
    of_speakers: dict[str, list[dict[str, Any]]] = {}
    for manifest in manifests:
        for source, rows in read_manifest(manifest).items():
            for row in rows:
                if row.get("speaker") and row.get(label) and (row.get("age") is None or row["age"] >= youngest):
                    clip = {"audio": manifest.parent / row["audio"], "source": source, "label": str(row[label])}
                    of_speakers.setdefault(f"{source}/{row['speaker']}", []).append(clip)
    clips = [{"speaker": speaker, **clip} for speaker, rows in of_speakers.items() for clip in evenly(rows, a_speaker)]
    speakers = {name: len({clip["speaker"] for clip in clips if clip["label"] == name}) for name in labels_of(clips)}
    if len(speakers) < 2 or min(speakers.values()) < FOLDS:
        said = ", ".join(f"{name} ({count} speakers)" for name, count in speakers.items()) or "none"
        raise ValueError(f"`{label}` needs two values or more, of {FOLDS} speakers each; there are {said}")
    return clips


def labels_of(clips: Sequence[dict[str, Any]]) -> list[str]:
    """Return the labels that clips have, in alphabetical order."""
    return sorted({clip["label"] for clip in clips})


@torch.no_grad()
def statistics(
    model: Any, processor: Any, clips: Sequence[dict[str, Any]], seconds: float, done: Callable[[int, int], None]
) -> dict[str, np.ndarray]:
    """Return mean and standard deviation of each clip's vectors, `(clips, 2 x width)`, from encoder and projector.

    Args:
        model: a LLaSO checkpoint in `eval()`.
        processor: its processor.
        clips: with `audio`, a path.
        seconds: of each clip, from its beginning.
        done: called with the number of clips read so far, and of all.
    """
    found: dict[str, list[np.ndarray]] = {ENCODER: [], PROJECTED: []}
    for number, clip in enumerate(clips, 1):
        samples = read_audio(clip["audio"], SAMPLE_RATE)[: round(seconds * SAMPLE_RATE)]
        features, mask = stack_windows(processor.log_mel(processor.window_samples(samples)))
        encoded = model.model.encode(features.to(model.device), mask.to(model.device))
        vectors = encoded.last_hidden_state
        real = vectors[encoded.vector_mask] if encoded.vector_mask is not None else vectors.flatten(0, 1)
        projected = model.model.project(vectors, encoded.vector_mask)
        for name, each in ((ENCODER, real), (PROJECTED, projected)):
            moments = torch.cat([each.float().mean(0), each.float().std(0, correction=0)])
            found[name].append(moments.cpu().numpy())
        done(number, len(clips))
    return {name: np.stack(rows) for name, rows in found.items()}


def classified(values: np.ndarray, labels: np.ndarray, speakers: np.ndarray, seed: int = 0) -> np.ndarray:
    """Classify each row by a linear classifier trained on other speakers.

    Args:
        values: `(rows, width)`.
        labels: `(rows,)`, numbers from 0 on.
        speakers: `(rows,)`, their names; the rows of a speaker share a fold.
        seed: of the folds.

    Returns:
        The numbers of the labels found, `(rows,)`.
    """
    names = np.unique(speakers)
    np.random.default_rng(seed).shuffle(names)
    found = np.zeros(len(labels), dtype=np.int64)
    for fold in np.array_split(names, FOLDS):
        tested = np.isin(speakers, fold)
        center, scale = values[~tested].mean(0), values[~tested].std(0) + 1e-6
        rows = torch.from_numpy((values - center) / scale).float()
        targets = torch.from_numpy(labels[~tested])
        layer = nn.Linear(values.shape[1], int(labels.max()) + 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100)

        def closure(layer=layer, optimizer=optimizer, rows=rows[~tested], targets=targets) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(layer(rows), targets) + WEIGHT_PENALTY * layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            found[tested] = layer(rows[tested]).argmax(-1).numpy()
    return found


def accuracies(clips: Sequence[dict[str, Any]], right: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the share of right clips by source, with an interval of speakers drawn with replacement."""
    places: dict[str, list[int]] = {}
    for place, clip in enumerate(clips):
        places.setdefault(clip["source"], []).append(place)
    draws = Resampler({name: [clips[n]["speaker"] for n in found] for name, found in places.items()}, DRAWS, seed=0)
    result = {}
    for name, found in places.items():
        counts = np.stack([right[found], np.ones(len(found))], axis=1).astype(float)
        drawn = draws.sums({name: counts})[name]
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], LEVELS)
        result[name] = {"accuracy": float(right[found].mean()), "low": float(low), "high": float(high)}
    return result


def table(results: Sequence[dict[str, Any]], majority: dict[str, float]) -> str:
    """Write the accuracies as a Markdown table."""
    head = ["vectors of", *majority]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines.append(f"| always the most frequent | {' | '.join(f'{share:.3f}' for share in majority.values())} |")
    for result in results:
        for name in (ENCODER, PROJECTED):
            cells = [f"{one['accuracy']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in result[name].values()]
            lines.append(f"| {result['model']}, {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks voice", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="LLaSO checkpoints: folders or Hub ids")
    parser.add_argument(
        "--speech",
        type=Path,
        nargs="+",
        required=True,
        metavar="MANIFEST",
        help="JSON lines: audio, text, speaker and the label",
    )
    parser.add_argument("--label", default="gender", help="column to read from the voice (default: gender)")
    parser.add_argument("--youngest", type=int, default=0, metavar="AGE", help="leave younger speakers out")
    parser.add_argument("--clips", type=at_least_1, default=4, help="of each speaker at most (default: 4)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip at most (default: 10)")
    parser.add_argument("--out", type=Path, help="for a .json of all figures")
    chosen = parser.parse_args()
    clips = labelled_clips(chosen.speech, chosen.label, chosen.clips, chosen.youngest)
    names = labels_of(clips)
    labels = np.array([names.index(clip["label"]) for clip in clips])
    speakers = np.array([clip["speaker"] for clip in clips])
    shares = {
        source: np.unique([clip["label"] for clip in clips if clip["source"] == source], return_counts=True)[1]
        for source in dict.fromkeys(clip["source"] for clip in clips)
    }
    majority = {source: float(counts.max() / counts.sum()) for source, counts in shares.items()}
    results = []
    for name in chosen.models:
        model, processor = load(name, "cpu")
        show = progress_report(f"{name}: clips", print, REPORT_SECONDS)
        moments = statistics(model, processor, clips, chosen.seconds, show)
        found = {part: classified(values, labels, speakers) == labels for part, values in moments.items()}
        results.append({"model": name} | {part: accuracies(clips, right) for part, right in found.items()})
    print(f"\n{len(clips)} clips of {len(set(speakers))} speakers; {chosen.label}: {', '.join(names)}")
    print(table(results, majority))
    if chosen.out is not None:
        record = {"clips": len(clips), "speakers": len(set(speakers)), "majority": majority, "models": results}
        write_atomically(chosen.out, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
