"""Folders that one process at a time works in: real processes, real kills, and what they leave."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from support.tiny_training import row, save_backbones, tiny_recipe

from llaso.training.recipe.recipe import load_recipe
from llaso.training.rows.encoder_cache import EncoderCache, clip_key, fill
from llaso.training.run.distributed import long_barrier
from llaso.training.run.model_setup import open_model
from llaso_common.folder_lock import LOCK, FolderBusy, alone_in, one_at_a_time
from llaso_common.schema import clip_bytes

fork = multiprocessing.get_context("fork")


def hold(folder: Path, pipe: Connection) -> None:
    """Take the lock, start a child that outlives this process, say so, and wait."""
    with alone_in(folder):
        child = fork.Process(target=signal.pause)
        child.start()
        pipe.send(child.pid)
        pipe.recv()
        child.kill()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[multiprocessing.Process, Connection, int]]:
    """A process that holds `tmp_path / "run"`, the pipe that lets it end, and its child's number."""
    pipe, other = fork.Pipe()
    process = fork.Process(target=hold, args=(tmp_path / "run", other))
    process.start()
    child = pipe.recv()
    yield process, pipe, child
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.join()


def test_a_second_process_is_refused_by_name_and_a_killed_one_leaves_no_lock(tmp_path, holder):
    process, _, child = holder
    with pytest.raises(FolderBusy, match=rf"{tmp_path}/run is in use by process {process.pid} on .*; wait for it"):
        with alone_in(tmp_path / "run"):
            pass
    process.kill()
    process.join()
    os.kill(child, 0)  # alive, and not holding what its parent held
    with alone_in(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).exists()
    assert not (tmp_path / "run" / LOCK).exists()


def test_an_empty_folder_made_for_the_lock_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "made", "used"):
        with alone_in(tmp_path / name):
            if name == "used":
                (tmp_path / name / "result").touch()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["mine", "used"]


def test_a_waiting_process_names_the_holder_and_goes_next(tmp_path, holder):
    process, pipe, _ = holder
    order: list[str] = []

    def told(line: str) -> None:
        order.append(line)
        pipe.send("end")

    with one_at_a_time(tmp_path / "run", told):
        order.append("mine")
    assert order == [f"waiting for {order[0].split(' for ')[1]}", "mine"] and f"process {process.pid}" in order[0]


def test_waiting_processes_take_the_lock_one_at_a_time(tmp_path):
    def add(count: int) -> None:
        for _ in range(count):
            with one_at_a_time(tmp_path / "made", lambda line: None):
                number = int((tmp_path / "number").read_text())
                (tmp_path / "number").write_text(str(number + 1))

    (tmp_path / "number").write_text("0")
    processes = [fork.Process(target=add, args=(50,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "number").read_text() == "200" and not (tmp_path / "made" / LOCK).exists()


def test_a_folder_that_goes_while_it_is_being_made(tmp_path, monkeypatch):
    """Raise what the system says if another process removes the folder between two looks at it."""
    make, answers = os.mkdir, [FileExistsError(17, "File exists")]

    def mkdir(*arguments):
        if answers:
            raise answers.pop()
        make(*arguments)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with alone_in(tmp_path / "run"):
        assert not answers and (tmp_path / "run" / LOCK).exists()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), alone_in(tmp_path / "file"):
        pass


def test_a_child_that_is_handed_the_lock_keeps_it_when_its_parent_is_killed(tmp_path):
    def parent(pipe: Connection) -> None:
        with alone_in(tmp_path) as lock:
            with subprocess.Popen(["sleep", "1000"], pass_fds=[lock]) as child:
                pipe.send(child.pid)

    pipe, other = fork.Pipe()
    process = fork.Process(target=parent, args=(other,))
    process.start()
    child = pipe.recv()
    process.kill()
    process.join()
    with pytest.raises(FolderBusy):
        with alone_in(tmp_path):
            pass
    os.kill(child, signal.SIGKILL)
    with one_at_a_time(tmp_path, lambda line: None):
        pass


def test_a_file_system_without_locks_is_worked_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with alone_in(tmp_path):
        assert "has no locks: see to it that no other process works there" in caplog.text


# ---- The encoder cache ----


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("parts")
    save_backbones(folder)
    return open_model(load_recipe(tiny_recipe(folder, "unused")))


def fill_with(folder: Path, pair, rows: list[int]) -> EncoderCache:
    model, processor = pair
    cache = EncoderCache(folder, "x", 24, 10**6)
    plain = torch.autocast("cpu", enabled=False)
    given = (row(number) for number in rows)
    fill(cache, model, processor, given, lambda: plain, torch.device("cpu"), lambda done: None, lambda line: None)
    return cache


def test_runs_that_fill_one_cache_at_once_end_with_all_clips_and_none_mixed_up(tmp_path, pair):
    shares = [list(range(0, 30)), list(range(20, 50)), list(range(49, -1, -1))]
    processes = [fork.Process(target=fill_with, args=(tmp_path / "shared", pair, share)) for share in shares]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has only the thread that forked
    for process in processes:
        process.start()
    torch.set_num_threads(threads)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    shared = EncoderCache(tmp_path / "shared", "x", 24, 10**6)
    alone = fill_with(tmp_path / "alone", pair, shares[2])
    keys = [clip_key(clip_bytes(row(number)["audio"][0])) for number in range(50)]
    assert set(shared.entries) == set(alone.entries) == set(keys) and shared.used == alone.used
    for key in keys:
        for one, other in zip(shared.get(key), alone.get(key), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)  # float16, other neighbours in the batch


def test_a_reader_of_a_cache_being_written_takes_whole_entries_and_changes_nothing(tmp_path):
    writer = EncoderCache(tmp_path, "x", 4, 10**6)
    writer.add("first", [torch.ones(2, 4)])
    whole = writer.index_file.read_bytes()
    writer.index_file.write_bytes(whole + b'{"key": "second", "sta')  # half-way through its next line
    reader = EncoderCache(tmp_path, "x", 4, 10**6)
    assert set(reader.entries) == {"first"} and writer.index_file.read_bytes() != whole
    writer.add("second", [torch.full((3, 4), 2.0)])
    again = EncoderCache(tmp_path, "x", 4, 10**6)
    assert torch.equal(again.get("second")[0], torch.full((3, 4), 2.0))
    assert torch.equal(reader.get("first")[0], torch.ones(2, 4))


@pytest.mark.parametrize("damage", ["vectors cut off", "vectors lost", "no JSON", "no entry"])
def test_damaged_cache_entries_are_encoded_again(tmp_path, damage):
    cache = EncoderCache(tmp_path, "x", 4, 10**6)
    for number, key in enumerate(("first", "second", "third")):
        cache.add(key, [torch.full((2, 4), float(number))])
    lines = cache.index_file.read_bytes().splitlines(keepends=True)
    if damage == "vectors cut off":
        os.truncate(cache.vectors_file, 2 * 4 * 2 + 3)
    elif damage == "vectors lost":
        cache.vectors_file.unlink()
    else:
        lines[1] = b"\xff\x00 none\n" if damage == "no JSON" else b"[1]\n"
        cache.index_file.write_bytes(b"".join(lines))
    again = EncoderCache(tmp_path, "x", 4, 10**6)
    assert set(again.entries) == (set() if damage == "vectors lost" else {"first"})
    for number, key in enumerate(("first", "second", "third")):
        if key not in again:
            again.add(key, [torch.full((2, 4), float(number))])
    third = EncoderCache(tmp_path, "x", 4, 10**6)
    assert [float(third.get(key)[0][0, 0]) for key in ("first", "second", "third")] == [0, 1, 2]
    assert len(third.index_file.read_bytes().splitlines()) == 3


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator here")
def test_the_cache_fills_on_the_accelerator_and_the_encoder_goes_back(tmp_path, pair):
    model, processor = pair
    device = torch.accelerator.current_accelerator()
    seen = []
    hook = model.model.audio_tower.register_forward_pre_hook(lambda module, args: seen.append(args[0].device.type))
    cache = EncoderCache(tmp_path, "x", 24, 10**6)
    plain = torch.autocast("cpu", enabled=False)
    fill(cache, model, processor, [row(0)], lambda: plain, device, lambda done: None, lambda line: None)
    hook.remove()
    assert seen == [device.type] and model.model.audio_tower.conv1.weight.device.type == "cpu" and cache.used


# ---- Processes that train together ----


def wait_long(rank: int, store: str, failures) -> None:
    backend = timedelta(seconds=1)  # as patient as NCCL would be, in small
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=backend
    )
    try:
        with long_barrier() as wait_for_first:
            if rank == 0:
                threading.Event().wait(2.5)
            wait_for_first()
    except Exception as error:
        failures.put(f"{rank}: {error}")
    torch.distributed.destroy_process_group()


def test_ranks_wait_for_rank_0_beyond_the_backends_timeout(tmp_path):
    failures = fork.SimpleQueue()
    processes = [fork.Process(target=wait_long, args=(rank, str(tmp_path / "store"), failures)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert failures.empty(), failures.get()
