"""Finds ids and questions on a clip that rows share, and audio, speakers, voices and sentences that splits share.

Looks through a corpus, and others beside it, once; then says of each row what it shares. Ids and clips are kept as
8 bytes a row; whole keys are kept of held-out rows only, so that memory does not grow with the training rows.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from llaso_common.schema import SPLITS

from . import corpus_folder, draw

KINDS = ("audio", "speaker", "voice", "sentence", "recording")
COLUMNS = (
    "id", "task", "modality", "source", "split", "messages", "choices", "template_id", "voice", "speaker", "sha256",
)  # fmt: skip
"""Columns that this check reads."""
Keys = Mapping[str, Sequence[str]]


class KeyReader:
    """Reads the keys of a corpus's rows by kind.

    Sentences and recordings stand in the files that `llaso data build` leaves beside the shards; without them, and
    without audio, a clip's path is its recording. What a source shares by nature (a speaker who says everything) is
    no key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        record = corpus_folder.read_record(folder)
        self._shared = {name for name, source in (record or {"sources": {}})["sources"].items()
                        if "speaker" in source.get("shared", ())}  # fmt: skip
        self._shard = ""
        self._beside: dict[str, dict[str, list[str]]] = {}

    def keys_of(self, shard: str, row: Mapping[str, Any]) -> Keys:
        """Return the keys of a row of a shard; ask for all rows of one shard before those of the next."""
        if shard != self._shard:
            self._shard, self._beside = shard, self._read_beside(shard)
        beside = self._beside.get(row["id"], {})
        recording = beside.get("recording", ())
        if not row["sha256"]:
            recording = [clip["path"].replace("\\", "/") for clip in row.get("audio", ()) if clip["path"]]
        return {
            "audio": [row["sha256"]] if row["sha256"] else [],
            "speaker": [row["speaker"]] if row["speaker"] and row["source"] not in self._shared else [],
            "voice": row["voice"].split(),
            "sentence": beside.get("sentence", ()),
            "recording": recording,
        }

    def _read_beside(self, shard: str) -> dict[str, dict[str, list[str]]]:
        file = corpus_folder.keys_file(self.folder, shard)
        if not file.exists():
            return {}
        rows = pq.read_table(file, columns=["id", "sentence", "recording"]).to_pylist()
        return {row["id"]: row for row in rows}


class Separation:
    """Finds what rows share. Use: `note` every row, `settle`, `compare` every row of other corpora, then `faults_of`.

    Of several equal rows the first is kept; training rows give way to held-out ones, and the rows of this corpus to
    those of others.
    """

    def __init__(self) -> None:
        self._ids, self._questions = array("Q"), array("Q")
        self._twice: dict[str, set[int]] = {}
        self._met: set[tuple[str, int]] = set()
        self._held = _by_split()
        self._elsewhere: dict[str, dict[str, dict[str, str]]] = {s: {kind: {} for kind in KINDS} for s in SPLITS}

    def note(self, row: Mapping[str, Any], keys: Keys) -> None:
        """Look at a row of the corpus."""
        self._ids.append(draw.integer(0, row["id"], "id"))
        self._questions.append(_question(row))
        if row["split"] in self._held and row["split"] != "train":
            for kind in KINDS:
                self._held[row["split"]][kind].update(keys[kind])

    def settle(self) -> None:
        """Finish after the last `note`: keep only what occurs more than once."""
        self._twice = {"id": _repeated(self._ids), "audio": _repeated(self._questions)}
        self._ids, self._questions = array("Q"), array("Q")

    def compare(self, name: str, rows: Iterable[tuple[str, Keys]]) -> None:
        """Look at another corpus: the splits and keys of its rows."""
        for split, keys in rows:
            for own in SPLITS:
                if own == split:
                    continue
                for kind in KINDS:
                    # Of our own training rows no keys are held: keep those of the others' held-out rows.
                    found = keys[kind] if own == "train" else self._held[own][kind].intersection(keys[kind])
                    for key in found:
                        self._elsewhere[own][kind].setdefault(key, f"{split} of {name}")

    def faults_of(self, row: Mapping[str, Any], keys: Keys) -> list[str]:
        """List what a row of the corpus shares but must not share, each as "kind: detail"."""
        found = []
        for kind, value in (("id", draw.integer(0, row["id"], "id")), ("audio", _question(row))):
            if value in self._twice[kind]:
                if (kind, value) in self._met:
                    found.append(f"duplicate {kind}: {row['id'] if kind == 'id' else row['sha256'][:16]}")
                self._met.add((kind, value))
        if row["split"] not in SPLITS:
            return found
        for kind in KINDS:
            for key in keys[kind]:
                if row["split"] == "train" and (
                    split := next((s for s in SPLITS[1:] if key in self._held[s][kind]), "")
                ):
                    found.append(f"{kind} also held out: {key} ({split})")
                elif key in self._elsewhere[row["split"]][kind]:
                    found.append(f"{kind} also elsewhere: {key} ({self._elsewhere[row['split']][kind][key]})")
        return found


def _by_split() -> dict[str, dict[str, set[str]]]:
    return {split: defaultdict(set) for split in SPLITS}


def _question(row: Mapping[str, Any]) -> int:
    """Return a hash of clip, task and format: equal if one clip is asked the same question twice.

    One clip may serve several tasks and label sets; a spoken instruction may be one clip for many written inputs, and
    a spoken input for many questions. Only a drawn instruction's wording makes no other row.
    """
    written = ""
    if not row["template_id"] or row["modality"] == "audio_text":
        users = (message for message in row["messages"] if message["role"] != "assistant")
        written = "\n".join(part["text"] or "" for message in users for part in message["content"])
    paths = "" if row["sha256"] else "\0".join(_paths(row)) or row["id"]
    asked = (row["sha256"], paths, row["task"], row["modality"], *sorted(row["choices"]), written)
    return draw.integer(0, "\0".join(asked), "question")


def _paths(row: Mapping[str, Any]) -> Iterator[str]:
    return (clip["path"] or "" for clip in row.get("audio", ()))


def _repeated(values: array) -> set[int]:
    unique, counts = np.unique(np.frombuffer(values, np.uint64), return_counts=True)
    return {int(value) for value in unique[counts > 1]}
