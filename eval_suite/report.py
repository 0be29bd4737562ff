"""Shows scores: one self-contained page, the same in Markdown, its numbers as report.json, and the radar as a picture.

In come one or several scores.json with what was read of every row, and the corpus if its sound is wanted. The page's
numbers lead to the pages of `evidence`, which show the rows. No answer is read or scored again here. Whatever a model
said is data: it reaches the page escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llaso_common.atomic_write import write_atomically

from . import score
from .charts import bar_svg, radar_svg, scatter_svg, write_radar_png
from .corpus import EvalCorpus
from .evidence import AUDIO_BYTES, EvidenceLinks, write_evidence
from .examples import Sounds, choose_examples, find_corpus
from .groups import group_scores, worst_groups
from .metrics import METRICS, PROTOCOLS
from .power import forecast, task_errors
from .repeats import repeat_scores
from .scored_rows import Scored
from .speed import machine
from .summary import Scores, summarize

TEMPLATES = Path(__file__).parent / "templates"
RADAR_AXES = 3
"""Fewer tasks have no radar."""

MODALITY_NAMES = {"text_audio": "text + audio", "audio_text": "audio + text", "audio": "audio only"}


def write_report(
    scores: Sequence[Scored | Scores | str | Path],
    out: str | Path,
    *,
    data: str | Path | None = None,
    examples: bool = True,
    title: str = "LLaSO-Eval",
    seed: int = 0,
    audio_bytes: int = AUDIO_BYTES,
) -> Path:
    """Write `index.html`, `report.md`, `report.json` and `radar.png`, and the pages of single rows in `evidence/`.

    Args:
        scores: scores with their rows, paths of scores.json, or contents of scores.json (then without examples); one
            or several systems, one or both protocols.
        out: the folder to write.
        data: corpus folder or Hub id for the rows' sound; by default the folder that the answers were made from.
        examples: show single rows of systems whose rows are at hand: a few on the page, all in `evidence/`.
        title: heading of the page.
        seed: of the examples drawn at random.
        audio_bytes: of recordings to copy beside the pages of single rows.

    Returns:
        `out`.

    Raises:
        ValueError: the scores cannot be read; the message names file and remedy.
    """
    scored = [_scored(one) for one in scores]
    content = {"title": title, **summarize([one.content for one in scored])}
    content["detectable"] = _detectable(scored, content["protocol"])
    content |= _groups_and_repeats(scored, content["protocol"])
    with_rows = [one for one in scored if one.rows] if examples else []
    corpus = find_corpus(data, with_rows) if with_rows else None
    content["examples"] = _examples(content, with_rows, corpus, seed)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if with_rows:
        write_evidence(
            with_rows,
            content["protocol"],
            out,
            _render_rows,
            title=title,
            corpus=corpus,
            audio_bytes=audio_bytes,
        )
    write_atomically(out / "index.html", render("report.html", content, EvidenceLinks(with_rows)))
    write_atomically(out / "report.md", render("report.md", content))
    without_sound = [{key: example[key] for key in example if key != "audio"} for example in content["examples"]]
    plain = json.dumps({**content, "examples": without_sound}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "report.json", plain + "\n")
    axes, series = radar_values(content)
    names = [system["name"] for system in content["systems"]]
    write_radar_png(out / "radar.png", axes, list(zip(names, series, strict=True)))
    return out


def _detectable(scored: Sequence[Scored], protocol: str) -> dict[str, float]:
    """Return by task the smallest difference that the median pair of systems can be told apart by."""
    systems = [one for one in scored if one.protocol == protocol and one.rows]
    errors = task_errors(systems) if len(systems) > 1 else {}
    return {task: one["detectable"] for task, one in forecast(errors, 1e-2).items()}


def _groups_and_repeats(scored: Sequence[Scored], protocol: str) -> dict[str, Any]:
    """Return each system's gaps between groups, if rows have any, and what repeated answers show.

    Returns:
        `groups`: system, the gap of each attribute and task with its best and worst group, and the sure gaps in words.
        `repeats`: system, task, kind (samples or wordings), and what `repeats.spread` gives.
    """
    groups, repeats = [], []
    for one in scored:
        if one.protocol != protocol or not one.rows:
            continue
        found = group_scores(one, resamples=one.content["settings"]["resamples"], seed=one.content["settings"]["seed"])
        gaps = [
            {"attribute": attribute, "task": task, "metric": each["metric"], "gap": each["gap"]}
            | {end: each["groups"][each["gap"][end]] | {"group": each["gap"][end]} for end in ("best", "worst")}
            for attribute, tasks in found.items()
            for task, each in tasks["tasks"].items()
        ]
        if gaps:
            groups.append({"system": one.system, "gaps": gaps, "sure": worst_groups(found)})
        repeats += [
            {"system": one.system, "task": task, "kind": kind, **each}
            for task, kinds in repeat_scores(one).items()
            for kind, each in kinds.items()
            if each is not None
        ]
    return {"groups": groups, "repeats": repeats}


def _scored(one: Scored | Scores | str | Path) -> Scored:
    if isinstance(one, Scored):
        return one
    return Scored.read(one) if isinstance(one, (str, Path)) else Scored(dict(one))


def collect(paths: Sequence[str | Path], *, resamples: int = 1000, seed: int = 0) -> list[Scored]:
    """Return what a report is made of: scores as they are, and folders of answers scored under every protocol.

    Args:
        paths: scores.json files; folders of one system's answers; folders of such folders.
        resamples: of the bootstrap, for folders.
        seed: of the bootstrap.

    Raises:
        ValueError: a path is neither, or its content cannot be read.
    """
    found: list[Scored] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(Scored.read(path))
            continue
        for folder in answer_folders(path):
            found += [
                score.score_rows(folder, protocol=protocol, resamples=resamples, seed=seed) for protocol in PROTOCOLS
            ]
    return found


def answer_folders(path: Path) -> list[Path]:
    """Return `path` if it holds answers, else the folders in it."""
    holds_answers = any(path.glob("*.jsonl")) or any(path.glob("*.json"))
    return [path] if holds_answers else sorted(inner for inner in path.iterdir() if inner.is_dir())


def _examples(
    content: Mapping[str, Any], scored: Sequence[Scored], corpus: EvalCorpus | None, seed: int
) -> list[dict[str, Any]]:
    """Choose rows of every system whose rows are at hand, with their sound."""
    by_system = {one.system: one for one in scored if one.protocol == content["protocol"]}
    sounds = Sounds(corpus) if corpus else None
    examples = []
    for number, system in enumerate(content["systems"]):
        if system["name"] not in by_system:
            continue
        entries = {task["task"]: task["scores"][number] for task in content["tasks"] if task["scores"][number]["n"]}
        few = 1 if len(by_system) > 2 else 2
        examples += choose_examples(by_system[system["name"]], entries, worst=few, drawn=few, seed=seed)
    for example in examples:
        example["audio"] = sounds.of(example["id"]) if sounds else []
    return examples


def radar_values(content: Mapping[str, Any]) -> tuple[list[str], list[list[float | None]]]:
    """Return the axes and one line a system: skill by task, or the panel score if a protocol has no skill."""
    scale = radar_scale(content)
    tasks = [
        task
        for task in content["tasks"]
        if scale and any(entry["normalized"][scale] is not None for entry in task["scores"])
    ]
    series = [
        [task["scores"][number]["normalized"][scale] for task in tasks] for number in range(len(content["systems"]))
    ]
    values = [[None if value is None else value["value"] for value in line] for line in series]
    return [task["task"] for task in tasks], values


def radar_scale(content: Mapping[str, Any]) -> str | None:
    """Return the scale that the radar shows, skill or panel."""
    for scale in ("skill", "panel"):
        if any(entry["normalized"][scale] for task in content["tasks"] for entry in task["scores"]):
            return scale
    return None


# Rendering -----------------------------------------------------------------------------------------------------


def number(value: float | None, like: float | None = None) -> str:
    """Return a value at the precision that a reader can use, or at that of another value; "–" if there is none."""
    if value is None:
        return "–"
    size = abs(value if like is None else like)
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"


def interval(entry: Mapping[str, Any]) -> str:
    """Return the two ends of an entry's interval, as precise as its value."""
    if entry.get("low") is None or entry.get("high") is None:
        return "–"
    return f"{number(entry['low'], entry['value'])} – {number(entry['high'], entry['value'])}"


def percent(share: float | None) -> str:
    """Return a share in percent: "100 %" only if nothing is missing."""
    if share is None:
        return "–"
    text = f"{100 * share:.1f}"
    return ("99.9" if text == "100.0" and share < 1 else text).removesuffix(".0") + " %"


def environment(template: str) -> Any:
    """Return the environment that a template is filled in; HTML is escaped, and a name that is missing is an error."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"number": number, "interval": interval, "percent": percent, "cell": _markdown_cell}
    return made


def _render_rows(template: str, content: Mapping[str, Any]) -> str:
    """Return a page of single rows."""
    css, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "evidence.js"))
    return environment(template).get_template(template).render(**content, css=css, script=script)


def render(template: str, content: Mapping[str, Any], links: EvidenceLinks | None = None) -> str:
    """Return a template filled with a report's content. HTML is escaped, and Markdown stays in its table cell.

    Args:
        template: its file name.
        content: of the report.
        links: to the rows behind the numbers; without it, numbers lead nowhere.
    """
    axes, series = radar_values(content)
    page = environment(template).get_template(template)
    return page.render(
        **content,
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
        reasons={name: metric.change for name, metric in METRICS.items()},
        modality_names=MODALITY_NAMES,
        radar=radar_svg(axes, series) if len(axes) >= RADAR_AXES else None,
        radar_scale=radar_scale(content),
        bar=_bar,
        machine=machine,
        speed_picture=_speed_picture(content),
        heat=_heat,
        scale_of=_scale_of,
        rows_of=links or EvidenceLinks([]),
    )


def _speed_picture(content: Mapping[str, Any]) -> str | None:
    """Draw quality against speed, if there are systems with both."""
    scale = radar_scale(content)
    points = [
        (one["speed"]["rtfx"], one[scale]["value"], (one[scale]["low"], one[scale]["high"]), one["name"], number)
        for number, one in enumerate(content["systems"])
        if scale and one["speed"] and one["speed"]["rtfx"] and one[scale] and one[scale]["value"] is not None
    ]
    return scatter_svg(points, ("seconds of audio answered in a second", scale or "")) if points else None


def _scale_of(task: Mapping[str, Any]) -> float:
    """Return the right edge of a task's bars: the best value if more is better, else what holds all that is drawn."""
    entries = [entry for entry in task["scores"] if entry.get("value") is not None]
    if entries and entries[0]["direction"] == "higher" and entries[0].get("perfect"):
        return entries[0]["perfect"]
    drawn = [entry[key] for entry in entries for key in ("value", "high", "baseline") if entry.get(key) is not None]
    return max(drawn, default=1.0) * 1.02


def _bar(entry: Mapping[str, Any], scale: float, system: int) -> str:
    if entry.get("value") is None:
        return ""
    return bar_svg(entry["value"], (entry["low"], entry["high"]), entry["baseline"], scale, system)


def _heat(count: int, row: Sequence[int], unanswered: int) -> float:
    """Return a cell of a confusion matrix as a share of its row."""
    total = sum(row) + unanswered
    return round(count / total, 3) if total else 0.0


def _markdown_cell(text: Any) -> str:
    """Return text that stays in its table cell and starts no markup."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_{}[]|#":
        line = line.replace(mark, "\\" + mark)
    return line
