"""What the trainer opens: the corpus it was pointed at, with true lengths, every row read once an epoch."""

from __future__ import annotations

import io
import logging
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from support.tiny_training import FEATURES, row, save_backbones, save_corpus
from torch.utils.data import DataLoader

from llaso.training.recipe.recipe import DataChoice
from llaso.training.rows.batch_plan import BatchRule, Plan
from llaso.training.rows.collator import Collator, RowEncoder
from llaso.training.rows.corpora import Corpus, open_corpus
from llaso.training.rows.read_ahead import ReadAhead, RowsAsRead
from llaso.training.run.held_out import HeldOut
from modeling_llaso.conversion import new_processor
from modeling_llaso.processing_llaso import LlasoProcessor


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_backbones(tmp_path_factory.mktemp("backbones"))


def mixed_rows() -> list[dict[str, Any]]:
    """Rows of no clip, one and two."""
    rows = [row(i) for i in range(6)] + [row(i, task="IP", clips=2) for i in range(4)]
    return rows + [row(i, task="AQA", clips=0) for i in range(3)]


def planned(corpus: Corpus) -> dict[str, int]:
    """The length by which every row of the first epoch is batched."""
    numbers = chain.from_iterable(chain.from_iterable(Plan(corpus.row_groups, BatchRule(per_device=4), 0).epoch(0)))
    return {corpus[int(number)]["id"]: int(corpus.lengths[number]) for number in numbers}


def counted(rows: list[dict[str, Any]], processor: LlasoProcessor) -> dict[str, int]:
    """The length of every row once its audio is read."""
    return {row["id"]: len(RowEncoder(processor, 2048)(row).input_ids) for row in rows}


def ids(folder) -> list[str]:
    return sorted(row["id"] for row in open_corpus(DataChoice(path=str(folder))))


def test_corpora_of_one_name_are_told_apart(tmp_path):
    first = save_corpus(tmp_path / "a" / "corpus", {"train": [row(1), row(2)]})
    second = save_corpus(tmp_path / "b" / "corpus", {"train": [row(3), row(4), row(5)]})
    assert len(ids(first)) == 2 and len(ids(second)) == 3


def test_a_rebuilt_corpus_is_read_anew(tmp_path):
    folder = save_corpus(tmp_path / "corpus", {"train": [row(1), row(2)]})
    before = ids(folder)
    shutil.rmtree(folder)
    save_corpus(tmp_path / "corpus", {"train": [row(7), row(8), row(9)]})
    assert len(before) == 2 and len(ids(folder)) == 3


# ---- Corpora that cannot be learned from ----


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("audio", ["a.flac", "b.flac"], r"`audio` is Value\('string'\), not a list of clips"),
        ("audio", [{"bytes": b"", "path": "a"}] * 2, r"`audio` is {.*}, not a list of clips"),
        ("messages", ["{}", "{}"], r"`messages` is Value\('string'\), not a list of messages"),
        ("messages", [[{"role": "user", "content": "hi"}]] * 2, "`messages` is .*`content` that is a list of parts"),
        ("length", ["1", "2"], r"`length` is Value\('string'\), not a number"),
        ("id", [1, 2], r"`id` is Value\('int64'\), not text"),
    ],
)
def test_a_column_of_another_type_is_told_before_a_row_is_read(tmp_path, column, values, message):
    table = pa.Table.from_pylist([row(0), row(1)], schema=FEATURES.arrow_schema).replace_schema_metadata(None)
    table = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
    pq.write_table(table, tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=f"{tmp_path}, split train: column {message}"):
        open_corpus(DataChoice(str(tmp_path)))


def test_a_file_cut_short_is_named(tmp_path):
    (file,) = (save_corpus(tmp_path / "corpus", {"train": [row(0)]}) / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file} cannot be read: .*build or fetch it again"):
        open_corpus(DataChoice(str(tmp_path / "corpus")))


def wav(amplitude: float) -> bytes:
    """One second of a square wave, 16-bit at 16 kHz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, amplitude * np.sign(np.sin(np.arange(16_000) / 5)), 16_000, format="WAV")
    return buffer.getvalue()


def empty_rows() -> dict[str, dict[str, Any]]:
    """Rows of the right types with nulls inside, or what is neither text nor audio; by what is said of them."""
    user, assistant = row(0)["messages"]
    return {
        "it has no messages": {"messages": []},
        "a message of it, or its content, is null": {"messages": [None, assistant]},
        "a message of it, or its content, is null.": {"messages": [user | {"content": None}, assistant]},
        "a part of its messages is None, neither": {"messages": [user | {"content": [None]}, assistant]},
        "a part of its messages is image, neither": {
            "messages": [user | {"content": [{"type": "image", "text": None}]}, assistant]
        },
        "its `task` is null": {"task": None},
        "its messages have 1 places for audio, but it has 0": {"audio": None},
        "a clip cannot be read: it has neither bytes nor a path": {"audio": [None]},
        "clip 0: the recording is silent": {"audio": [{"bytes": wav(0.0), "path": None}]},
        "clip 0: the file is cut off: the last 0.50 of 1.00 s are missing": {
            "audio": [{"bytes": wav(0.1)[: 44 + 16_000], "path": None}]
        },
    }


def test_rows_with_nothing_in_them_are_named_and_left_out_only_where_allowed(backbones, tmp_path):
    processor = new_processor(*backbones)
    bad = [row(n) | {"id": f"bad-{n}"} | change for n, change in enumerate(empty_rows().values())]
    odd = [
        row(n) | {"duration": seconds, "length": -3} for n, seconds in enumerate((float("nan"), float("inf"), -1.0))
    ]
    save_corpus(tmp_path / "corpus", {"train": [*odd, *bad]})
    corpus = open_corpus(DataChoice(str(tmp_path / "corpus")), processor)
    lengths = planned(corpus)
    want = counted([one | {"duration": None} for one in odd], processor)
    assert len(lengths) == len(odd) + len(bad) and {name: lengths[name] for name in want} == want
    encode = RowEncoder(processor, 2048)
    rows = list(corpus)
    assert Collator(encode, skip_bad_rows=True)(rows)["skipped"] == [one["id"] for one in bad]
    for one, message in zip(rows[len(odd) :], empty_rows(), strict=True):
        with pytest.raises(ValueError, match=f"row {one['id']}: {message.rstrip('.')}.*set data.bad_rows=skip"):
            Collator(encode)([one])
    with pytest.raises(ValueError, match="row None: its `id` is null"):
        encode(row(0) | {"id": None})
    spoken = [one for one in rows if one["task"] == "ASR"]
    assert len(HeldOut(spoken, processor, skip_bad_rows=True).rows) == len(odd)


def test_a_text_corpus_need_not_have_lengths_or_durations(backbones, tmp_path, caplog):
    processor = new_processor(*backbones)
    heard, written = [row(i) for i in range(8)], [row(i, task="AQA", clips=0) for i in range(4)]
    save_corpus(tmp_path / "corpus", {"train": heard})
    table = pa.Table.from_pylist(written, schema=FEATURES.arrow_schema).drop_columns(["length", "duration"])
    (tmp_path / "text").mkdir()
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "text" / "train-0.parquet")
    choice = DataChoice(str(tmp_path / "corpus"), text_path=str(tmp_path / "text"), text_share=0.2)
    lengths = planned(open_corpus(choice, processor))
    assert len(lengths) == 10
    want = counted(heard + written, processor)
    assert lengths == {name: want[name] for name in lengths} and "fewer than" not in caplog.text
    wanted = DataChoice(str(tmp_path / "corpus"), text_path=str(tmp_path / "text"), text_share=0.9)
    assert len(planned(open_corpus(wanted, processor))) == 12
    assert "text has 4 rows, fewer than data.text_share=0.9 needs: they are 33% of an epoch" in caplog.text


# ---- Lengths ----


@pytest.mark.parametrize(
    ("padding", "stride", "tail"),
    [("trim", 1, 0.0), ("trim", 2, 0.0), ("trim", 2, 0.7), ("full", 1, 0.0), ("full", 4, 0.0)],
)
def test_planned_lengths_are_those_of_the_batches(backbones, tmp_path, padding, stride, tail):
    processor = new_processor(*backbones, audio_padding=padding, audio_tail=tail, projector_stride=stride)
    rows = mixed_rows()
    save_corpus(tmp_path / "corpus", {"train": rows})
    choice = DataChoice(path=str(tmp_path / "corpus"))
    want = counted(rows, processor)
    assert planned(open_corpus(choice, processor)) == want
    save_corpus(tmp_path / "filled", {"train": [row | {"length": want[row["id"]]} for row in rows]})
    assert planned(open_corpus(DataChoice(str(tmp_path / "filled")), processor)) == want


def test_lengths_of_another_processor_are_found_out_and_counted_anew(backbones, tmp_path, caplog):
    full, trim = (new_processor(*backbones, audio_padding=padding) for padding in ("full", "trim"))
    rows = mixed_rows()
    of_full = counted(rows, full)
    save_corpus(tmp_path / "corpus", {"train": [row | {"length": of_full[row["id"]]} for row in rows]})
    choice = DataChoice(str(tmp_path / "corpus"))
    with caplog.at_level(logging.WARNING, logger="modeling_llaso"):
        assert planned(open_corpus(choice, full)) == of_full
        assert not caplog.records
        assert planned(open_corpus(choice, trim)) == counted(rows, trim)
    assert "asr-0-0000" in caplog.text and "counted for another processor" in caplog.text
    assert "llaso data build --processor" in caplog.text


def test_lengths_are_counted_once_and_without_a_look_at_the_audio(backbones, tmp_path, monkeypatch):
    processor = new_processor(*backbones, audio_padding="trim")
    rows = [row(i) for i in range(8)]
    want = counted(rows, processor)
    for each in rows:
        each["audio"][0]["bytes"] = b"nobody reads this"
    choice = DataChoice(str(save_corpus(tmp_path / "corpus", {"train": rows})))
    assert planned(open_corpus(choice, processor)) == want

    def again(*arguments: object) -> int:
        raise AssertionError("counted a second time")

    with monkeypatch.context() as patch:
        patch.setattr(LlasoProcessor, "expanded_length", again)
        assert planned(open_corpus(choice, processor)) == want
    other = new_processor(*backbones, audio_padding="full")
    assert set(planned(open_corpus(choice, other)).values()) != set(want.values())


def test_headers_tell_lengths_where_durations_do_not(backbones, tmp_path):
    processor = new_processor(*backbones, audio_padding="trim")
    rows = [row(i) | {"duration": None} for i in range(3)]
    want = counted(rows, processor) | {"broken": 1}
    broken = row(3) | {"id": "broken", "duration": None, "audio": [{"bytes": b"no audio", "path": "x.flac"}]}
    save_corpus(tmp_path / "corpus", {"train": [*rows, broken]})
    choice = DataChoice(str(tmp_path / "corpus"))
    assert planned(open_corpus(choice, processor)) == want  # the broken one is told when it is read


# ---- Reading with several processes ----


def ids_of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def test_ranks_and_workers_read_every_row_once(backbones, tmp_path):
    """Two ranks of three workers each over one file: as one process without workers, and nothing lost or doubled."""
    processor = new_processor(*backbones, audio_padding="trim")
    rows = [row(i) for i in range(17)] + [row(i, task="AQA", clips=0) for i in range(6)]
    choice = DataChoice(str(save_corpus(tmp_path / "corpus", {"train": rows})))
    corpus = open_corpus(choice, processor)
    plan = Plan(corpus.row_groups, BatchRule(per_device=3, window=3, parallel=4), 0)
    epochs = [plan.epoch_steps(epoch) for epoch in (0, 1)]

    def batches(rank: int, world: int, workers: int) -> list[list[str]]:
        reading = ReadAhead(corpus, plan, sum(epochs), rank, world)
        return list(DataLoader(RowsAsRead(), batch_sampler=reading, collate_fn=ids_of, num_workers=workers))

    alone, shares = batches(0, 1, 0), [batches(rank, 2, 3) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(alone) / 2
    steps = [alone[first : first + 4] for first in range(0, len(alone), 4)]
    for number, step in enumerate(steps):
        assert sorted(chain(*(share[2 * number : 2 * number + 2] for share in shares))) == sorted(step)
    read = [sorted(chain(*chain(*steps[: epochs[0]]))), sorted(chain(*chain(*steps[epochs[0] :])))]
    everything = sorted(row["id"] for row in rows)
    for ids in read:
        assert len(set(ids)) == len(ids) > len(everything) - plan.rule.parallel and set(ids) <= set(everything)
    orders = [list(chain(*chain(*part))) for part in (steps[: epochs[0]], steps[epochs[0] :])]
    assert orders[0] != orders[1]  # each epoch is shuffled anew
