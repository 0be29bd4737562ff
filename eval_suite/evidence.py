"""The rows behind the numbers: one page a task, with every row's audio, prompt, answers, readings and scores.

Pages are made from what scoring kept of rows; nothing is measured. Each holds its rows as JSON and shows 25 at a time,
so that ten thousand rows stay usable from a folder, without a server or a network. The address of a page carries its
filters, e.g. `ASR.html#system=LLaSO&format=audio&outcome=malformed`: that is how the report leads here. Recordings are
copied beside the pages as the corpus holds them, each once.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import soundfile

from llaso_common.atomic_write import write_atomically

from .corpus import EvalCorpus, digest
from .groups import attributes
from .metrics import METRICS
from .scored_rows import Scored, ScoredRow
from .task_metrics import TASKS

FOLDER = "evidence"
AUDIO = "audio"
AUDIO_BYTES = 1_000_000_000
"""Bytes of recordings that are copied beside the pages unless more are asked for."""
SUFFIXES = {"WAV": "wav", "WAVEX": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}
"""Formats of libsndfile that browsers play, and how their files are called."""

Rows = dict[tuple[str, str], dict[tuple[str, str], ScoredRow]]
"""(file, id) -> (system, protocol) -> what was read."""


def page_name(task: str) -> str:
    """Return the file name of a task's page."""
    return re.sub(r"[^\w.-]", "_", task) + ".html"


class EvidenceLinks:
    """Gives the addresses of rows, from the folder of the report; none for rows that are not at hand.

    Args:
        scored: scores, with or without their rows.
    """

    def __init__(self, scored: Sequence[Scored]):
        self.shown = {
            (one.row.task, each.system, each.protocol)
            for each in scored
            for rows in each.rows.values()
            for one in rows
        }

    def __bool__(self) -> bool:
        """Return whether any rows are at hand."""
        return bool(self.shown)

    def __call__(self, task: str, system: str, protocol: str, **filters: str) -> str | None:
        """Return the address of a system's rows of a task.

        Args:
            task: its code.
            system: whose answers.
            protocol: they were read under.
            filters: what the rows have in common: `format`, `outcome`, `file`, `source`, `label`, `read` (the label
                read), `group` ("attribute: value") or `row` (the id).
        """
        if (task, system, protocol) not in self.shown:
            return None
        return f"{FOLDER}/{page_name(task)}#{urlencode({'system': system, 'protocol': protocol, **filters})}"


def write_evidence(
    scored: Sequence[Scored],
    protocol: str,
    out: Path,
    render: Any,
    *,
    title: str,
    corpus: EvalCorpus | None = None,
    audio_bytes: int = AUDIO_BYTES,
) -> None:
    """Write the pages of all tasks below `out`, an overview of them, and the recordings.

    Args:
        scored: scores with their rows, of one or several systems, under one or both protocols.
        protocol: that the pages show first.
        out: the folder of the report.
        render: from a template's name and content to a page.
        title: heading of the pages.
        corpus: the data that the answers were made from, for the recordings; None if it is not at hand.
        audio_bytes: of recordings to copy. Rows whose recordings did not fit say so.
    """
    folder = out / FOLDER
    protocols = sorted({one.protocol for one in scored if one.rows}, key=lambda name: name != protocol)
    systems = list(dict.fromkeys(one.system for one in scored if one.rows))
    tasks: dict[str, Rows] = {}
    for each in scored:
        for rows in each.rows.values():
            for one in rows:
                where = tasks.setdefault(one.row.task, {}).setdefault((one.row.file, one.row.id), {})
                where[each.system, each.protocol] = one
    recordings = Recordings(corpus, folder / AUDIO, audio_bytes) if corpus is not None else None
    if recordings is not None:
        recordings.copy(row_id for rows in tasks.values() for _, row_id in rows)
    known: dict[tuple[str, str], dict[str, str]] = {}
    for each in scored:
        for place, found in attributes(each).items():  # under the protocol paper, labels are not known
            known[place] = known.get(place, {}) | found
    shown = []
    for task in (code for code in TASKS if code in tasks):
        content = {
            "task": task,
            "name": TASKS[task].name,
            "systems": systems,
            "protocols": protocols,
            "metrics": _metrics(scored, task),
            "sound": recordings is not None,
            "rows": [_row(read, known[where], systems, protocols, recordings) for where, read in tasks[task].items()],
        }
        page = render(
            "evidence.html", {"title": title, "task": task, "name": TASKS[task].name, "data": _embedded(content)}
        )
        write_atomically(folder / page_name(task), page)
        counts = {
            system: sum(any(key[0] == system for key in read) for read in tasks[task].values()) for system in systems
        }
        shown.append({"task": task, "name": TASKS[task].name, "page": page_name(task), "counts": counts})
    index = {"title": title, "tasks": shown, "systems": systems, "protocol": protocol}
    write_atomically(folder / "index.html", render("evidence_index.html", index))
    _remove_others(folder, {"index.html", *map(page_name, tasks)}, recordings)


def _remove_others(folder: Path, pages: set[str], recordings: Recordings | None) -> None:
    """Remove the pages and recordings that an earlier report left here."""
    for path in folder.glob("*.html"):
        if path.name not in pages:
            path.unlink()
    kept = recordings.names if recordings is not None else set()
    for path in (folder / AUDIO).glob("*"):
        if path.name not in kept and re.fullmatch(r"[0-9a-f]{20}\.\w+", path.name):
            path.unlink()


def _metrics(scored: Sequence[Scored], task: str) -> dict[str, dict[str, str]]:
    """Return the metric that a row's score is a share of, by protocol."""
    found: dict[str, dict[str, str]] = {}
    for one in scored:
        primary = one.content["tasks"].get(task, {}).get("primary") if one.rows else None
        if primary is not None:
            metric = METRICS[primary["metric"]]
            found.setdefault(one.protocol, {"name": metric.title or metric.name, "better": metric.better})
    return found


def _row(
    read: Mapping[tuple[str, str], ScoredRow],
    known: Mapping[str, str],
    systems: Sequence[str],
    protocols: Sequence[str],
    recordings: Recordings | None,
) -> dict[str, Any]:
    """Return a row as a page holds it: what was asked, and each system's answer with its readings by protocol."""
    row = next(iter(read.values())).row
    content: dict[str, Any] = {
        "file": row.file,
        "id": row.id,
        "format": row.modality,
        "source": row.source,
        "asked": row.instruction,
        "expected": row.reference,
        "choices": list(row.choices),
        "attributes": known,
    }
    if recordings is not None:
        content |= recordings.of(row.id)
    content["answers"] = [
        _answer({protocol: read[system, protocol] for protocol in protocols if (system, protocol) in read})
        for system in systems
    ]
    return {name: value for name, value in content.items() if value not in ("", [], {})}


def _answer(readings: Mapping[str, ScoredRow]) -> dict[str, Any] | None:
    if not readings:
        return None
    row = next(iter(readings.values())).row
    content: dict[str, Any] = {
        "said": row.prediction or "",
        "error": row.error,
        "took": (row.speed or {}).get("latency"),
    }
    content["read"] = {
        protocol: {
            "outcome": one.reading.outcome,
            "parsed": one.reading.parsed if one.reading.parsed != row.prediction else None,
            "compared": one.reading.normalized,
            "score": one.score,
            "label": one.quantities.get("label"),
            "answer": one.quantities.get("answer"),
            "judge": one.quantities.get("judge_score"),
        }
        for protocol, one in readings.items()
    }
    content["read"] = {protocol: _known(one) for protocol, one in content["read"].items()}
    return _known(content)


def _known(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value is not None}


def _embedded(content: Mapping[str, Any]) -> str:
    """Return JSON that may stand within a script element, whatever a model said."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").encode("utf-8", "replace").decode("utf-8")


class Recordings:
    """Copies the recordings of a corpus into a folder, each once, within a budget.

    Args:
        corpus: the data.
        folder: to copy into.
        budget: bytes to copy.
    """

    def __init__(self, corpus: EvalCorpus, folder: Path, budget: int):
        self._corpus, self._folder, self._left = corpus, folder, budget
        self._made: dict[str, dict[str, Any]] = {}
        self.names: set[str] = set()

    def copy(self, row_ids: Iterable[str]) -> None:
        """Copy the recordings of rows, in an order drawn by their ids, so that a small budget serves every task."""
        known = {row.id: row for row_id in row_ids if (row := self._corpus.row_of(row_id)) is not None}
        for row_id in sorted(known, key=digest):
            self._made[row_id] = self._copied(self._corpus.clips(known[row_id].index))

    def of(self, row_id: str) -> dict[str, Any]:
        """Return the files of a row in `audio`, and why some are missing in `silent`."""
        row = self._corpus.row_of(row_id)
        return {"silent": "the row is not in the data"} if row is None else self._made[row.id]

    def _copied(self, clips: Sequence[bytes]) -> dict[str, Any]:
        names, silent = [], None
        for clip in clips:
            try:
                suffix = SUFFIXES.get(soundfile.info(io.BytesIO(clip)).format)
            except soundfile.LibsndfileError:
                suffix = None
            name = f"{hashlib.sha256(clip).hexdigest()[:20]}.{suffix}"
            if suffix is None:
                silent = "a recording is in a format that browsers do not play"
            elif name not in self.names and len(clip) > self._left:
                silent = "a recording was left out: the limit of copied audio is reached (--audio-limit)"
            else:
                if name not in self.names:
                    self._left -= len(clip)
                    self.names.add(name)
                    if not (self._folder / name).is_file():
                        write_atomically(self._folder / name, clip)
                names.append(name)
        return {name: value for name, value in (("audio", names), ("silent", silent)) if value}
