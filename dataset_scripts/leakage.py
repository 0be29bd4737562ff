"""Checks that evaluation and training share nothing: compares every row's keys with the held-out ones.

Reads the key files that `build` writes beside each shard (audio digest, speakers and voices, sentences, recordings);
gives the content of `leakage.json`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .corpus_folder import keys_file

KINDS = ("sha256", "speaker", "sentence", "recording")


def compare(held_out: Path, others: Sequence[Path] = ()) -> dict[str, Any]:
    """Compare the held-out rows of a corpus with the training rows of this and other corpora.

    Args:
        held_out: a built corpus; its rows outside `train` are the held-out ones.
        others: further built corpora.

    Returns:
        `clean` (nothing is shared), `rows_checked` (training rows looked through), `held_out` (distinct keys by
        kind), and for each corpus compared its fingerprint, whether it held out the same evaluation (`drawn_alike`),
        its rows and keys looked through, and how many distinct keys it shares, by kind, with up to five of them.

    Raises:
        ValueError: a folder is no finished corpus.
    """
    held: dict[str, set[str]] = {kind: set() for kind in KINDS}
    rows = 0
    for split, key in _keys(held_out):
        if split != "train":
            rows += 1
            for kind in KINDS:
                held[kind].update(key[kind])
    compared: dict[str, dict[str, Any]] = {}
    for corpus in dict.fromkeys((held_out, *others)):
        checked, looked_at = 0, Counter[str]()
        shared: dict[str, set[str]] = {kind: set() for kind in KINDS}
        for split, key in _keys(corpus):
            if split == "train" or (corpus != held_out and split != "test"):
                checked += 1
                for kind in KINDS:
                    looked_at[kind] += len(key[kind])
                    shared[kind].update(held[kind].intersection(key[kind]))
        summary = _summary(corpus)
        compared[corpus.name if corpus.name not in compared else str(corpus)] = {
            "fingerprint": summary["fingerprint"],
            "drawn_alike": summary["evaluation"] == _summary(held_out)["evaluation"],
            "rows_checked": checked,
            "keys_checked": dict(looked_at),
            "shared": {kind: len(found) for kind, found in shared.items()},
            "examples": {kind: sorted(found)[:5] for kind, found in shared.items() if found},
        }
    return {
        "clean": not any(count for entry in compared.values() for count in entry["shared"].values()),
        "rows_checked": sum(entry["rows_checked"] for entry in compared.values()),
        "held_out": {"rows": rows, **{kind: len(found) for kind, found in held.items()}},
        "compared": compared,
        "shared_by_nature": {
            name: source["shared"] for name, source in _summary(held_out)["sources"].items() if source["shared"]
        },
    }


def covers(report: Mapping[str, Any], held_out: Path, others: Sequence[Path]) -> bool:
    """Tell whether a report already compares these corpora, as they are now."""
    known = {entry["fingerprint"] for entry in report["compared"].values()}
    return {_summary(corpus)["fingerprint"] for corpus in (held_out, *others)} <= known


def _summary(corpus: Path) -> dict[str, Any]:
    try:
        return json.loads((corpus / "build.json").read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{corpus} is no finished corpus: it has no build.json") from error


def _keys(corpus: Path) -> Iterator[tuple[str, dict[str, Sequence[str]]]]:
    """Yield the split and keys of every row."""
    for name in _summary(corpus)["shards"]:
        keys = keys_file(corpus, name)
        if not keys.exists():
            raise ValueError(
                f"{corpus} cannot be compared: {keys.relative_to(corpus)} is missing. Only a corpus that `llaso data "
                "build` made here knows the sentences and recordings of its rows"
            )
        file = pq.ParquetFile(keys)
        for batch in file.iter_batches():
            for key in batch.to_pylist():
                yield key["split"], {**key, "sha256": [key["sha256"]]}


def shared_by_nature(leakage: Mapping[str, Any]) -> str:
    """Return ", but for …" with what the rows of some corpora share by nature and is not compared; "" if nothing."""
    kinds = leakage.get("shared_by_nature", {}).items()
    named = "; ".join(f"the {' and '.join(f'{kind}s' for kind in shared)} of {source}" for source, shared in kinds)
    return f", but for what sources share by their nature: {named}" if named else ""
