"""Publishes a validated corpus on the Hub: its Parquet files, card and records, in one upload that can be resumed.

The client sends large files by xet if hf-xet is installed, in chunks whose borders follow the content as those of
the shards' Parquet pages do, and by Git LFS if HF_HUB_DISABLE_XET=1. The tests' Hub on loopback speaks LFS only:
going on after a cut is proven for that path; xet's own has been tried against no server here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from llaso_common.atomic_write import atomic_path, write_atomically
from llaso_common.folder_lock import alone_in
from llaso_common.hub_errors import plain_errors

from . import corpus_card, corpus_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RECORDS = ("README.md", "build.json", "leakage.json", "rejects.jsonl", "validation.json")
"""Files that are published beside the shards. The others in a corpus folder stay here."""


def publish(folder: Path, repo_id: str, *, private: bool = False, manifest_only: bool = False) -> str:
    """Upload a corpus. Shards of an earlier publication that it no longer has leave the repository.

    Args:
        folder: a finished corpus that `llaso data validate` has found good, as it is now.
        repo_id: "owner/name" of a dataset repository; created if it does not exist.
        private: make it private; one that exists has to be private already.
        manifest_only: leave the audio bytes out and keep everything else, so that an owner of the sources can find
            them by `id` and `sha256`.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the folder is no finished corpus, has not been validated or has changed since, its audio may not
            be published again, the repository holds something else, or it is public though `private` was asked for.
            Nothing has been uploaded then.
        PermissionError: the token is not known or may not write there.
        ConnectionError: the Hub cannot be reached, or the connection broke; the same call goes on from there.
    """
    record = corpus_folder.read_record(folder)
    if record is None:
        raise ValueError(f"{folder} is no finished corpus (no build.json): run `llaso data build` to its end")
    with alone_in(folder):
        is_manifest = _check(folder, record, manifest_only)
        staged = write_manifest(folder, record) if manifest_only and not is_manifest else folder
        return _upload(folder, staged, repo_id, private)


def _upload(folder: Path, staged: Path, repo_id: str, private: bool) -> str:
    """Send what is staged; note in the folder where it is."""
    from huggingface_hub import HfApi

    record = corpus_folder.read_record(staged)
    assert record is not None
    leaks = json.loads((folder / "leakage.json").read_text()) if (folder / "leakage.json").exists() else None
    write_atomically(staged / "README.md", corpus_card.write(record, repo_id, leaks))
    with plain_errors(repo_id):
        api = HfApi()
        _check_repository(api, repo_id, record)
        address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if private and not api.dataset_info(repo_id).private:
            raise ValueError(
                f"{repo_id} is public: make it private in its settings, choose another name, or leave --private out"
            )
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=staged,
            allow_patterns=[*RECORDS, "data/*.parquet"],
            delete_patterns=[*RECORDS, "data/*"],
            commit_message=f"{record['rows']:,} rows, fingerprint {record['fingerprint'][:12]}",
        )
    # `llaso publish` reads here where a model's corpora are.
    place = {"repo_id": repo_id, "revision": commit.oid, "fingerprint": record["fingerprint"]}
    write_atomically(folder / "published.json", json.dumps(place, indent=1))
    return str(address)


def _check(folder: Path, record: Mapping[str, Any], manifest_only: bool) -> bool:
    """Refuse a corpus that may not be published as it is; gives whether it is a manifest already."""
    corpus_folder.shard_files(folder)
    remedy = f"run `llaso data validate {folder}` first"
    try:
        report = json.loads((folder / "validation.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise ValueError(f"{folder} has not been validated: {remedy}") from None
    if not isinstance(report, dict) or report.get("content") != corpus_folder.content_of(
        corpus_folder.digests(folder)
    ):
        raise ValueError(f"{folder} has changed since it was validated: {remedy}")
    if report["bad"]:
        raise ValueError(
            f"{folder} holds {report['bad']:,} bad rows (bad_rows.jsonl): mend them, or take them out with "
            f"`llaso data validate {folder} --set-aside`"
        )
    # What validation saw counts here, not what build.json may have been made to say since.
    is_manifest = bool(report["manifest"])
    if (closed := corpus_folder.closed_sources(record)) and not (manifest_only or is_manifest):
        raise ValueError(
            f"{folder} holds audio that may not be published again: {', '.join(closed)}. "
            "Publish the rows without audio (--manifest-only), or build without these sources"
        )
    if not report["rows"]:
        raise ValueError(f"{folder} holds no row: nothing to publish")
    leaks = folder / "leakage.json"
    if leaks.exists() and not json.loads(leaks.read_text(encoding="utf-8"))["clean"]:
        raise ValueError(
            f"{folder} shares rows with training ({leaks}): run `llaso data validate {folder} --set-aside "
            "--against` and the "
            "folders of the corpora named there"
        )
    return is_manifest


def _check_repository(api: HfApi, repo_id: str, record: dict[str, Any]) -> None:
    """Refuse a repository that holds something else: its files would be overwritten."""
    from huggingface_hub import DatasetCard

    if not api.repo_exists(repo_id, repo_type="dataset"):
        return
    files = api.list_repo_files(repo_id, repo_type="dataset")
    ours = all(name in (".gitattributes", *RECORDS) or name.startswith("data/") for name in files)
    if "README.md" in files:
        title = DatasetCard.load(repo_id, ignore_metadata_errors=True).data.get("pretty_name")
        ours = title == corpus_card.TITLES[record["corpus"]]
    if not ours:
        raise ValueError(
            f"{repo_id} holds another data set, which would be overwritten: choose another name, or delete its files "
            "on the Hub first"
        )


def write_manifest(folder: Path, record: dict[str, Any]) -> Path:
    """Write a copy of a corpus without audio bytes into its `.build/manifest`, unless an earlier run has."""
    staged = folder / ".build" / "manifest"
    content, mark = corpus_folder.content_of(record["shards"]), staged / "made_of"
    if not mark.exists() or mark.read_text() != content:
        shutil.rmtree(staged, ignore_errors=True)
        write_atomically(mark, content)
    for name in ("leakage.json", "rejects.jsonl", "validation.json"):
        if (folder / name).exists():
            write_atomically(staged / name, (folder / name).read_bytes())
    for file in corpus_folder.shard_files(folder):
        copy = staged / file.relative_to(folder)
        if copy.exists():
            continue
        shard = pq.ParquetFile(file)
        schema, options = shard.schema_arrow, {"compression": "zstd", "use_content_defined_chunking": True}
        with atomic_path(copy) as part, pq.ParquetWriter(part, schema, **options) as writer:
            for batch in shard.iter_batches(batch_size=100):
                rows = batch.to_pylist()
                for row in rows:
                    row["audio"] = [{"bytes": None, "path": clip["path"]} for clip in row["audio"]]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    shards = corpus_folder.digests(staged)
    summary = {**record, "manifest": True, "shards": shards, "bytes": sum(entry["bytes"] for entry in shards.values())}
    write_atomically(staged / "build.json", json.dumps(summary, indent=1, ensure_ascii=False))
    return staged
