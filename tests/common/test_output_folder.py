"""Folders that replace others once they are whole: an error or SIGTERM leaves what was there, and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from llaso_common.output_folder import replaced_folder


def test_the_new_folder_takes_the_old_ones_place(tmp_path):
    for text in ("old", "new"):
        with replaced_folder(tmp_path / "out") as folder:
            (folder / text).touch()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["new"]


@pytest.mark.parametrize(
    "ending", [lambda: signal.raise_signal(signal.SIGTERM), lambda: 1 / 0], ids=["SIGTERM", "error"]
)
def test_nothing_is_left_of_a_folder_that_was_not_finished(ending, tmp_path):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a command that was just started; conftest.py puts it back
    with replaced_folder(tmp_path / "out") as folder:
        (folder / "old").touch()
    with pytest.raises((SystemExit, ZeroDivisionError)), replaced_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
        ending()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["old"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_current_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the current folder"), replaced_folder("."):
        pytest.fail("begun")


def test_a_link_stays_a_link_to_the_new_folder(tmp_path):
    (tmp_path / "disk" / "here").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "here")
    with replaced_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert (tmp_path / "out").is_symlink() and os.listdir(tmp_path / "disk" / "here") == ["new"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    with replaced_folder(tmp_path / "out") as folder:
        (folder / "old").touch()
    rename = Path.rename

    def fail_for_new(path, target):
        if path.name == "new":
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="no space"), replaced_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["old"]
