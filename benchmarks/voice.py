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
from eval_suite.intervals import BootstrapEstimate, Resampler
from llaso.commands.option_types import add_output_file, at_least_0, at_least_1, device
from llaso.progress import progress_report
from llaso_common.atomic_write import write_atomically
from llaso_common.audio import SAMPLE_RATE, read_audio
from llaso_common.output_folder import refuse_existing_file
from modeling_llaso.loading import load
from modeling_llaso.processing_llaso import stack_windows

FOLDS = 5
"""Parts of the speakers; each is classified by what was trained on the others."""
WEIGHT_PENALTY = 0.01
"""Factor of the squared weights in the loss, which is the mean cross-entropy otherwise."""
SECONDS = 10
"""Of each clip at most, from its beginning."""
DRAWS = 2000
"""Resamples of the speakers for an interval."""
REPORT_SECONDS = 15.0
ENCODER, PROJECTOR = "encoder", "projector"


def labelled_clips(manifests: Sequence[Path], label: str, clips_per_speaker: int, min_age: int = 0) -> list[dict]:
    """List the rows of manifests that have a speaker and the label, some of each speaker.

    Args:
        manifests: paths in them are relative to their folders.
        label: the column to read from the voice.
        clips_per_speaker: rows of each speaker at most.
        min_age: if above 0, rows with a smaller `age` are left out; those without one stay.

    Raises:
        ValueError: an age is no number, there are fewer than two labels, or a label has too few speakers.
    """
    of_speakers: dict[str, list[dict[str, Any]]] = {}
    for manifest in manifests:
        for source, rows in read_manifest(manifest).items():
            for row in rows:
                if not isinstance(row.get(label), str | int | None):
                    raise ValueError(f"{manifest}: `{label}` of {row['audio']} is {row[label]!r}, which is no label")
                if not {row.get("speaker"), row.get(label)} & {None, ""} and _is_old_enough(row, min_age, manifest):
                    clip = {"audio": manifest.parent / row["audio"], "source": source, "label": str(row[label])}
                    of_speakers.setdefault(f"{source}/{row['speaker']}", []).append(clip)
    clips = [
        {"speaker": speaker, **clip}
        for speaker, rows in of_speakers.items()
        for clip in evenly(rows, clips_per_speaker)
    ]
    speakers = {name: len({clip["speaker"] for clip in clips if clip["label"] == name}) for name in labels_of(clips)}
    if len(speakers) < 2 or min(speakers.values()) < FOLDS:
        said = ", ".join(f"{name} ({count} speakers)" for name, count in speakers.items()) or "none"
        raise ValueError(
            f"`{label}` needs at least two values with {FOLDS} speakers each; found {said}. Choose another --label or "
            "a lower --min-age"
        )
    return clips


def _is_old_enough(row: dict[str, Any], min_age: int, manifest: Path) -> bool:
    age = row.get("age")
    if not min_age or age is None:
        return True
    if isinstance(age, bool) or not isinstance(age, int | float) or age != age:  # NaN, which JSON of Python can hold
        raise ValueError(f"{manifest}: the age of {row['audio']} is {age!r}, which is no number; omit --min-age")
    return age >= min_age


def labels_of(clips: Sequence[dict[str, Any]]) -> list[str]:
    """Return the labels that clips have, in alphabetical order."""
    return sorted({clip["label"] for clip in clips})


@torch.no_grad()
def statistics(
    model: Any, processor: Any, clips: Sequence[dict[str, Any]], done: Callable[[int, int], None]
) -> dict[str, np.ndarray]:
    """Return mean and standard deviation of each clip's vectors, `(clips, 2 x width)`, from encoder and projector.

    Args:
        model: a LLaSO checkpoint in `eval()`.
        processor: its processor.
        clips: with `audio`, a path.
        done: called with the number of clips read so far, and of all.
    """
    moments: dict[str, list[np.ndarray]] = {ENCODER: [], PROJECTOR: []}
    for number, clip in enumerate(clips, 1):
        samples = read_audio(clip["audio"], SAMPLE_RATE)[: SECONDS * SAMPLE_RATE]
        features, mask = stack_windows(processor.log_mel(processor.window_samples(samples)))
        encoded = model.model.encode(features.to(model.device), mask.to(model.device))
        vectors = encoded.last_hidden_state
        real = vectors[encoded.vector_mask] if encoded.vector_mask is not None else vectors.flatten(0, 1)
        projected = model.model.project(vectors, encoded.vector_mask)
        for name, each in ((ENCODER, real), (PROJECTOR, projected)):
            both = torch.cat([each.float().mean(0), each.float().std(0, correction=0)])
            moments[name].append(both.cpu().numpy())
        done(number, len(clips))
    return {name: np.stack(rows) for name, rows in moments.items()}


def cross_validated_predictions(
    values: np.ndarray, labels: np.ndarray, speakers: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Classify each row by a linear classifier trained on other speakers.

    Args:
        values: `(rows, width)`.
        labels: `(rows,)`, numbers from 0 on.
        speakers: `(rows,)`, their names; the rows of a speaker share a fold.
        seed: of the folds.

    Returns:
        The predicted labels, `(rows,)`.
    """
    names = np.unique(speakers)
    np.random.default_rng(seed).shuffle(names)
    predicted = np.zeros(len(labels), dtype=np.int64)
    for fold in np.array_split(names, FOLDS):
        tested = np.isin(speakers, fold)
        center, scale = values[~tested].mean(0), values[~tested].std(0) + 1e-6
        rows = torch.from_numpy((values - center) / scale).float()
        classifier = fit_linear(rows[~tested], torch.from_numpy(labels[~tested]), int(labels.max()) + 1)
        with torch.no_grad():
            predicted[tested] = classifier(rows[tested]).argmax(-1).numpy()
    return predicted


def fit_linear(rows: torch.Tensor, targets: torch.Tensor, labels: int) -> nn.Linear:
    """Fit a linear classifier of so many labels to `(rows, width)` by L-BFGS."""
    layer = nn.Linear(rows.shape[1], labels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(layer(rows), targets) + WEIGHT_PENALTY * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return layer


def accuracies(clips: Sequence[dict[str, Any]], correct: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the accuracy by source, with a 95 % bootstrap interval over speakers; no classifier is trained anew."""
    places: dict[str, list[int]] = {}
    for place, clip in enumerate(clips):
        places.setdefault(clip["source"], []).append(place)
    draws = Resampler({name: [clips[n]["speaker"] for n in rows] for name, rows in places.items()}, DRAWS, seed=0)
    result = {}
    for name, rows in places.items():
        drawn = draws.sums({name: np.stack([correct[rows], np.ones(len(rows))], axis=1).astype(float)})[name]
        estimate = BootstrapEstimate(float(correct[rows].mean()), len(rows), drawn[:, 0] / drawn[:, 1])
        low, high = estimate.interval() or (float("nan"), float("nan"))
        result[name] = {"accuracy": estimate.value, "low": low, "high": high}
    return result


def table(results: Sequence[dict[str, Any]], majority: dict[str, float]) -> str:
    """Write the accuracies as a Markdown table."""
    head = ["accuracy [95 % interval] from the vectors of", *majority]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines.append(f"| always the most frequent label | {' | '.join(f'{share:.3f}' for share in majority.values())} |")
    for result in results:
        for name in (ENCODER, PROJECTOR):
            cells = [f"{one['accuracy']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in result[name].values()]
            lines.append(f"| {result['model']}, {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def majorities(clips: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the share of the most frequent label by source."""
    shares = {}
    for source in dict.fromkeys(clip["source"] for clip in clips):
        counts = np.unique([clip["label"] for clip in clips if clip["source"] == source], return_counts=True)[1]
        shares[source] = float(counts.max() / counts.sum())
    return shares


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
    parser.add_argument("--min-age", type=at_least_0, default=0, metavar="AGE", help="leave younger speakers out")
    parser.add_argument("--clips", type=at_least_1, default=4, help="of each speaker at most (default: 4)")
    parser.add_argument("--device", type=device, help="cpu, cuda, … (default: the GPU if there is one)")
    add_output_file(parser, "JSON file for all figures")
    chosen = parser.parse_args()
    refuse_existing_file(chosen.out, chosen.overwrite)
    clips = labelled_clips(chosen.speech, chosen.label, chosen.clips, chosen.min_age)
    names, majority = labels_of(clips), majorities(clips)
    labels = np.array([names.index(clip["label"]) for clip in clips])
    speakers = np.array([clip["speaker"] for clip in clips])
    results = []
    for name in chosen.models:
        model, processor = load(name, chosen.device)
        show = progress_report(f"{name}: clips", print, REPORT_SECONDS)
        moments = statistics(model, processor, clips, show)
        correct = {
            part: cross_validated_predictions(values, labels, speakers) == labels for part, values in moments.items()
        }
        results.append({"model": name} | {part: accuracies(clips, each) for part, each in correct.items()})
    print(f"\n{len(clips)} clips of {len(set(speakers))} speakers; {chosen.label}: {', '.join(names)}")
    print(table(results, majority))
    if chosen.out is not None:
        record = {"clips": len(clips), "speakers": len(set(speakers)), "majority": majority, "models": results}
        write_atomically(chosen.out, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
