"""Draws the word error rates that `python -m benchmarks transcripts` has written, model by model.

`python -m benchmarks transcripts_plot NAME=FOLDER [NAME=FOLDER ...] --out FILE` draws a panel for each source and a
line for each folder: what the model transcribed and, if it is there, its best path, with their intervals. Whisper's
own decoder is a line down the panel; `--times 2.5` draws another at so many times its rate.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from llaso.commands.option_types import named_folder

WHISPER = "Whisper's own decoder"
MARKS = {"LLaSO": ("o", "C0", 0.0), "best path": ("d", "0.6", 0.25)}
"""The mark of a program, its colour and how far below the model's line it lies, by the names in `transcripts.json`."""

Rates = dict[str, dict[str, dict[str, Any]]]
"""By program and source, as in `transcripts.json`."""


def read_rates(folder: Path) -> Rates:
    """Read the rates that `benchmarks transcripts` wrote into a folder.

    Raises:
        ValueError: it wrote none there.
    """
    file = folder / "transcripts.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing; name a folder that `python -m benchmarks transcripts --out` has written")
    return json.loads(file.read_text(encoding="utf-8"))["rates"]


def draw(models: Mapping[str, Rates], times: float = 0.0) -> Figure:
    """Draw a panel for each source and a line for each model, the first on top.

    Args:
        models: by name.
        times: draws a target at so many times the rate of Whisper's own decoder; 0: none.

    Raises:
        ValueError: the models were measured on other sources, or a target is to be drawn without Whisper's rate.
    """
    sources = {name: next(iter(rates.values())) for name, rates in models.items()}
    panels_of = next(iter(sources.values()))
    for name, found in sources.items():
        if list(found) != list(panels_of):
            raise ValueError(f"{name} was measured on {', '.join(found)}, the first on {', '.join(panels_of)}")
    whisper = next((rates[WHISPER] for rates in models.values() if WHISPER in rates), None)
    if times and whisper is None:
        raise ValueError(
            "--times needs Whisper's own decoder, which none of the folders has; measure it with --whisper"
        )
    figure = Figure(figsize=(5.2 * len(panels_of), 1.4 + 0.32 * len(models)), layout="constrained")
    panels = figure.subplots(ncols=len(panels_of), squeeze=False, sharey=True)[0]
    for panel, (source, entry) in zip(panels, panels_of.items(), strict=True):
        for program, (mark, color, below) in MARKS.items():
            drawn = [
                (place + below, rates[program][source])
                for place, rates in enumerate(models.values())
                if program in rates
            ]
            if drawn:
                places, found = zip(*drawn, strict=True)
                x = [one["wer"] for one in found]
                reach = [[abs(one["wer"] - one["interval"][end]) for one in found] for end in (0, 1)]
                panel.errorbar(x, places, xerr=reach, fmt=mark, color=color, markersize=5, linewidth=1, label=program)
        if whisper is not None:
            panel.axvline(whisper[source]["wer"], color="C3", linewidth=1, label=WHISPER)
            if times:
                target = times * whisper[source]["wer"]
                panel.axvline(target, color="C3", linewidth=1, linestyle=":", label=f"{times:g} times that")
        panel.set(title=f"{source}, {entry['clips']} clips", xlabel="word error rate")
        panel.set_xlim(left=0)
        panel.grid(axis="x", color="0.9")
    panels[0].set_yticks(range(len(models)), models)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def main(arguments: Iterable[str] | None = None) -> None:
    """Read the folders and write the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks transcripts_plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", type=named_folder, metavar="NAME=FOLDER", help="one line of the picture")
    parser.add_argument("--times", type=float, default=0.0, help="a target: so many times Whisper's rate")
    parser.add_argument("--out", type=Path, default=Path("runs/transcripts.png"), help="the picture")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    figure = draw({name: read_rates(folder) for name, folder in chosen.models}, chosen.times)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(chosen.out, dpi=120)
    print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
