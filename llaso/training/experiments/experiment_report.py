"""Shows an experiment's runs as a table and a plot, and puts both into a page.

The input is the `results.json` that `run_experiment` writes. The output is Markdown with every score's mean and spread
over the seeds, a PNG with every single run, and both in a page, between its marks.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llaso_common.atomic_write import write_atomically
from llaso_common.folder_lock import one_at_a_time

logger = logging.getLogger(__name__)

Run = dict[str, Any]
Results = dict[str, Any]

PANELS_A_ROW = 5
LEGEND_INCHES = 4.5
"""Width that the names of the variations need."""
UP, DOWN = "▲", "▼"


def write_report(folder: Path) -> tuple[Path, Path]:
    """Write `table.md` and `plot.png` beside an experiment's `results.json`; returns both."""
    table_file, plot_file = folder / "table.md", folder / "plot.png"
    with one_at_a_time(folder, logger.info):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        table_file.write_text(table(results), encoding="utf-8")
        plot(results, plot_file)
    return table_file, plot_file


def put_into_page(folder: Path, page: Path) -> tuple[Path, Path]:
    """Replace an experiment's table in a page, and its plot in the page's `images` folder.

    The text between the lines `<!-- NAME -->` and `<!-- end of NAME -->` is replaced.

    Returns:
        The files of the table and of the plot, as `write_report` does.

    Raises:
        ValueError: the page has no such lines.
    """
    table_file, plot_file = write_report(folder)
    with one_at_a_time(page.parent, logger.info):
        _renew(page, folder.name, table_file, plot_file)
    return table_file, plot_file


def check_page(page: Path, name: str) -> None:
    """Raise a ValueError if a page has no place for an experiment's results."""
    _around(page.read_text(encoding="utf-8"), page, name)


def _around(text: str, page: Path, name: str) -> tuple[str, str]:
    """Return what comes before and after the place of an experiment's results, the marks included."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{page} has no lines {begin.strip()} and {end.strip()} to put the results between")
    return before + begin, end + after


def _renew(page: Path, name: str, table_file: Path, plot_file: Path) -> None:
    before, after = _around(page.read_text(encoding="utf-8"), page, name)
    image = page.parent / "images" / f"experiment-{name}.png"
    image.parent.mkdir(exist_ok=True)
    image.write_bytes(plot_file.read_bytes())
    figure = f"![{name}: every run]({os.path.relpath(image, page.parent)})\n"
    table_text = table_file.read_text(encoding="utf-8")
    write_atomically(page, f"{before}{table_text}\n{figure}{after}")


def table(results: Results) -> str:
    """Write Markdown: what is to be tested, then a line for each variation: mean ± standard deviation over seeds."""
    runs: list[Run] = results["runs"]
    columns = _columns(results)
    names = _variations(results)
    seeds = sorted({run["seed"] for run in runs})
    head = ["trained", "seeds", *(title for title, _ in columns)]
    lines = [f"To be tested: {results['claim']}", "", _line(head), _line(["---"] * len(head))]
    for name in names:
        mine = [run for run in runs if run["variation"] == name]
        cells = [name, str(len(mine))]
        for _, values in columns:
            pairs = [(values(run), _of(runs, results["variations"][0], run["seed"], values)) for run in mine]
            cells.append(_spread([value for value, _ in pairs]) + _direction(pairs))
        lines.append(_line(cells))
    steps = sorted({run["steps"] for run in runs})
    stage_2 = f"Stage 2 took {_words(steps)} steps" if steps[-1] else "Stage 1 only"
    which = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})"
    lines += [
        "",
        f"Mean ± standard deviation over {which}. {stage_2}. {UP} and {DOWN}: with every seed higher, or lower, "
        "than the first line with the same seed.",
        "",
    ]
    if mark := results.get("answer_after"):
        lines[-2] += f" In a reply that holds `{mark}`, what follows it is scored."
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """Draw a panel for each score: a column of dots for each variation, a dot for each seed, a bar at their mean."""
    from matplotlib.figure import Figure

    runs: list[Run] = results["runs"]
    columns = _columns(results)
    names = _variations(results)
    wide = min(PANELS_A_ROW, len(columns))
    rows = -(-len(columns) // wide)
    figure = Figure(figsize=(max(2.1 * wide, LEGEND_INCHES), 2.0 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, wide, squeeze=False).flat
    for panel in list(panels)[len(columns) :]:
        panel.remove()
    for panel, (title, values) in zip(figure.axes, columns, strict=True):
        for place, name in enumerate(names):
            known = [value for run in runs if run["variation"] == name and (value := values(run)) is not None]
            panel.scatter([place] * len(known), known, s=16, color=f"C{place}", label=name, clip_on=False)
            if known:
                panel.hlines(statistics.mean(known), place - 0.3, place + 0.3, color=f"C{place}", linewidth=1)
        panel.set_title(title.replace(" (", "\n("), fontsize=9)
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.set_xticks([])
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", color="0.9")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=120)


def _variations(results: Results) -> list[str]:
    """Return the names of the variations that have been run, in the experiment's order."""
    run = {one["variation"] for one in results["runs"]}
    return [name for name in results["variations"] if name in run]


def _columns(results: Results) -> list[tuple[str, Any]]:
    """Return the titles of the columns, each with the function that finds its value in a run."""
    runs = results["runs"]
    metric = {name: one["metric"] for run in runs for name, one in run["scores"].items()}

    def score(name: str) -> Any:
        return lambda run: run["scores"].get(name, {}).get("value")

    columns = [
        ("WER after Stage 1", lambda run: run["stage1_wer"]),
        ("WER after Stage 2", lambda run: run["stage2_wer"]),
        *((f"{name} {metric[name]}".strip(), score(name)) for name in results["shown"]),
        ("skill, all tasks", lambda run: run["skill"]),
        ("answered", lambda run: run["answered"]),
    ]
    return [(title, values) for title, values in columns if any(values(run) is not None for run in runs)]


def _of(runs: Sequence[Run], variation: str, seed: int, values: Any) -> float | None:
    return next((values(run) for run in runs if (run["variation"], run["seed"]) == (variation, seed)), None)


def _direction(pairs: Sequence[tuple[float | None, float | None]]) -> str:
    """Return a mark if every seed, of two at least, moved the same way from the reference."""
    differences = [value - reference for value, reference in pairs if value is not None and reference is not None]
    if len(differences) == len(pairs) > 1:
        if all(difference > 0 for difference in differences):
            return f" {UP}"
        if all(difference < 0 for difference in differences):
            return f" {DOWN}"
    return ""


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{statistics.mean(known):.3f} ± {statistics.stdev(known):.3f}"


def _words(numbers: Sequence[int]) -> str:
    return " to ".join(f"{number:,}" for number in sorted({numbers[0], numbers[-1]}))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
