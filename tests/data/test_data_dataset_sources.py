"""Data sets that load_dataset opens, as sources: Parquet, tar shards, a folder of audio, and a Hub on loopback."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from datasets import Audio, ClassLabel, Features, Value
from huggingface_hub import HfApi
from support.hub_server import HubServer, connected, serve
from support.tiny_corpus import DYING, VOICES

from dataset_scripts import hub_presets, sources_file
from dataset_scripts.dataset_rows import UnpackedDataset
from dataset_scripts.sources.base import Item, Reject
from llaso.cli import main

COLUMNS = Features(
    {
        "audio": Audio(sampling_rate=16_000, decode=False),
        "text": Value("string"),
        "speaker_id": Value("int64"),
        "gender": ClassLabel(names=["female", "male"]),
        "about": {"mood": Value("string")},
    }
)


def flac(number: int, seconds: float = 0.1) -> bytes:
    """A tone like no other."""
    file = io.BytesIO()
    tone = 0.3 * np.sin(np.arange(int(seconds * 16_000)) * (0.05 + 0.0004 * number))
    soundfile.write(file, tone, 16_000, format="FLAC")
    return file.getvalue()


def rows(first: int, count: int) -> Iterator[dict[str, Any]]:
    for n in range(first, first + count):
        audio = {"bytes": flac(n), "path": f"{n:05d}.flac"}
        mood = ("glad", "sad")[n % 3 == 0]
        yield {"audio": audio, "text": f"row {n}", "speaker_id": n % 10, "gender": n % 2, "about": {"mood": mood}}


def write_parquet(folder: Path, shards: int = 2, each: int = 6, split: str = "train", first: int = 0) -> Path:
    """Shards as the Hub has them."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        table = pa.Table.from_pylist(list(rows(first + shard * each, each)), schema=COLUMNS.arrow_schema)
        pq.write_table(table, folder / f"data/{split}-{shard:05d}-of-{shards:05d}.parquet", row_group_size=50)
    return folder


def write_tars(folder: Path, shards: int = 2, each: int = 6) -> Path:
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:05d}.tar", "w") as tar:
            for row in rows(shard * each, each):
                said = {"text": row["text"], "speaker": row["speaker_id"]}
                for name, data in (("flac", row["audio"]["bytes"]), ("json", json.dumps(said).encode())):
                    member = tarfile.TarInfo(f"{row['audio']['path'][:5]}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def write_audio_folder(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    lines = ["file_name,text,speaker_id"]
    for row in rows(0, count):
        (folder / row["audio"]["path"]).write_bytes(row["audio"]["bytes"])
        lines.append(f"{row['audio']['path']},{row['text']},{row['speaker_id']}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def sources(folder: Path, **blocks: Any) -> sources_file.SourcesFile:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sources.yaml").write_text(yaml.safe_dump({"sources": blocks, "rows_per_shard": 100}))
    return sources_file.read(folder / "sources.yaml")


def heard(source: Any) -> list[tuple[str, str, str]]:
    """Sentence, speaker and content of each item."""
    found = list(source.items())
    assert not [item for item in found if isinstance(item, Reject)]
    return sorted((item.sentence, item.speaker, Path(item.sound[0].path).read_bytes().hex()) for item in found)


def test_parquet_tars_and_a_folder_of_audio_give_the_same_recordings_and_texts(tmp_path: Path):
    manifest = tmp_path / "rows.jsonl"
    write_audio_folder(tmp_path / "folder")
    spoken = (
        {"audio": f"folder/{r['audio']['path']}", "text": r["text"], "speaker": r["speaker_id"]} for r in rows(0, 12)
    )
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in spoken))
    chosen = sources(
        tmp_path,
        parquet={"dataset": str(write_parquet(tmp_path / "parquet")), "columns": {"speaker": "speaker_id"}},
        tars={
            "dataset": str(write_tars(tmp_path / "tars")),
            "columns": {"audio": "flac", "text": "json.text", "speaker": "json.speaker"},
        },
        beside={"dataset": "folder", "columns": {"speaker": "speaker_id"}},
        file={"dataset": "parquet/data/train-00000-of-00002.parquet", "columns": {"speaker": "speaker_id"}},
        manifest={"manifest": "rows.jsonl"},
    )
    found = {source.name: heard(source) for source in chosen.sources}
    assert len(found["manifest"]) == 12
    assert found["parquet"] == found["tars"] == found["beside"] == found["manifest"]
    assert found["file"] == sorted(row for row in found["manifest"] if int(row[0].split()[1]) < 6)
    assert "torchcodec" not in sys.modules


def test_class_labels_splits_and_nested_columns(tmp_path: Path):
    folder = write_parquet(tmp_path / "set", shards=1)
    write_parquet(folder, shards=1, split="validation", first=6)
    block = {"dataset": "set", "columns": {"mood": "about.mood"}, "tasks": {"SGC": "gender", "ER": "mood"}}
    block |= {"values": {"mood": {"glad": "happy", "sad": "sad"}}}
    items = [item for item in sources(tmp_path, own=block).sources[0].items() if isinstance(item, Item)]
    assert [(item.split, *(f.target for f in item.facts)) for item in items[5:8]] == [
        ("train", "happy", "male"), ("validation", "sad", "female"), ("validation", "happy", "male")
    ]  # fmt: skip
    turned = sources(tmp_path, own=block | {"splits": {"test": ["train"]}}).sources[0]
    assert {item.split for item in turned.items() if isinstance(item, Item)} == {"test"}
    # Rows that are changed in place are read anew.
    write_parquet(folder, shards=1, first=50)
    assert "row 50" in {i.sentence or i.id for i in sources(tmp_path, own={"dataset": "set"}).sources[0].items()}


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"dataset": "nowhere"}, "no such folder: .*nowhere; an id of the Hub is `owner/name`"),
        ({"dataset": "set", "columns": {"text": "txt"}}, "no column 'txt' .for text.; did you mean text"),
        ({"dataset": "set", "splits": {"train": ["trian"]}}, "splits: no split 'trian'; did you mean train"),
        ({"dataset": "set", "tasks": {"ER": "about.mood"}}, "tasks: ER: say its labels"),
        ({"dataset": "set/notes.txt"}, "no data set: a folder, a .parquet or a .tar file is one"),
        ({"dataset": "set", "config": "clean"}, "dataset: set: BuilderConfig 'clean' not found"),
        ({"manifest": "set/notes.txt", "config": "clean"}, "config: only a `dataset:` has one"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_one_line(tmp_path: Path, block: dict[str, Any], said: str):
    write_parquet(tmp_path / "set", shards=1)
    (tmp_path / "set/notes.txt").write_text("")
    with pytest.raises(ValueError, match=f"sources.yaml: sources: own: .*{said}") as caught:
        sources(tmp_path, own=block)
    assert "\n" not in str(caught.value)


def test_inspect_prints_a_block_that_can_be_built_and_names_what_is_unknown(tmp_path: Path, capsys):
    write_audio_folder(tmp_path / "folder")
    write_tars(tmp_path / "tars")
    write_parquet(tmp_path / "parquet")
    (tmp_path / "beside").mkdir()
    for row in rows(0, 3):
        (tmp_path / "beside" / row["audio"]["path"]).write_bytes(row["audio"]["bytes"])
        (tmp_path / "beside" / row["audio"]["path"]).with_suffix(".txt").write_text(row["text"])
    (tmp_path / "rows.csv").write_text("path,sentence,client_id,mood\nfolder/00000.flac,row 0,ann,glad\n")
    blocks = {}
    for name in ("folder", "tars", "parquet", "beside", "rows.csv"):
        assert main(["data", "sources", "--inspect", str(tmp_path / name)]) == 0
        printed = capsys.readouterr().out
        assert "# Not known:\n#   the licence" in printed
        (tmp_path / "sources.yaml").write_text(printed)
        chosen = sources_file.read(tmp_path / "sources.yaml").sources[0]
        assert any(isinstance(item, Item) for item in chosen.items()) and not chosen.redistributable
        blocks |= yaml.safe_load(printed)["sources"]
    assert {name: (block.get("columns"), block["tasks"]) for name, block in blocks.items()} == {
        "folder": ({"speaker": "speaker_id"}, {"ASR": "text"}),
        "tars": ({"audio": "flac", "text": "json.text", "speaker": "json.speaker"}, {"ASR": "text"}),
        "parquet": ({"speaker": "speaker_id"}, {"ASR": "text", "SGC": "gender"}),
        "beside": (None, {"ASR": "text"}),
        "rows": ({"audio": "path", "text": "sentence", "speaker": "client_id"}, {"ASR": "text"}),
    }
    assert main(["data", "sources", "--inspect", str(tmp_path / "nowhere")]) == 2


# --- a Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with a data set of 2,000 rows in ten shards."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    folder = write_parquet(tmp_path / "there", shards=10, each=200)
    with serve(tmp_path / "hub") as server, connected(server, tmp_path / "home"):
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        api = HfApi()
        api.create_repo("owner/spoken", repo_type="dataset")
        api.upload_folder(repo_id="owner/spoken", repo_type="dataset", folder_path=folder)
        yield server


BUILD = """
import sys
from dataset_scripts import dataset_rows, sources_file
from dataset_scripts.build import build
folder, after = sys.argv[1:]
if after != "-":
    dataset_rows.write_atomically = dying(dataset_rows.write_atomically, int(after))
chosen = sources_file.read(__import__("pathlib").Path(folder) / "sources.yaml")
build("align", chosen.sources, f"{folder}/out", voices=%r, eval_rows=50, validation_rows=20, **chosen.settings)
"""


def test_a_hub_data_set_is_streamed_killed_resumed_and_byte_equal(tmp_path: Path, hub: HubServer):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_local",
    }
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    block = {"dataset": "owner/spoken", "columns": {"speaker": "speaker_id"}, "license": "cc0-1.0"}
    file = yaml.safe_dump({"sources": {"own": block}, "rows_per_shard": 400})

    def run(folder: Path, after: str = "-") -> int:
        folder.mkdir(exist_ok=True)
        (folder / "sources.yaml").write_text(file)
        command = [sys.executable, "-c", DYING + BUILD % VOICES, str(folder), after]
        return subprocess.run(command, env=environment, check=False, timeout=300).returncode

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert run(killed, after="700") == -signal.SIGKILL
    listings = {path: path.stat().st_mtime_ns for path in killed.glob("unpacked/*/train-*.jsonl")}
    assert 2 <= len(listings) < 10
    # The data set moves on; the build stays at the revision that it began with.
    first = hub.commits("datasets/owner/spoken")[-1]["oid"]
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="NOTES", repo_id="owner/spoken", repo_type="dataset")
    assert run(killed) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in listings.items()), "a finished file was read again"
    (whole / "unpacked").mkdir(parents=True)
    block["revision"] = first
    file = yaml.safe_dump({"sources": {"own": block}, "rows_per_shard": 400})
    assert run(whole) == 0
    corpora = [
        {p.relative_to(folder / "out"): p.read_bytes() for p in (folder / "out").glob("data/*/*.parquet")}
        for folder in (killed, whole)
    ]
    assert corpora[0] == corpora[1] and corpora[0]
    record = json.loads((killed / "out/build.json").read_text())
    assert record["sources"]["own"]["revision"] == first and first in (killed / "out/README.md").read_text()
    left_out = sum(sum(record[name].values()) for name in ("rejects", "dropped", "held_back"))
    assert record["offered"] == 2_000 == record["rows"] + left_out


def test_memory_does_not_grow_with_the_rows_of_a_data_set(tmp_path: Path, hub: HubServer):
    """The clips of all rows together are larger than what reading them adds to this process."""
    opened = UnpackedDataset.open("owner/spoken", tmp_path, tmp_path / "unpacked")
    found = opened.rows("train", "")
    for _ in range(250):
        next(found)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in found) == 1_750
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 30, f"{grown:.0f} MB more"


def test_a_named_corpus_from_the_hub(tmp_path: Path, hub: HubServer):
    """`librispeech: hub` has the readers, the case and the terms of the reader of the tarball."""
    splits = hub_presets.PRESETS["librispeech"]["splits"]
    api = HfApi()
    api.create_repo("owner/libri", repo_type="dataset")
    configs, folder = [], tmp_path / "libri"
    for number, split in enumerate(name for names in splits.values() for name in names):
        write_parquet(folder, shards=1, each=2, split=split, first=2 * number)
        configs.append({"split": split, "path": f"data/{split}-*"})
    card = yaml.safe_dump({"configs": [{"config_name": "all", "data_files": configs}]})
    (folder / "README.md").write_text(f"---\n{card}---\n")
    api.upload_folder(repo_id="owner/libri", repo_type="dataset", folder_path=folder)
    source = sources(tmp_path, librispeech={"path": "hub", "dataset": "owner/libri"}).sources[0]
    items = [item for item in source.items() if isinstance(item, Item)]
    assert source.license == "CC-BY-4.0" and source.title == "LibriSpeech"
    assert [item.split for item in items] == ["train"] * 6 + ["validation"] * 4 + ["test"] * 4
    assert items[1].speaker == "librivox:1" and items[1].facts[0].target == "row 1"
    with pytest.raises(ValueError, match="vctk: no preset `hub` for it; there are librispeech, dolly"):
        sources(tmp_path, vctk="hub")


def test_an_unknown_data_set_or_revision_is_named(tmp_path: Path, hub: HubServer, capsys):
    for block, said in (
        ({"dataset": "owner/nothing"}, "owner/nothing: not there"),
        ({"dataset": "owner/spoken", "revision": "v9"}, "owner/spoken: not there"),
    ):
        (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"sources": {"own": block}}))
        assert main(["data", "plan", "align", "--sources", str(tmp_path / "sources.yaml")]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
