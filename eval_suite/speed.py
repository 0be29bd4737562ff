"""Measures how fast a system answered: seconds of each row, and sums over a run without the warm-up.

`generate` times every batch. A row's `seconds` is its share of the time between two batches, so that the shares of a
run add up to its wall time, preparation of inputs included and loading of weights not. The first batch of a process
warms the device up and is kept apart. Timings differ from run to run: they lie in `speed.json` beside the answers,
whose own files do not depend on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPEED = "speed.json"


def summarize_speed(
    times: Mapping[str, Mapping[str, Any]], durations: Mapping[str, float], runs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the content of speed.json.

    Args:
        times: what each row took, by its id: `run`, `seconds`, `latency`, `first_token`, `tokens`, `warm_up` and
            `peak_memory`, as `answer_records` keeps them.
        durations: seconds of audio of each row, by its id.
        runs: what each run was made on, by its number.

    Returns:
        `runs`, one entry for each distinct machine and setting, and `rows`.
    """
    groups: dict[str, list[str]] = {}
    for row_id, time in times.items():
        groups.setdefault(json.dumps(runs.get(time["run"], {}), sort_keys=True), []).append(row_id)
    entries = []
    for machine, ids in sorted(groups.items()):
        warm = [row_id for row_id in ids if times[row_id]["warm_up"]]
        steady = [row_id for row_id in ids if not times[row_id]["warm_up"]]
        entry = json.loads(machine) | figures(
            [times[one] for one in steady or warm], [durations[one] for one in steady or warm]
        )
        peaks = [times[row_id]["peak_memory"] for row_id in ids if times[row_id]["peak_memory"] is not None]
        entry["peak_memory"] = max(peaks, default=None)
        entry["warm_up"] = {
            "rows": len(warm),
            "seconds": sum(times[row_id]["seconds"] for row_id in warm),
            "counted": not steady,
        }
        entries.append(entry)
    kept = ("seconds", "latency", "first_token", "tokens", "warm_up")
    rows = {row_id: {name: time[name] for name in kept} for row_id, time in sorted(times.items())}
    return {"schema": 1, "runs": entries, "rows": rows}


def figures(times: Sequence[Mapping[str, Any]], durations: Sequence[float]) -> dict[str, Any]:
    """Return rows, seconds and rates of some rows.

    `rtfx` is seconds of audio answered in a second; `tokens_per_second` counts generated tokens over the same time;
    `first_token` and `latency` are seconds from asking to the first token and to the answer, as median and 95th
    percentile over rows. A rate without its parts is None.
    """
    seconds, audio = sum(time["seconds"] for time in times), sum(durations)
    tokens = [time["tokens"] for time in times]
    counted = sum(tokens) if tokens and None not in tokens else None
    return {
        "rows": len(times),
        "seconds": seconds,
        "audio_seconds": audio,
        "rtfx": audio / seconds if seconds and audio else None,
        "tokens": counted,
        "tokens_per_second": counted / seconds if seconds and counted is not None else None,
        "first_token": _quantiles([time["first_token"] for time in times]),
        "latency": _quantiles([time["latency"] for time in times]),
    }


def _quantiles(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    median, high = np.quantile(known, [0.5, 0.95])
    return {"median": float(median), "p95": float(high)}


def read_speed(folder: Path) -> dict[str, Any]:
    """Return the content of speed.json in a predictions folder; without runs and rows if there is none."""
    if not (folder / SPEED).is_file():
        return {"runs": [], "rows": {}}
    return json.loads((folder / SPEED).read_text(encoding="utf-8"))


def main_run(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the run that answered most rows; None if nothing was timed."""
    return max(runs, key=lambda run: run["rows"], default=None)


def machine(run: Mapping[str, Any]) -> str:
    """Return what a run was made on, in words."""
    named = [run.get("device"), run.get("precision"), f"batch {run['batch_size']}" if run.get("batch_size") else None]
    if run.get("processes", 1) > 1:
        named.append(f"{run['processes']} processes, figures of one")
    return ", ".join(str(part) for part in named if part) or "unknown machine"


def compare_speed(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], names: tuple[str, str]
) -> dict | None:
    """Return two systems' speeds and a verdict in words; None unless both were timed."""
    one, other = main_run(a), main_run(b)
    if one is None or other is None or not one["rtfx"] or not other["rtfx"]:
        return None
    ratio = one["rtfx"] / other["rtfx"]
    alike = machine(one) == machine(other)
    faster, slower = names if ratio >= 1 else names[::-1]
    where = f"both on {machine(one)}" if alike else f"but on {machine(one)} and on {machine(other)}"
    said = f"{faster} answers {max(ratio, 1 / ratio):.2f} times as fast as {slower}, {where}"
    return {"a": one["rtfx"], "b": other["rtfx"], "ratio": ratio, "same_machine": alike, "verdict": said}
