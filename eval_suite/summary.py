"""Computes the content of report.json from one or several scores.json.

This module names no metric: a task's ranking metric, its direction, its baseline and its interval come with
the scores. The page, the Markdown and report.json are three forms of this one content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .scored_rows import check_scores
from .speed import main_run

Scores = Mapping[str, Any]

SCHEMA = 1
MAIN_PROTOCOL = "strict"
READABLE = 0.9
"""A task with a smaller share of readable answers is named among the findings."""


def check(scores: Sequence[Scores]) -> None:
    """Check that the inputs are what a report needs.

    Raises:
        ValueError: nothing to show, a content that is not scores.json's, one system twice under one protocol, or
            scores of different panels under one protocol.
    """
    if not scores:
        raise ValueError("nothing to report: give at least one scores.json (`llaso eval score` writes them)")
    seen = set()
    panels: dict[str, str] = {}
    for number, one in enumerate(scores, start=1):
        check_scores(one, f"scores {number}")
        if panel := one["normalized"].get("panel"):
            name = f"{panel['name']}, version {panel['version']}"
            if panels.setdefault(one["protocol"], name) != name:
                raise ValueError(
                    f"scores {number}: measured against the panel {name}, the ones before against "
                    f"{panels[one['protocol']]}; score them again with one panel (`llaso eval score --panel`)"
                )
        key = (one["system"], one["protocol"])
        if key in seen:
            raise ValueError(
                f"system {key[0]!r} occurs twice under protocol {key[1]}; name them apart with "
                "`llaso eval score --system NAME`"
            )
        seen.add(key)


def summarize(scores: Sequence[Scores]) -> dict[str, Any]:
    """Return the content of a report, without examples.

    Args:
        scores: contents of scores.json; systems in the order to show them. If both protocols are there, strict
            leads and paper is set beside it.

    Returns:
        The content of report.json.
    """
    check(scores)
    protocols = list(dict.fromkeys(one["protocol"] for one in scores))
    main = MAIN_PROTOCOL if MAIN_PROTOCOL in protocols else protocols[0]
    leading = [one for one in scores if one["protocol"] == main]
    tasks = [_task(task, leading) for task in _in_order(one["tasks"] for one in leading)]
    content = {
        "schema": SCHEMA,
        "protocol": main,
        "systems": [_system(one) for one in leading],
        "tasks": tasks,
        "modalities": _modalities(leading),
        "confusions": _confusions(leading),
        "protocols": _side_by_side(scores, main),
    }
    return {**content, "findings": _findings(content)}


def _in_order(mappings: Any) -> list[str]:
    """Return the keys of several mappings, each once, in order of first occurrence."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _system(one: Scores) -> dict[str, Any]:
    kept = {key: one["normalized"].get(key) for key in ("skill", "panel")}
    return {
        "name": one["system"],
        "protocol": one["protocol"],
        "n": one["n"],
        "coverage": one["coverage"],
        "outcomes": one["outcomes"],
        "settings": one.get("settings", {}),
        "skill": kept["skill"],
        "panel": kept["panel"],
        "speed": main_run(one.get("speed") or []),
        "categories": {
            name: _normalized_value(category) | {"n": category["n"], "coverage": category["coverage"]}
            for name, category in one.get("categories", {}).items()
        },
    }


def _normalized_value(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the skill of a category or format, or its panel score if there is no skill."""
    for name in ("skill", "panel"):
        value = part["normalized"].get(name)
        if value is not None and value["value"] is not None:
            return {"scale": name, "value": value["value"], "low": value["low"], "high": value["high"]}
    return {"scale": None, "value": None, "low": None, "high": None}


def verdict(primary: Mapping[str, Any] | None) -> str:
    """Return where a score lies against its trivial baseline: above, unclear, below, or unknown.

    "above" means better: the whole 95 % interval lies on the better side.
    """
    if primary is None or primary["value"] is None:
        return "unknown"
    baseline, low, high = primary["baseline"]["value"], primary["low"], primary["high"]
    if baseline is None or low is None or high is None:
        return "unknown"
    if primary["direction"] == "lower":
        low, high, baseline = -high, -low, -baseline
    return "above" if low > baseline else "below" if high < baseline else "unclear"


def _task(task: str, scores: Sequence[Scores]) -> dict[str, Any]:
    """Return one task in all systems."""
    described = next(one["tasks"][task] for one in scores if task in one["tasks"])
    entries = []
    for one in scores:
        found = one["tasks"].get(task)
        primary = found["primary"] if found else None
        entry: dict[str, Any] = {"system": one["system"], "n": found["n"] if found else 0}
        if found:
            entry |= {"coverage": found["coverage"], "outcomes": found["outcomes"], "metrics": found["metrics"]}
        if primary:
            entry |= {key: primary[key] for key in ("metric", "direction", "value", "low", "high", "perfect")}
            entry |= {"baseline": primary["baseline"]["value"], "baseline_metric": primary["baseline"]["metric"]}
        entry["verdict"] = verdict(primary)
        entry["normalized"] = {
            scale: (one["normalized"].get(scale) or {"tasks": {}})["tasks"].get(task) for scale in ("skill", "panel")
        }
        entry["modalities"] = {
            name: _in_format(format_["tasks"][task])
            for name, format_ in one["modalities"].items()
            if task in format_["tasks"]
        }
        entries.append(entry)
    closed = any(file["task"] == task and "confusion" in file for one in scores for file in one["files"].values())
    _mark_best(entries)
    return {
        "task": task,
        "name": described["name"],
        "category": described["category"],
        "closed": closed,
        "scores": entries,
    }


def _in_format(task: Mapping[str, Any]) -> dict[str, Any]:
    primary = task["primary"]
    values = {key: primary[key] if primary else None for key in ("metric", "value", "low", "high")}
    return {**values, "n": task["n"], "coverage": task["coverage"], "verdict": verdict(primary)}


def _mark_best(entries: Sequence[dict[str, Any]]) -> None:
    """Mark the best of several systems that share a metric."""
    valued = [entry for entry in entries if entry.get("value") is not None]
    if len(valued) > 1 and len({entry["metric"] for entry in valued}) == 1:
        pick = min if valued[0]["direction"] == "lower" else max
        best = pick(entry["value"] for entry in valued)
        for entry in valued:
            entry["best"] = entry["value"] == best


def _modalities(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """Return each format in all systems: the normalized mean over the tasks that were asked in every format.

    Formats hold different tasks, so that a mean over all tasks of each would compare the tasks, not the formats.
    """
    names = _in_order(one["modalities"] for one in scores)
    content = []
    for name in names:
        systems = []
        for one in scores:
            if name not in one["modalities"]:
                continue
            formats = [part["tasks"] for part in one["modalities"].values()]
            common = [task for task in formats[0] if all(task in tasks for tasks in formats)]
            systems.append(
                {
                    "system": one["system"],
                    "n": one["modalities"][name]["n"],
                    "tasks": list(one["modalities"][name]["tasks"]),
                }
                | {"shared_tasks": common, "shared": _mean_over(one["modalities"][name], common)}
            )
        content.append({"modality": name, "systems": systems})
    return content


def _mean_over(part: Mapping[str, Any], tasks: Sequence[str]) -> float | None:
    """Return the mean skill (or panel score) of a format over some of its tasks."""
    for scale in ("skill", "panel"):
        found = (part["normalized"].get(scale) or {"tasks": {}})["tasks"]
        values = [found[task]["value"] for task in tasks if task in found]
        if values and len(values) == len(tasks):
            return sum(values) / len(values)
    return None


def _confusions(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    return [
        {"system": one["system"], "file": name, "task": file["task"], "n": file["n"], **file["confusion"]}
        for one in scores
        for name, file in one["files"].items()
        if "confusion" in file
    ]


def _side_by_side(scores: Sequence[Scores], main: str) -> dict[str, Any] | None:
    """Return every task under both protocols, with each system's rank in both."""
    others = [one for one in scores if one["protocol"] != main]
    if not others:
        return None
    other = others[0]["protocol"]
    by_key = {(one["system"], one["protocol"]): one for one in scores}
    systems = [one["system"] for one in scores if one["protocol"] == main and (one["system"], other) in by_key]
    rows = []
    for task in _in_order(by_key[system, main]["tasks"] for system in systems):
        found = {}
        for protocol in (other, main):
            primaries = {system: by_key[system, protocol]["tasks"].get(task, {}).get("primary") for system in systems}
            found[protocol] = _ranked({system: primary for system, primary in primaries.items() if primary})
        for system in systems:
            if system in found[other] and system in found[main]:
                rows.append({"task": task, "system": system, other: found[other][system], main: found[main][system]})
    return {"other": other, "main": main, "systems": systems, "rows": rows}


def _ranked(primaries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return metric, value and rank (1 is best) by system; no rank without a value."""
    valued = [primary for primary in primaries.values() if primary["value"] is not None]
    ranks = {}
    for system, primary in primaries.items():
        sign = 1 if primary["direction"] == "lower" else -1
        value, rank = primary["value"], None
        if value is not None:
            rank = 1 + sum(sign * rival["value"] < sign * value for rival in valued)
        ranks[system] = {"metric": primary["metric"], "value": value, "rank": rank}
    return ranks


def _findings(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what to know before the numbers: statements, and by system the tasks or rows that each is true of."""
    unclear = "Closed-set tasks whose interval is not clear of the majority baseline"
    clear = "Closed-set tasks above their majority baseline, interval clear of it"
    other = "Other tasks not clear of their trivial baseline"
    unread = "Tasks in which fewer than 90 % of the rows could be read as an answer"
    failed = "Rows whose generation failed (they count as wrong)"
    found: dict[str, list[dict[str, str]]] = {clear: [], unclear: [], other: [], unread: [], failed: []}
    for number, system in enumerate(content["systems"]):

        def say(statement: str, what: str, system: str = system["name"]) -> None:
            found[statement].append({"system": system, "what": what})

        entries = [(task, task["scores"][number]) for task in content["tasks"]]
        compared = [(task, entry) for task, entry in entries if entry["verdict"] != "unknown"]
        closed = [(task, entry) for task, entry in compared if task["closed"]]
        behind = [task["task"] for task, entry in closed if entry["verdict"] != "above"]
        if behind:
            say(unclear, f"{', '.join(behind)} ({len(behind)} of {len(closed)})")
        elif closed:
            say(clear, f"all {len(closed)}")
        if rest := [task["task"] for task, entry in compared if not task["closed"] and entry["verdict"] != "above"]:
            say(other, ", ".join(rest))
        if low := [task["task"] for task, entry in entries if entry["n"] and entry["coverage"] < READABLE]:
            say(unread, ", ".join(low))
        if errors := system["outcomes"].get("error", 0):
            say(failed, f"{errors} of {system['n']}")
    return [{"statement": statement, "systems": systems} for statement, systems in found.items() if systems]
