"""Reads the rows to be answered from a corpus folder or Hub data set; clips are decoded on demand.

Everything but the audio is read at once, so that rows can be ordered by length; a clip is read and decoded only
when its batch comes up (`llaso_common.audio`; torchcodec is never needed).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from llaso_common import tasks
from llaso_common.open_corpus import open_split
from llaso_common.schema import TASK_DEFINITION, clean_messages, clip_bytes

from .task_metrics import TASKS

ATTRIBUTES = {"style": "style", "template_id": "wording", "voice": "voice"} | {
    name: name for name in ("gender", "age", "accent", "language", "noise")
}
"""Columns whose values are groups to score by, if the data has them, and the attribute each is called."""
REQUIRED_COLUMNS = ("id", "task", "category", "modality", "source", "messages", "audio", "target")


@dataclass(frozen=True)
class Question:
    """One question to a model, with what scoring needs to know about it. `index` is its place in the data."""

    index: int
    id: str
    file: str
    task: str
    category: str
    modality: str
    source: str
    messages: tuple[dict[str, Any], ...]
    """The conversation up to the answer: roles, and content parts typed "text" or "audio"."""
    reference: str
    choices: tuple[str, ...]
    cluster: str
    """Rows of one cluster share a recording and are resampled together: the digest of the audio, else the id."""
    duration: float
    digest: str
    """SHA-256 of what the model is shown: messages and audio; of a repeat, its number as well."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Attributes of the recording and the instruction by which scores are grouped; see `ATTRIBUTES`."""
    sample: int = 0
    """Number of the repeat; 0 for the first answer."""
    repeat_of: str | None = None
    """Id of the row that this one repeats."""

    @property
    def instruction(self) -> str:
        """The user's text, without the audio."""
        return "\n".join(
            part["text"]
            for message in self.messages
            if message["role"] == "user"
            for part in message["content"]
            if part["type"] == "text" and part["text"].strip()
        )


def digest(*values: Any) -> str:
    """Return the SHA-256 of JSON values, the same on every machine."""
    canonical = json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def encode_wav(samples: np.ndarray, sampling_rate: int) -> bytes:
    """Encode mono float samples `(n,)` as a 16-bit WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


class EvalCorpus:
    """One split of a data set in the row schema of `llaso_common`.

    Args:
        data: a corpus folder, or the id of a data set on the Hub.
        config: which of its configs, e.g. a modality format; its default one by default.
        split: which split.
        limit: keep this many rows only. They are picked by a digest of their id, so that a small sample is the
            same everywhere and touches every task.

    Raises:
        ValueError: no such data, config or split; a column is missing; an id occurs twice.
    """

    def __init__(self, data: str | Path, config: str | None = None, split: str = "test", limit: int | None = None):
        self.data, self.config, self.split, self.limit = str(data), config, split, limit
        self._table = open_split(self.data, split, config)
        missing = [name for name in REQUIRED_COLUMNS if name not in self._table.column_names]
        if missing:
            raise ValueError(
                f"{self.data}: column(s) {', '.join(missing)} missing; generation reads corpora in the row schema of "
                "llaso_common/schema.py (`llaso data build` writes them)"
            )
        defined = self._table.unique(TASK_DEFINITION) if TASK_DEFINITION in self._table.column_names else []
        own = tasks.defined_tasks(defined, self.data)
        tasks.TASKS.declare(own, self.data)
        self.own_tasks = {task.code: task.record() for task in own}
        self.rows = self._read_rows()
        self._by_id = {row.id: row for row in self.rows}

    def _read_rows(self) -> list[Question]:
        light = self._table.remove_columns("audio").with_format("arrow")
        columns = [batch.to_pylist() for batch in light.iter(batch_size=1024)]
        records = [record for chunk in columns for record in chunk]
        seen: dict[str, int] = {}
        for index, record in enumerate(records):
            first = seen.setdefault(record["id"], index)
            if first != index:
                raise ValueError(
                    f"{self.data}: rows {first} and {index} share the id {record['id']!r}; ids are unique"
                )
        indices = list(range(len(records)))
        if self.limit is not None and self.limit < len(records):
            indices = sorted(sorted(indices, key=lambda index: digest(records[index]["id"]))[: self.limit])
        return [self._row(index, records[index]) for index in indices]

    def _row(self, index: int, record: dict[str, Any]) -> Question:
        messages = tuple(_before_the_answer(record, f"{self.data}: row {index} ({record['id']})"))
        sound = record.get("sha256") or hashlib.sha256(b"".join(self.clips(index))).hexdigest()
        has_audio = any(part["type"] == "audio" for message in messages for part in message["content"])
        return Question(
            index=index,
            id=record["id"],
            file=file_name(record),
            task=record["task"],
            category=record["category"],
            modality=record["modality"],
            source=record["source"],
            messages=messages,
            reference=record["target"],
            choices=tuple(record.get("choices") or ()),
            cluster=sound if has_audio else record["id"],
            duration=float(record.get("duration") or 0.0),
            digest=digest(messages, sound),
            attributes={
                name: str(record[column])
                for column, name in ATTRIBUTES.items()
                if record.get(column) not in (None, "")
            },
        )

    def asked(self, samples: int = 1, wordings: int = 1) -> list[Question]:
        """Return every row as often as it is to be asked.

        Args:
            samples: answers to each question. Repeats have ids such as "row#1" and digests of their own.
            wordings: instructions that each row is asked under: its own, and those of other rows of the same task,
                format and choices, with ids such as "row~ASR/04". Rows with fewer wordings beside them, without a
                written instruction, or with a question of their own (open answers) are asked under those they have.
        """
        others: dict[Any, dict[str, Question]] = {}
        for row in self.rows:
            if "wording" in row.attributes and row.modality == "text_audio" and TASKS[row.task].kind != "open":
                known = others.setdefault((row.task, row.choices), {})
                known.setdefault(row.attributes["wording"], row)
        asked = []
        for row in self.rows:
            asked.append(row)
            known = others.get((row.task, row.choices), {}) if row.modality == "text_audio" else {}
            ordered = sorted(known, key=lambda wording: digest(row.id, wording))
            for wording in [one for one in ordered if one != row.attributes.get("wording")][: wordings - 1]:
                asked.append(_reworded(row, wording, known[wording]))
        return [_repeat(row, sample) for row in asked for sample in range(samples)]

    def row_of(self, answer_id: str) -> Question | None:
        """Return the row that an answer is about, by its id; `id#1` is a repeat of it, `id~wording` a reworded one.

        Returns:
            None if the data has no such row.
        """
        first = answer_id.rpartition("#")[0] or answer_id
        return next(filter(None, map(self._by_id.get, (answer_id, first, first.rpartition("~")[0]))), None)

    def clips(self, index: int) -> list[bytes]:
        """Return the encoded clips of the row at `index` of the data, in reading order."""
        column = self._table.select_columns("audio").with_format("arrow")[index].column("audio")
        clips = column.to_pylist()[0] or []
        if isinstance(clips, dict):  # a data set with one clip a row, not a list of them
            clips = [clips]
        return [clip_bytes(clip) for clip in clips]


def _reworded(row: Question, wording: str, other: Question) -> Question:
    """Return a row under the instruction of another."""
    told = {name: value for name, value in other.attributes.items() if name in ("style", "wording")}
    return replace(
        row,
        id=f"{row.id}~{wording}",
        messages=other.messages,
        digest=digest(other.messages, row.cluster),
        attributes=row.attributes | told,
    )


def _repeat(row: Question, sample: int) -> Question:
    """Return the repeat of a row with this number; the row itself for 0."""
    if sample == 0:
        return row
    return replace(row, id=f"{row.id}#{sample}", digest=digest(row.digest, sample), sample=sample, repeat_of=row.id)


def _before_the_answer(record: Any, where: str) -> list[dict[str, Any]]:
    """Return the cleaned messages without the last answer."""
    try:
        messages = clean_messages(record)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise ValueError(f"{where}: `messages` holds nothing to answer")
    return messages


def file_name(record: dict[str, Any]) -> str:
    """Return the file that a row's answer goes into: one for each source, task and format.

    Real and synthetic speech come from different sources, and each alone would hold one label: SSD is one file.
    """
    source = () if record["task"] == "SSD" else (record["source"],)
    return re.sub(r"[^\w.-]+", "_", "_".join((*source, record["task"], record["modality"])))
