"""Writes and reads the files of scoring: scores.json, and the values that were parsed from every row.

Beside `scores.json` lies `scores.rows.jsonl`, one row a line: what was asked, answered and expected, the outcome, the
value read, the texts as they were compared, and the quantities that the metrics add up. The report, `compare` and the
board read these files and measure nothing again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llaso_common.atomic_write import write_atomically

from .readers import AnsweredRow
from .strict import Reading
from .task_metrics import declare

SCHEMA = 2
"""Version of scores.json and of its rows."""
AGAIN = "score the answers again with `llaso eval score FOLDER --out scores.json`"


@dataclass(slots=True)
class ScoredRow:
    """An answered row, what was read of it, and its own share in the metric that ranks its file (None without one)."""

    row: AnsweredRow
    reading: Reading
    score: float | None = None

    @property
    def quantities(self) -> dict[str, Any]:
        """Return the row's quantities by name; the metrics add them up."""
        return self.reading.quantities

    def record(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        kept = {name: value for name, value in asdict(self.row).items() if name not in ("where", "judge_score")}
        return kept | self.reading._asdict() | {"score": self.score}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> ScoredRow:
        """Read what `record` wrote."""
        names = {one.name for one in fields(AnsweredRow)}
        kept = {name: value for name, value in record.items() if name in names}
        row = AnsweredRow(**kept | {"where": where, "choices": tuple(record["choices"])})
        return cls(row, Reading(**{name: record[name] for name in Reading._fields}), record["score"])


@dataclass
class Scored:
    """One system's scores under one protocol.

    Args:
        content: of scores.json, as `data/scores.schema.json` describes it.
        rows: what was read of every row, by file; empty if only the scores are at hand.
        path: of scores.json, for messages; None if it was never written.
    """

    content: dict[str, Any]
    rows: dict[str, list[ScoredRow]] = field(default_factory=dict)
    path: Path | None = None

    @property
    def system(self) -> str:
        return self.content["system"]

    @property
    def protocol(self) -> str:
        return self.content["protocol"]

    def write(self, out: Path | str, rows_out: Path | str | None = None) -> Path:
        """Write scores.json and its rows.

        Args:
            out: scores.json.
            rows_out: the file of the rows; beside `out` by default, see `rows_path`.

        Returns:
            `out`.
        """
        out = Path(out)
        lines = rows_text(self.rows)
        beside = Path(rows_out) if rows_out is not None else rows_path(out)
        write_atomically(beside, lines)
        name = beside.name if beside.parent.resolve() == out.parent.resolve() else str(beside.resolve())
        digest = hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()
        self.content["rows"] = {"file": name, "sha256": digest}
        write_atomically(out, scores_text(self.content))
        self.path = out
        return out

    @classmethod
    def read(cls, path: Path | str, with_rows: bool = True) -> Scored:
        """Read scores.json and its rows.

        Args:
            path: of scores.json.
            with_rows: False reads the scores alone.

        Raises:
            ValueError: it is not a scores.json of this version, or its rows are missing or not the ones it was
                computed from.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{error.lineno}: {error.msg}; `llaso eval score --out` writes such files"
            ) from None
        check_scores(content, str(path))
        declare((content["generation"] or {}).get("tasks", {}), str(path))
        return cls(content, _read_rows(path, content) if with_rows else {}, path)


def rows_path(scores: Path) -> Path:
    """Return where the rows of a scores.json lie: scores.rows.jsonl beside it."""
    return scores.with_name(f"{scores.stem}.rows.jsonl")


def rows_text(rows: Mapping[str, Sequence[ScoredRow]]) -> str:
    """Return the rows as JSON lines, files in the order of their names."""
    return "".join(
        json.dumps(one.record(), ensure_ascii=False, allow_nan=False) + "\n"
        for _, file in sorted(rows.items())
        for one in file
    )


def scores_text(content: Mapping[str, Any]) -> str:
    """Return the text of a scores.json."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def check_scores(content: Any, where: str) -> None:
    """Check that `content` is a scores.json of this version.

    Raises:
        ValueError: it is not.
    """
    needed = (
        "schema",
        "protocol",
        "system",
        "n",
        "coverage",
        "outcomes",
        "normalized",
        "tasks",
        "modalities",
        "files",
    )
    missing = [key for key in needed if not isinstance(content, Mapping) or key not in content]
    if missing:
        raise ValueError(f"{where}: no {', '.join(missing)}; not the content of a scores.json")
    if content["schema"] == 1:
        raise ValueError(f"{where}: schema 1, which did not keep what was read of every row; {AGAIN}")
    if content["schema"] != SCHEMA:
        raise ValueError(f"{where}: schema {content['schema']}; this version reads schema {SCHEMA}")


def _read_rows(path: Path, content: Mapping[str, Any]) -> dict[str, list[ScoredRow]]:
    if content.get("rows") is None:
        raise ValueError(f"{path}: written without what was read of every row; {AGAIN}")
    beside = path.parent / content["rows"]["file"]
    if not beside.is_file():
        raise ValueError(f"{path}: its rows, {beside}, are missing; put the file back or {AGAIN}")
    text = beside.read_bytes()
    if hashlib.sha256(text).hexdigest() != content["rows"]["sha256"]:
        raise ValueError(f"{beside}: not the rows that {path} was computed from; {AGAIN}")
    rows: dict[str, list[ScoredRow]] = {}
    for number, line in enumerate(text.decode("utf-8", "surrogatepass").split("\n")[:-1], start=1):
        one = ScoredRow.from_record(json.loads(line), f"{beside}:{number}")
        rows.setdefault(one.row.file, []).append(one)
    return rows
