"""Rows are read from Parquet by row group: each once an epoch, shared by processes, on this disk and on the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem
from support.hub_server import HubServer, connected, serve
from support.paths import ROOT
from support.tiny_training import row, save_corpus

from llaso.training.recipe.recipe import DataChoice
from llaso.training.rows.batch_plan import BatchRule, Plan
from llaso.training.rows.corpora import Corpus, open_corpus, open_held_out
from llaso.training.rows.read_ahead import ReadAhead
from llaso_common.open_corpus import NoSuchSplit, parquet_files

GROUPS, OF_GROUP = 25, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 row groups of four rows, none like the other in bytes; and text rows."""
    root = tmp_path_factory.mktemp("reading")
    rows = [row(number, clips=2) for number in range(GROUPS * OF_GROUP)]
    save_corpus(root / "corpus", {"train": rows, "validation": [row(i, seed=1) for i in range(12)]}, OF_GROUP)
    save_corpus(root / "text", {"train": [row(i, task="AQA", clips=0) for i in range(40)]}, OF_GROUP)
    return root / "corpus"


def group_bytes(folder: Path) -> list[int]:
    """What the row groups take in the file, all columns together, by the file itself."""
    footer = pq.read_metadata(next((folder / "data").glob("train-*")))
    groups = map(footer.row_group, range(footer.num_row_groups))
    return [sum(one.column(i).total_compressed_size for i in range(one.num_columns)) for one in groups]


def rows_read(corpus: Corpus, plan: Plan, steps: int, **place: int) -> tuple[list[list[str]], int]:
    """The ids of the micro-batches of a process, and the bytes that it read for them."""
    before = corpus.bytes_read
    batches = [[row["id"] for row in batch] for batch in ReadAhead(corpus, plan, steps, **place)]
    return batches, corpus.bytes_read - before


def test_only_columns_are_read_to_plan_and_nothing_the_second_time(folder, tmp_path):
    moved = Path(shutil.copytree(folder, tmp_path / "corpus"))  # the other tests have opened the first one
    corpus = open_corpus(DataChoice(str(moved)))
    assert 0 < corpus.bytes_read < sum(group_bytes(moved)) / 4
    assert open_corpus(DataChoice(str(moved))).bytes_read == 0


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(("parallel", "window"), [(1, 1), (2, 2), (4, 1), (4, 3), (12, 2)])
def test_each_row_group_is_read_once_an_epoch(folder, monkeypatch, parallel, window, text):
    mixed = {"text_path": str(folder.parent / "text"), "text_share": 0.2} if text else {}
    corpus = open_corpus(DataChoice(str(folder), **mixed))
    plan = Plan(corpus.row_groups, BatchRule(2, window=window, parallel=parallel), 3)
    read: Counter[int] = Counter()

    def counted(group: int, original=corpus.read_group) -> list:
        read[group] += 1
        return original(group)

    monkeypatch.setattr(corpus, "read_group", counted)
    batches, _ = rows_read(corpus, plan, 2 * plan.epoch_steps())
    assert all(read[group] == 2 for group in range(GROUPS))  # text rows lie thinly; their small groups may come again
    ids = Counter(chain(*batches[: len(batches) // 2]))
    assert set(ids.values()) == {1} and plan.rows - parallel < len(ids) <= plan.rows


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_bytes_and_train_on_the_rows_of_one(folder, world):
    corpus, groups = open_corpus(DataChoice(str(folder))), group_bytes(folder)
    plan = Plan(corpus.row_groups, BatchRule(2, window=3, parallel=4), 5)
    steps = plan.epoch_steps()
    alone, whole = rows_read(corpus, plan, steps)
    assert whole == sum(groups)
    shares = [rows_read(corpus, plan, steps, rank=rank, world=world) for rank in range(world)]
    for _, read in shares:
        assert read <= whole / world + max(groups)
    assert sum(read for _, read in shares) <= whole + (world - 1) * max(groups)
    of_step = 4 // world
    for step in range(steps):
        together = chain(*(batches[step * of_step :][:of_step] for batches, _ in shares))
        assert sorted(together) == sorted(alone[step * 4 :][:4])


def test_a_late_resume_reads_one_window_again_at_most(folder):
    corpus = open_corpus(DataChoice(str(folder), text_path=str(folder.parent / "text"), text_share=0.2))
    plan = Plan(corpus.row_groups, BatchRule(2, window=3, parallel=2), 5)
    steps = 9 * plan.epoch_steps()
    whole = list(ReadAhead(corpus, plan, steps))[-2 * 4 :]
    before = corpus.bytes_read
    rest = list(ReadAhead(corpus, plan, steps, start_step=steps - 4))
    assert [[row["id"] for row in batch] for batch in rest] == [[row["id"] for row in batch] for batch in whole]
    window = sum(sorted(group_bytes(folder))[-(2 * 3 * 2 // OF_GROUP + 4) :])  # the rows of a window and its borders
    assert corpus.bytes_read - before < window < sum(group_bytes(folder)) / 2


def test_what_is_counted_is_what_the_system_reads(folder):
    """The bytes by the footers are those that this process asks the system for."""
    corpus = open_corpus(DataChoice(str(folder)))
    plan = Plan(corpus.row_groups, BatchRule(2, parallel=4), 5)

    def asked() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

    before = asked()
    _, counted = rows_read(corpus, plan, plan.epoch_steps(), rank=0, world=2)
    assert counted <= asked() - before < 1.1 * counted + 50_000


def test_held_out_rows_are_drawn_by_their_ids(folder):
    rows = open_held_out(DataChoice(str(folder)), "ASR", 5)
    ids = [f"asr-1-{number:04}" for number in range(12)]
    assert [row["id"] for row in rows] == sorted(ids, key=lambda one: hashlib.sha256(one.encode()).digest())[:5]
    assert rows[0] == row(int(rows[0]["id"][-4:]), seed=1)
    assert open_held_out(DataChoice(str(folder), validation_split="test"), "ASR", 5) == []
    assert open_held_out(DataChoice(str(folder)), "IP", 5) == []


def test_what_is_not_parquet_and_what_is_not_there_are_told(tmp_path, folder):
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": "a"}) + "\n")
    with pytest.raises(ValueError, match="is not Parquet, the only form that training reads; .*to_parquet"):
        parquet_files(str(tmp_path), "train")
    with pytest.raises(NoSuchSplit, match="no split test; it has train, validation"):
        open_corpus(DataChoice(str(folder), split="test"))
    with pytest.raises(ValueError, match="BuilderConfig 'audio' not found. Available: .*default"):
        open_corpus(DataChoice(str(folder), config="audio"))


def test_an_unreadable_row_group_is_named_when_it_is_reached(tmp_path):
    corpus = save_corpus(tmp_path / "corpus", {"train": [row(number) for number in range(12)]}, 3)
    opened = open_corpus(DataChoice(str(corpus)))
    (file,) = (corpus / "data").iterdir()
    footer = pq.read_metadata(file)
    start = footer.row_group(2).column(7).data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + 40] = os.urandom(40)
    file.write_bytes(content)
    plan = Plan(opened.row_groups, BatchRule(1, window=2), 0)
    with pytest.raises((ValueError, OSError), match=f"{file} cannot be read"):
        list(ReadAhead(opened, plan, plan.epoch_steps()))


# ---- The Hub ----


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that holds the corpus as `owner/corpus`."""
    HfFileSystem.clear_instance_cache()
    with serve(tmp_path / "objects") as server, connected(server, tmp_path / "home"):
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        files = {}
        for path in filter(Path.is_file, folder.rglob("*")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            (server.objects / digest).write_bytes(path.read_bytes())
            files[str(path.relative_to(folder))] = digest
        server.repos["datasets/owner/corpus"] = [{"oid": "c" * 40, "title": "first", "files": files}]
        yield server
    HfFileSystem.clear_instance_cache()


def test_a_corpus_on_the_hub_is_read_as_one_on_this_disk(folder, hub):
    here, there = open_corpus(DataChoice(str(folder))), open_corpus(DataChoice("owner/corpus"))
    assert there.parts[0].index.reader.files[0].startswith(f"hf://datasets/owner/corpus@{'c' * 40}/data/train-")
    assert there.digest() == here.digest()
    plan = Plan(here.row_groups, BatchRule(2, window=3, parallel=2), 5)
    steps = plan.epoch_steps()
    before = hub.sent
    batches, counted = rows_read(there, plan, steps, rank=1, world=2)
    assert batches == rows_read(here, plan, steps, rank=1, world=2)[0]
    assert counted <= hub.sent - before < 1.1 * counted + 50_000
    assert np.array_equal(here.lengths, there.lengths)


def test_a_hub_that_stops_answering_is_told(hub, monkeypatch):
    corpus = open_corpus(DataChoice("owner/corpus"))
    hub.repos["datasets/owner/corpus"][0]["files"] = {}
    with pytest.raises(OSError, match="could not be read from the Hub .*Run the same command again"):
        corpus[0]


WAITING = """
import sys, time
from torch.utils.data import DataLoader, Dataset
from llaso.training.run.data_workers import follow_main_process

class Slow(Dataset):
    def __getitem__(self, message):
        time.sleep(1)
        return len(message)

batches = [[b"x" * 1_000_000]] * 20  # more than a pipe holds, so that the main process is killed while it writes one
loader = iter(DataLoader(Slow(), batch_sampler=batches, num_workers=1, worker_init_fn=follow_main_process))
next(loader)
print(loader._workers[0].pid, flush=True)
time.sleep(600)
"""


def test_a_reading_process_ends_with_a_killed_main_process():
    main = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    worker = psutil.Process(int(main.stdout.readline()))
    main.kill()
    main.wait()
    _, left = psutil.wait_procs([worker], timeout=60)
    for one in left:
        one.kill()
    assert not left


def test_each_epoch_draws_a_speed_for_every_recording_to_transcribe(tmp_path):
    rows = [row(number) for number in range(8)] + [row(number, task="IP") for number in range(8, 12)]
    corpus = open_corpus(DataChoice(str(save_corpus(tmp_path / "corpus", {"train": rows}))))
    plan = Plan(corpus.row_groups, BatchRule(per_device=4), seed=1)
    steps = 40 * plan.epoch_steps()

    def speeds(start_step: int = 0) -> list[tuple[str, float | None]]:
        batches = ReadAhead(corpus, plan, steps, start_step=start_step, speeds=(0.9, 1.0, 1.1))
        return [(row["id"], row.get("speed")) for batch in batches for row in batch]

    drawn = speeds()
    assert {speed for name, speed in drawn if name.startswith("ip-")} == {None}
    transcribed = [(name, speed) for name, speed in drawn if name.startswith("asr-")]
    shares = Counter(speed for _, speed in transcribed)
    assert set(shares) == {0.9, 1.0, 1.1}
    assert all(0.2 < count / len(transcribed) < 0.5 for count in shares.values())
    assert len(set(transcribed)) == 3 * 8  # each recording is played at each speed in the end
    assert speeds(start_step=steps - 3) == drawn[-3 * 4 :]
