"""Files that are written in one step."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from llaso_common.atomic_write import atomic_path, part_of, this_machine, write_atomically


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path, durable: bool):
    file = tmp_path / "new" / ("x" * 250)
    write_atomically(file, b"\x00\xff", durable=durable)
    assert file.read_bytes() == b"\x00\xff"
    write_atomically(file, "größer\r\n\ud800", durable=durable)
    assert file.read_bytes() == "größer\r\n\ud800".encode("utf-8", "surrogatepass")
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("durable", [False, True])
def test_a_full_disk_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "x", "old")
    monkeypatch.setattr("os.fsync" if durable else "os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "x", "new", durable=durable)
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_an_error_while_writing_keeps_the_old_content(tmp_path: Path):
    write_atomically(tmp_path / "x", "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "x") as part:
        part.write_text("half of the n")
        assert part == part_of(tmp_path / "x") and (tmp_path / "x").read_text() == "old"
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_mode_that_the_user_asks_for(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "x", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask


def test_a_half_written_file_tells_its_machine_and_thread_whatever_the_machine_is_called(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node1.cluster.local")
    host, _, thread = part_of(tmp_path / "shard.parquet").name.split(".")[-2].rpartition("-")
    assert host == this_machine() and thread == str(threading.get_native_id())
