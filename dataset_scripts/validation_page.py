"""The page of a validation: what was checked, hours and lengths and labels as bars, and rows to listen to."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h2 { margin-top: 2.5rem; } table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .2rem .6rem .2rem 0; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { background: #4a7ab5; height: .9rem; border-radius: 2px; } .bars { width: 50%; }
.good { color: #1c7a3c; } .bad { color: #b3261e; } audio { height: 2rem; width: 16rem; } small { color: #666; }
"""


def write(title: str, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """One self-contained HTML page.

    Args:
        title: name of the corpus.
        report: content of validation.json.
        rows: rows to show with a player each.
    """
    verdict = (
        f'<p class="bad">{report["bad"]:,} of {report["rows"]:,} rows are bad.</p>'
        if report["bad"]
        else f'<p class="good">All {report["rows"]:,} rows are good.</p>'
    )
    sections = [
        f"<h1>{escape(title)}: validation</h1>{verdict}",
        *(f"<p>{escape(note)}</p>" for note in report["notes"]),
        _bars("Reasons", report["reasons"]) if report["reasons"] else "",
        _bars("Hours per source", report["hours"]),
        _bars("Seconds per row", report["seconds"]),
        *(_bars(f"Answers of {task}", labels) for task, labels in report["labels"].items()),
        f"<h2>Examples</h2><table>{''.join(map(_example, rows))}</table>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}: validation</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>'


def _bars(title: str, values: Mapping[str, float]) -> str:
    """A horizontal bar chart as a table."""
    most = max(values.values(), default=0) or 1
    lines = (
        f'<tr><td>{escape(name)}</td><td class="number">{value:,}</td>'
        f'<td class="bars"><div class="bar" style="width:{100 * value / most:.1f}%"></div></td></tr>'
        for name, value in values.items()
    )
    return f"<h2>{escape(title)}</h2><table>{''.join(lines)}</table>"


def _example(row: Mapping[str, Any]) -> str:
    """A row with its players, prompt and answer."""
    clips = (base64.b64encode(clip["bytes"]).decode() for clip in row["audio"] if clip["bytes"])
    players = "".join(f'<audio controls src="data:audio/flac;base64,{clip}"></audio>' for clip in clips)
    prompt = " ".join(
        escape(part["text"]) if part["type"] == "text" else "&#9835;"
        for message in row["messages"][:-1]
        for part in message["content"]
    )
    about = f"{row['id']} · {row['modality']} · {row['duration']:.1f} s"
    text = f"{prompt}<br><b>{escape(row['target'])}</b><br><small>{escape(about)}</small>"
    return f"<tr><td>{players}</td><td>{text}</td></tr>"
