"""Writes the page of a validation: the checks, bars of hours, lengths and labels, and rows to listen to."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from .disagreement import Comparison

OPEN = "(open)"
"""The label of free answers in the report."""
MOST_BARS = 61
"""Bars of one chart; further values are one bar together."""
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { overflow-wrap: anywhere; line-height: 1.2; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 2rem 3rem; }
table { border-collapse: collapse; width: 100%; }
td { padding: .15rem .6rem .15rem 0; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { background: #4a7ab5; height: .8rem; border-radius: 2px; min-width: 1px; } .bars { width: 45%; }
.good { color: light-dark(#1c7a3c, #6fce8f); } .bad { color: light-dark(#b3261e, #ff8a80); }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem 3rem; }
article { overflow-wrap: anywhere; } article p { margin: .3rem 0; } audio { height: 2.2rem; width: min(100%, 20rem); }
small { opacity: .7; } h2.apart { margin-top: 2.5rem; } .listed td { vertical-align: top; }
"""


def write(
    title: str,
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    bad: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    misheard: Sequence[tuple[Mapping[str, Any], Comparison, str]] = (),
) -> str:
    """Write one self-contained HTML page.

    Args:
        title: name of the corpus.
        report: content of validation.json.
        rows: rows to show with a player each.
        bad: some entries of bad_rows.jsonl.
        names: of the tasks, by code.
        misheard: rows whose recordings disagree most with their texts, with the comparison and what was heard.
    """
    hours = sum(report["hours"].values())
    good = report["rows"] - report["bad"]
    verdict = f'<p class="good">{good:,} rows are good. They last {hours:,.2f} hours.</p>'
    if report["bad"]:
        verdict += f'<p class="bad">{report["bad"]:,} bad rows are still there: bad_rows.jsonl lists them.</p>'
    if report["set_aside"]:
        verdict += f'<p class="bad">{report["set_aside"]:,} bad rows were set aside: bad_rows.jsonl lists them.</p>'
    if report["against"]:
        verdict += f"<p>Compared with {escape(', '.join(report['against']))}.</p>"
    tasks = {f"{task} ({names[task]})": sum(labels.values()) for task, labels in report["labels"].items()}
    charts = [
        _bars("Why rows are bad", report["reasons"]),
        _bars("Hours per source", report["hours"]),
        _bars("Rows per format and split", report["formats"]),
        _bars("Rows per task", tasks),
        _bars("Seconds per row", report["seconds"]),
        *(_bars(f"Answers of {task}", labels) for task, labels in report["labels"].items() if set(labels) != {OPEN}),
    ]
    sections = [
        f"<h1>{escape(title)}: validation</h1>{verdict}",
        *(f"<p>{escape(note)}</p>" for note in report["notes"]),
        f'<div class="charts">{"".join(charts)}</div>',
        _bad_rows(bad, report["bad"] + report["set_aside"]),
        *(_listening(report["listening"], misheard) if "listening" in report else ()),
        '<h2 class="apart">Examples, drawn by chance</h2>' if rows else "",
        f'<div class="examples">{"".join(map(_example, rows))}</div>',
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: validation</title><style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>'


def _listening(
    report: Mapping[str, Any], misheard: Sequence[tuple[Mapping[str, Any], Comparison, str]]
) -> Iterator[str]:
    """Yield the section about what a listener heard: error rates as bars, and players for the worst rows."""
    rate = "" if report["wer"] is None else f" The word error rate over all of them is {report['wer']:.3f}."
    unheard = f" {report['not_heard']:,} rows could not be heard." if report["not_heard"] else ""
    yield (
        f'<h2 class="apart">What {escape(report["listener"]["name"])} heard</h2>'
        f"<p>{report['rows']:,} transcripts were compared with what was heard (heard.jsonl lists them).{rate}"
        f"{unheard} A listener errs too: what it hears otherwise is a hint, not a proof.</p>"
    )
    sources = {name: entry["wer"] for name, entry in report["sources"].items() if entry["wer"] is not None}
    charts = (
        _bars("What the recordings say", report["kinds"]),
        _bars("Rows by word error rate", report["wer_of_rows"]),
        _bars("Word error rate by source", sources),
    )
    yield f'<div class="charts">{"".join(charts)}</div>'
    if misheard:
        articles = (
            _example(row, f"<p>heard: {escape(heard)}</p><small>{found.kind}, word error rate {found.wer:.2f}</small>")
            for row, found, heard in misheard
        )
        yield f'<h2 class="apart">The largest differences</h2><div class="examples">{"".join(articles)}</div>'


def _bars(title: str, values: Mapping[str, float]) -> str:
    """Return a horizontal bar chart as a table; "" without values."""
    if not values:
        return ""
    if len(values) > MOST_BARS:
        first = dict(itertools.islice(values.items(), MOST_BARS))
        values = {**first, f"({len(values) - MOST_BARS} more)": sum(values.values()) - sum(first.values())}
    most = max(values.values(), default=0) or 1
    lines = (
        f'<tr><td>{escape(name)}</td><td class="number">{value:,}</td>'
        f'<td class="bars"><div class="bar" style="width:{100 * value / most:.1f}%"></div></td></tr>'
        for name, value in values.items()
    )
    return f"<section><h2>{escape(title)}</h2><table>{''.join(lines)}</table></section>"


def _bad_rows(bad: Sequence[Mapping[str, Any]], count: int) -> str:
    """List the first bad rows: where they were found, and why they are bad."""
    if not bad:
        return ""
    lines = (
        f"<tr><td>{escape(entry['file'])}, row {entry['row']}</td><td>{escape(entry['id'] or '')}</td>"
        f"<td>{escape('; '.join(entry['reasons']))}</td></tr>"
        for entry in bad
    )
    return f'<h2 class="apart">Bad rows, {len(bad)} of {count:,}</h2><table class="listed">{"".join(lines)}</table>'


def _example(row: Mapping[str, Any], more: str = "") -> str:
    """Show a row with its players, prompt and answer, and `more` as HTML."""
    name = escape(row["id"], quote=True)
    clips = (base64.b64encode(clip["bytes"]).decode() for clip in row["audio"] if clip["bytes"])
    players = "".join(
        f'<audio controls aria-label="{name}" src="data:audio/flac;base64,{clip}"></audio>' for clip in clips
    )
    prompt = " ".join(
        escape(part["text"]) if part["type"] == "text" else "&#9835;"
        for message in row["messages"][:-1]
        for part in message["content"]
    )
    about = f"{row['id']} · {row['modality']} · {row['duration']:.1f} s"
    answer = f"<p><b>{escape(row['target'])}</b></p><small>{escape(about)}</small>"
    return f"<article>{players}<p>{prompt}</p>{answer}{more}</article>"
