"""The row, the tasks, and opening a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataset_scripts.instructions import templates
from dataset_scripts.task_forms import GRANULARITIES, format_weights
from eval_suite import task_metrics
from llaso_common.open_corpus import open_split
from llaso_common.schema import FEATURES, Row, clean_messages, clip_bytes
from llaso_common.tasks import CATEGORIES, MODALITIES, TASKS


def test_the_typed_row_has_the_columns_of_the_table():
    assert list(Row.__annotations__) == list(FEATURES)


def turns(*contents: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


TEXT, AUDIO = {"type": "text", "text": "What?"}, {"type": "audio", "text": None}


def test_messages_lose_the_empty_fields_of_a_table():
    assert clean_messages(turns([TEXT, AUDIO], [])) == [
        {"role": "user", "content": [TEXT, {"type": "audio"}]},
        {"role": "user", "content": []},
    ]


@pytest.mark.parametrize(
    "row, said",
    [
        (turns(), "it has no messages"),
        ({"messages": None}, "it has no messages"),
        ({"messages": [None]}, "a message of it, or its content, is null"),
        (turns(None), "a message of it, or its content, is null"),
        (turns([None]), "a part of its messages is None, neither text nor audio"),
        (turns([{"type": "image", "text": None}]), "a part of its messages is image, neither text nor audio"),
        (turns([{"type": "text", "text": None}]), "a text of its messages is null"),
    ],
)
def test_messages_that_say_nothing_are_refused(row: Any, said: str):
    with pytest.raises(ValueError, match=f"^{said}$"):
        clean_messages(row)


def test_a_clip_is_in_the_row_or_in_its_file(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"of the file")
    assert clip_bytes({"bytes": b"of the row", "path": str(tmp_path / "a")}) == b"of the row"
    assert clip_bytes({"bytes": None, "path": str(tmp_path / "a")}) == b"of the file"
    for clip in (None, {"bytes": None, "path": None}):
        with pytest.raises(ValueError, match="it has neither bytes nor a path"):
            clip_bytes(clip)
    with pytest.raises(ValueError, match=f"a clip cannot be read: .*{tmp_path / 'b'}"):
        clip_bytes({"bytes": None, "path": str(tmp_path / "b")})


def test_every_package_means_the_same_tasks():
    assert len(TASKS) == 20 and {task.category for task in TASKS.values()} == set(CATEGORIES)
    assert task_metrics.PANEL_TASKS == tuple(TASKS)
    assert GRANULARITIES.keys() < TASKS.keys()
    for code, task in TASKS.items():
        scored = task_metrics.TASKS[code]
        assert (scored.category, scored.kind) == (task.category, task.answer)
        assert tuple(format_weights(code)) == task.formats and set(task.formats) <= set(MODALITIES)
        assert scored.scale is None or task.answer in ("number", "pronunciation")
        assert templates(code, GRANULARITIES.get(code, ("",))[0])
    low, high = TASKS["PP"].numbers
    assert task_metrics.TASKS["PP"].scale == task_metrics.Scale(low, high, (low, high))
    years = task_metrics.TASKS["AR_years"].scale
    assert (years.low, years.high) == TASKS["AR"].numbers


def test_what_is_no_corpus_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=f"no corpus at {tmp_path}/nowhere; build it with `llaso data build`"):
        open_split(str(tmp_path / "nowhere"), "train")
    (tmp_path / "file.parquet").touch()
    with pytest.raises(ValueError, match="is a file; give the corpus folder"):
        open_split(str(tmp_path / "file.parquet"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match="empty"):
        open_split(str(tmp_path / "empty"), "train")
