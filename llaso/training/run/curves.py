"""Draws the training curves of several runs in one picture, to compare recipes, seeds or settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .history import HISTORY, Record, of_kind, read_history, running_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
"""Endings of the picture's file."""
TICKS = (1.0, 2.0, 5.0)
"""Numbers on the axis of losses, in each power of ten."""


def draw_runs(runs: Sequence[Path], file: Path) -> None:
    """Write the picture of runs that `curves_of` draws; a file that is there is replaced.

    Raises:
        ValueError: the file's name has another ending than `FORMATS`, or a folder has no recorded step.
    """
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"{file}: the name of the picture has to end in {', '.join(FORMATS)}")
    figure = curves_of(runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def curves_of(runs: Sequence[Path]) -> Figure:
    """Draw the losses of runs over their steps, and beside them their held-out word error rates if there are any.

    Args:
        runs: folders that `llaso train` writes; one that still trains is drawn as far as it is.

    Raises:
        ValueError: a folder has no recorded step, or its history is damaged.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    histories = {str(run): _history_of(run) for run in dict.fromkeys(runs)}
    losses = {name: of_kind(records, "step") for name, records in histories.items()}
    rates = {name: found for name, records in histories.items() if (found := of_kind(records, "held_out"))}
    figure = Figure(figsize=(11 if rates else 6, 4.2), layout="constrained")
    panels = figure.subplots(ncols=2 if rates else 1, squeeze=False, sharex=True)[0]
    colors = {name: f"C{number % 10}" for number, name in enumerate(histories)}
    for name, steps in losses.items():
        smooth = running_mean([record["loss"] for record in steps])
        panels[0].plot([record["step"] for record in steps], smooth, color=colors[name], label=name)
    panels[0].set(xlabel="step", ylabel="loss per answer token, running mean")
    panels[0].set_yscale("log")  # the first losses of a run are many times the last
    panels[0].yaxis.set(major_locator=LogLocator(subs=TICKS), minor_formatter=NullFormatter(), major_formatter="{x:g}")
    panels[0].set_xlim(left=0)
    for name, found in rates.items():
        x, y = ([record[key] for record in found] for key in ("step", "wer"))
        panels[1].plot(x, y, "o-", color=colors[name], markersize=4)
    if rates:
        panels[1].set(xlabel="step", ylabel="held-out word error rate")
        panels[1].set_ylim(bottom=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", frameon=False, ncols=2)
    return figure


def _history_of(run: Path) -> list[Record]:
    try:
        records = read_history(run / HISTORY)
    except ValueError as error:
        raise ValueError(f"{run / HISTORY} is damaged and cannot be drawn: {error}") from error
    if not of_kind(records, "step"):
        raise ValueError(
            f"{run} has no {HISTORY} with a step in it; name a folder that `llaso train` writes, once a step is done"
        )
    return records
