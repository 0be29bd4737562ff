"""Draws the word error rates that `python -m benchmarks transcripts` has written, model by model.

`python -m benchmarks transcripts_plot NAME=FOLDER [NAME=FOLDER ...] --out FILE` draws a panel for each source and a
line for each folder: what the model transcribed and, if it is there, its best path, with their intervals. Whisper's
own decoder, of the first folder that has it, is a vertical line; `--target SOURCE=2.5` draws another at 2.5 times its
rate.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.transcripts import BEST_PATH, LLASO, WHISPER
from llaso.commands.option_types import add_output_file, named_folder
from llaso_common.output_folder import refuse_existing_file

MARKS = {LLASO: ("o", "C0", 0.0), BEST_PATH: ("d", "0.6", 0.25)}
"""The mark of a program, its colour and how far below the model's line it lies."""

Rates = dict[str, dict[str, dict[str, Any]]]
"""By program and source, as in `transcripts.json`."""


def read_rates(folder: Path) -> Rates:
    """Read the rates that `benchmarks transcripts` wrote into a folder.

    Raises:
        ValueError: it wrote none there, or not all that it writes.
    """
    file = folder / "transcripts.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing; name a folder that `python -m benchmarks transcripts --out` has written")
    try:
        rates: Rates = json.loads(file.read_text(encoding="utf-8"))["rates"]
        measured = [(one["wer"], *one["interval"], one["clips"]) for by in rates.values() for one in by.values()]
    except (ValueError, LookupError, TypeError, AttributeError):
        measured = []
    if not measured:
        raise ValueError(f"{file} has no rates; measure again with `python -m benchmarks transcripts`")
    return rates


def draw(models: Mapping[str, Rates], targets: Mapping[str, float] | None = None) -> Figure:
    """Draw a panel for each source and a line for each model, the first on top.

    Args:
        models: by name.
        targets: by source; each is a dotted line at so many times the rate of Whisper's own decoder.

    Raises:
        ValueError: the models were not measured on the same clips, or a target is for no source of theirs, or there is
            none of Whisper's rates to multiply.
    """
    clips = _clips_of(models)
    whisper = next((rates[WHISPER] for rates in models.values() if WHISPER in rates), None)
    targets = targets or {}
    if strange := sorted(targets.keys() - clips.keys()):
        raise ValueError(f"a target is for {strange[0]}, but the sources are {', '.join(clips)}")
    if targets and whisper is None:
        raise ValueError("a target needs Whisper's own decoder, which no folder has; measure it with --whisper")
    figure = Figure(figsize=(5.2 * len(clips), 1.4 + 0.32 * len(models)), layout="constrained")
    panels = figure.subplots(ncols=len(clips), squeeze=False, sharey=True)[0]
    for panel, (source, count) in zip(panels, clips.items(), strict=True):
        for program, (mark, color, below) in MARKS.items():
            places = [place + below for place, rates in enumerate(models.values()) if program in rates]
            entries = [rates[program][source] for rates in models.values() if program in rates]
            if entries:
                x = [entry["wer"] for entry in entries]
                reach = [[abs(entry["wer"] - entry["interval"][end]) for entry in entries] for end in (0, 1)]
                panel.errorbar(x, places, xerr=reach, fmt=mark, color=color, markersize=5, linewidth=1, label=program)
        if whisper is not None:
            rate = whisper[source]["wer"]
            panel.axvline(rate, color="C3", linewidth=1, label=WHISPER)
            if source in targets:
                panel.axvline(targets[source] * rate, color="C3", linewidth=1, linestyle=":", label="target")
        panel.set(title=f"{source}, {count} clips", xlabel="word error rate")
        panel.set_xlim(left=0)
        panel.grid(axis="x", color="0.9")
    panels[0].set_yticks(range(len(models)), models)
    panels[0].invert_yaxis()
    shown: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _clips_of(models: Mapping[str, Rates]) -> dict[str, int]:
    """Return the number of clips of each source, which has to be that of every model."""
    counts = {
        name: {source: entry["clips"] for source, entry in next(iter(rates.values())).items()}
        for name, rates in models.items()
    }
    first = next(iter(counts))
    for name, clips in counts.items():
        if clips != counts[first]:
            raise ValueError(
                f"{name} and {first} were not measured on the same clips ({clips}; {counts[first]}); run both with "
                "one --speech and one --clips"
            )
    return counts[first]


def _target(text: str) -> tuple[str, float]:
    """Return the source and the factor of `SOURCE=FACTOR`."""
    source, _, factor = text.rpartition("=")
    try:
        times = float(factor)
    except ValueError:
        times = 0.0
    if not source or not 0 < times < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not SOURCE=FACTOR with a factor above 0, as speech=2.5")
    return source, times


def main(arguments: Iterable[str] | None = None) -> None:
    """Read the folders and write the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks transcripts_plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", type=named_folder, metavar="NAME=FOLDER", help="one line of the picture")
    parser.add_argument(
        "--target",
        type=_target,
        action="append",
        default=[],
        metavar="SOURCE=FACTOR",
        help="a dotted line at FACTOR times Whisper's rate, for a source; may be repeated",
    )
    add_output_file(parser, "the picture, as rates.png", required=True)
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    refuse_existing_file(chosen.out, chosen.overwrite)
    models = {name: read_rates(folder) for name, folder in chosen.models}
    if len(models) < len(chosen.models):
        raise ValueError("two folders have the same name; give each NAME=FOLDER a name of its own")
    figure = draw(models, dict(chosen.target))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(chosen.out, dpi=120)
    print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
