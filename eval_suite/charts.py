"""Draws the report's charts: inline SVG in the page's colours, and the radar as a picture file.

All take plain numbers and return text; `None` stands for a missing value. Colours are CSS classes
(`s0`, `s1`, …, one a system), so that one drawing serves the light and the dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

PALETTE = ("#3a6ea5", "#c4553b", "#4a8a5c", "#8660a9", "#b5862b", "#3d9aa1", "#8a5a4d", "#767676")
"""One colour a system, in order; told apart with every common colour vision. Further systems have dashed lines."""

Interval = tuple[float | None, float | None]


def colour(index: int) -> str:
    """Return the colour of system number `index`."""
    return PALETTE[index % len(PALETTE)]


def _on_circle(centre: float, radius: float, step: int, steps: int) -> tuple[float, float]:
    angle = 2 * math.pi * step / steps - math.pi / 2
    return centre + radius * math.cos(angle), centre + radius * math.sin(angle)


def radar_svg(axes: Sequence[str], series: Sequence[Sequence[float | None]]) -> str:
    """Draw a radar of values in [0, 1]: one axis a task, one line a system.

    Args:
        axes: their short names; three or more.
        series: by system, one value an axis; a missing value breaks no line but has no dot.

    Returns:
        An `<svg>` element.
    """
    size, radius, margin = 400.0, 165.0, 60.0
    centre, steps = size / 2, len(axes)
    assert steps >= 3
    below = max(_on_circle(centre, radius, i, steps)[1] for i in range(steps)) + size / 2 - radius
    box = f"{-margin:g} 0 {size + 2 * margin:g} {below:.1f}"
    parts = [f'<svg class="radar" viewBox="{box}" role="img" aria-label="Scores by task, 0 to 1">']
    for level in (0.25, 0.5, 0.75, 1.0):
        ring = " ".join("{:.1f},{:.1f}".format(*_on_circle(centre, radius * level, i, steps)) for i in range(steps))
        parts.append(f'<polygon class="ring{" outer" if level == 1 else ""}" points="{ring}"/>')
    for i, name in enumerate(axes):
        x, y = _on_circle(centre, radius, i, steps)
        parts.append(f'<line class="spoke" x1="{centre:g}" y1="{centre:g}" x2="{x:.1f}" y2="{y:.1f}"/>')
        x, y = _on_circle(centre, radius + 16, i, steps)
        anchor = "middle" if abs(x - centre) < 12 else "start" if x > centre else "end"
        parts.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{_escape(name)}</text>')
    for number, values in enumerate(series):
        points = [(i, value) for i, value in enumerate(values) if value is not None]
        spots = [_on_circle(centre, radius * value, i, steps) for i, value in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        kind = f"s{number % len(PALETTE)}" + (" again" if number >= len(PALETTE) else "")
        parts.append(f'<polygon class="area {kind}" points="{line}"/>')
        for (x, y), (i, value) in zip(spots, points, strict=True):
            parts.append(
                f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                f"<title>{_escape(axes[i])} {value:.3f}</title></circle>"
            )
    for level in (0.5, 1.0):
        parts.append(f'<text class="tick" x="{centre + 4:g}" y="{centre - radius * level + 11:.1f}">{level:g}</text>')
    return "".join([*parts, "</svg>"])


def bar_svg(
    value: float | None,
    interval: Interval,
    baseline: float | None,
    scale: float,
    system: int = 0,
    width: int = 220,
) -> str:
    """Draw one bar from 0 to `value`, its 95 % interval as a whisker and the trivial baseline as a tick.

    Args:
        value: nothing is drawn for None.
        interval: low and high.
        baseline: what a trivial system gets.
        scale: the number at the right edge.
        system: number of the system, for its colour.
        width: of the drawing.

    Returns:
        An `<svg>` element 16 units high.
    """

    def at(number: float) -> float:
        return round(min(1.0, max(0.0, number / scale)) * (width - 8) + 2, 1) if scale > 0 else 2.0

    parts = [f'<svg class="bar s{system % len(PALETTE)}" viewBox="0 0 {width} 16" preserveAspectRatio="none">']
    parts.append(f'<line class="track" x1="2" y1="13.5" x2="{width - 6}" y2="13.5"/>')
    if value is not None:
        parts.append(f'<rect class="fill" x="2" y="4" width="{max(0.0, at(value) - 2):.1f}" height="8" rx="1"/>')
    low, high = interval
    if low is not None and high is not None:
        parts.append(f'<line class="whisker" x1="{at(low)}" y1="8" x2="{at(high)}" y2="8"/>')
        for end in (low, high):
            parts.append(f'<line class="whisker" x1="{at(end)}" y1="5" x2="{at(end)}" y2="11"/>')
    if baseline is not None:
        parts.append(f'<line class="baseline" x1="{at(baseline)}" y1="0" x2="{at(baseline)}" y2="16"/>')
    return "".join([*parts, "</svg>"])


def rank_svg(rank: int, low: int, high: int, systems: int) -> str:
    """Draw a rank and its interval on a line from the first to the last of all systems.

    Returns:
        An `<svg>` element that fills its width.
    """

    def at(place: int) -> float:
        return round(5 + 190 * (place - 1) / max(1, systems - 1), 1)

    lines = (("track", 1, systems), ("reach", low, high), ("here", rank, rank))
    drawn = "".join(f'<line class="{kind}" x1="{at(a)}" y1="8" x2="{at(b)}" y2="8"/>' for kind, a, b in lines)
    return f'<svg class="ranks" viewBox="0 0 200 16" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'


def scatter_svg(points: Sequence[tuple[float, float, Interval, str, int]], labels: tuple[str, str]) -> str:
    """Draw quality against speed: one dot a system, speed on a logarithmic axis, quality's interval as a whisker.

    Args:
        points: speed above 0, quality in [0, 1], its interval, name and number of each system.
        labels: of the two axes.

    Returns:
        An `<svg>` element.
    """
    width, height, left, bottom = 520.0, 300.0, 46.0, 44.0
    speeds = [point[0] for point in points]
    low, high = math.floor(math.log10(min(speeds)) - 0.15), math.ceil(math.log10(max(speeds)) + 0.15)

    def across(speed: float) -> float:
        return left + (math.log10(speed) - low) / (high - low) * (width - left - 14)

    def up(quality: float) -> float:
        return height - bottom - min(1.0, max(0.0, quality)) * (height - bottom - 14)

    parts = [f'<svg class="scatter" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="Quality against speed">']
    for tick in range(low, high + 1):
        x = across(10.0**tick)
        parts.append(f'<line class="spoke" x1="{x:.1f}" y1="{up(1):.1f}" x2="{x:.1f}" y2="{up(0):.1f}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{up(0) + 15:.1f}" text-anchor="middle">{10.0**tick:g}</text>')
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = up(level)
        parts.append(f'<line class="spoke" x1="{left:g}" y1="{y:.1f}" x2="{width - 14:g}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6:g}" y="{y + 3:.1f}" text-anchor="end">{level:g}</text>')
    middle = left + (width - left) / 2
    parts.append(f'<text x="{middle:.1f}" y="{height - 8:g}" text-anchor="middle">{_escape(labels[0])}</text>')
    parts.append(
        f'<text x="12" y="{up(0.5):.1f}" text-anchor="middle" transform="rotate(-90 12 {up(0.5):.1f})">'
        f"{_escape(labels[1])}</text>"
    )
    for speed, quality, (bottom_, top), name, number in points:
        x, y, kind = across(speed), up(quality), f"s{number % len(PALETTE)}"
        if bottom_ is not None and top is not None:
            parts.append(
                f'<line class="whisker {kind}" x1="{x:.1f}" y1="{up(bottom_):.1f}" x2="{x:.1f}" y2="{up(top):.1f}"/>'
            )
        side = "end" if x > width * 0.7 else "start"
        parts.append(
            f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{_escape(name)}: {quality:.3f} at '
            f"{speed:.1f}</title></circle>"
            f'<text class="name" x="{x + (-9 if side == "end" else 9):.1f}" y="{y + 4:.1f}" text-anchor="{side}">'
            f"{_escape(name)}</text>"
        )
    return "".join([*parts, "</svg>"])


def write_radar_png(path: Path, axes: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    """Write the radar as a picture; with one or two axes, for which a radar has no area, as bars.

    Args:
        path: of the picture.
        axes: names of the tasks.
        series: (system, one value in [0, 1] an axis).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 6.4), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    if len(axes) >= 3:
        plot = figure.add_subplot(projection="polar")
        plot.set_theta_offset(math.pi / 2)  # type: ignore[attr-defined]
        plot.set_theta_direction(-1)  # type: ignore[attr-defined]
        angles = [2 * math.pi * i / len(axes) for i in range(len(axes))]
        for number, (name, values) in enumerate(series):
            points = [(angle, value) for angle, value in zip(angles, values, strict=True) if value is not None]
            around = [*points, *points[:1]]
            theta, radii = [angle for angle, _ in around], [value for _, value in around]
            line, marker = ("-", "o") if number < len(PALETTE) else ("--", "s")
            plot.plot(theta, radii, line, color=colour(number), lw=1.8, marker=marker, markersize=3.5, label=name)
            if len(series) <= len(PALETTE):
                plot.fill(theta, radii, color=colour(number), alpha=0.08)
        plot.set_xticks(angles, axes, fontsize=10, color="#333333")
        plot.tick_params(axis="x", pad=7)
        for angle, label in zip(angles, plot.get_xticklabels(), strict=True):
            side = math.sin(angle)
            label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
        plot.set_yticks([0.25, 0.5, 0.75, 1.0], [""] * 4)
        for level in (0.5, 1.0):
            halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
            place = math.pi / len(axes)
            plot.text(place, level, f"{level:g}", fontsize=8, color="#888888", ha="center", va="center", bbox=halo)
        plot.grid(color="#dddddd", linewidth=0.7)
        plot.spines["polar"].set_color("#bbbbbb")
        plot.set_ylim(0, 1)
    else:
        plot = figure.add_subplot()
        height = 0.8 / max(1, len(series))
        for number, (name, values) in enumerate(series):
            places = [i + (number - (len(series) - 1) / 2) * height for i in range(len(axes))]
            plot.barh(places, [value or 0.0 for value in values], height, color=colour(number), label=name)
        plot.set_yticks(range(len(axes)), axes)
        plot.set_xlim(0, 1)
    if series:
        figure.legend(loc="outside lower center", ncols=min(4, len(series)), frameon=False, fontsize=10)
    figure.savefig(path, metadata={"Software": None})


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
