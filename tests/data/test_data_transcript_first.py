"""Answers after a transcript, and rows of written and spoken sentences by turns: in Instruct's training rows alone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.tiny_corpus import SOURCE, VOICES, write_recordings

from dataset_scripts.build import build
from dataset_scripts.corpus_plan import PlannedRow, Settings, keys_of, make_plan, sentence_key
from dataset_scripts.interleaved import ASKED, MIX, SENTENCES, Interleaver
from dataset_scripts.release_export import export_release
from dataset_scripts.release_import import import_release
from dataset_scripts.size_estimate import seconds
from dataset_scripts.sources import quickstart
from dataset_scripts.sources.base import Item, Source
from dataset_scripts.validate import validate
from llaso_common.open_corpus import parquet_files
from llaso_common.schema import ANSWER_MARK, TRANSCRIPT_MARK, gives_answer
from llaso_common.tasks import PAPER_TASKS, TASKS

SPOKEN = quickstart.SOURCE.at(".", utterances=400, notes=20, questions=150)


def planned(folder: Path, source: Source = SPOKEN, corpus: str = "instruct", **settings: Any) -> dict[str, dict]:
    """Plan a corpus; return its rows by id."""
    chosen = Settings(corpus, eval_rows=60, validation_rows=20, voices=quickstart.voices(), **settings)
    make_plan(chosen, [source], folder)
    lines = [line for file in sorted((folder / "rows").iterdir()) for line in file.read_bytes().splitlines()]
    rows = [PlannedRow.parse(line) for line in lines]
    return {row.id: json.loads(row.json) for row in rows if not row.spare}


def answer(row: dict[str, Any]) -> str:
    (part,) = row["messages"][-1]["content"]
    return part["text"]


def spoken(row: dict[str, Any]) -> str:
    """All that a row's synthetic voices say, in order."""
    return " ".join(sound["text"] for clip in row["clips"] for sound in clip)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, dict]:
    return planned(tmp_path_factory.mktemp("plain") / "plan")


def test_answers_follow_the_transcript_of_all_that_is_heard(plain, tmp_path):
    rows = planned(tmp_path / "plan", transcript_first=1.0)
    assert rows.keys() == plain.keys()
    changed = Counter()
    for id, row in rows.items():
        same = row | {"messages": plain[id]["messages"]}
        assert same == plain[id] and row["messages"][:-1] == plain[id]["messages"][:-1]
        known = all(sound["kind"] == "speech" for clip in row["clips"] for sound in clip)
        if row["split"] == "train" and known and TASKS[row["task"]].answer != "transcript":
            assert answer(row) == f"{TRANSCRIPT_MARK} {spoken(row)}\n{ANSWER_MARK} {row['target']}"
            assert gives_answer(answer(row), row["target"])
            changed[row["task"], row["modality"]] += 1
        else:
            assert answer(row) == row["target"]
    assert {("AQA", "audio"), ("AQA", "audio_text"), ("AQA", "text_audio"), ("SGC", "text_audio")} <= changed.keys()


def test_a_share_of_them_is_drawn_by_their_ids(plain, tmp_path):
    whole, half = (planned(tmp_path / str(share), transcript_first=share) for share in (1.0, 0.5))
    first = {id for id, row in whole.items() if answer(row) != row["target"]}
    of_half = {id for id, row in half.items() if answer(row) != row["target"]}
    assert of_half < first and 0.4 < len(of_half) / len(first) < 0.6


@pytest.mark.parametrize("corpus", ["align", "eval"])
def test_other_corpora_stay_as_they_are(corpus, tmp_path):
    bare = planned(tmp_path / "bare", corpus=corpus)
    assert planned(tmp_path / "both", corpus=corpus, transcript_first=1.0, interleaved=1.0) == bare


def test_without_them_a_plan_is_what_it_was():
    """Finished and interrupted builds stay valid: only Instruct's plan states the shares, and only if they are set."""
    for corpus in ("align", "eval"):
        shares = {"transcript_first": 0.5, "interleaved": 0.5}
        assert Settings(corpus, **shares).stated([SPOKEN]) == Settings(corpus).stated([SPOKEN])
    bare = Settings("instruct").stated([SPOKEN])
    assert not {"transcript_first", "interleaved", "tasks"} & bare.keys()
    assert Settings("instruct", transcript_first=0.5).stated([SPOKEN]) == bare | {"transcript_first": 0.5}


def test_recordings_are_transcribed_first_if_their_words_are_known(tmp_path):
    root = write_recordings(tmp_path / "recordings")
    rows = planned(tmp_path / "plan", replace(SOURCE, root=root), transcript_first=1.0).values()
    genders = [row for row in rows if row["task"] == "SGC" and row["split"] == "train"]
    for row in genders:
        number = int(row["id"].split("rec-")[1][:3])
        asked = f"{row['clips'][0][0]['text']} " if row["modality"] == "audio" else ""
        assert answer(row) == f"{TRANSCRIPT_MARK} {asked}sentence number {number}\n{ANSWER_MARK} {row['target']}"
    assert {row["modality"] for row in genders} == {"text_audio", "audio"}
    notes = [row for row in rows if row["task"] == "PP"]
    assert notes and all(answer(row) == row["target"] for row in notes)


# ---- Interleaved rows ----


def test_written_and_spoken_sentences_take_turns(plain, tmp_path):
    rows = planned(tmp_path / "plan", interleaved=1.0)
    mixed = {id: rows.pop(id) for id in list(rows) if id not in plain}
    assert rows == plain and mixed
    starts = set()
    for row in mixed.values():
        assert (row["task"], row["modality"], row["split"]) == ("MIX", "text_audio", "train")
        content = row["messages"][0]["content"]
        asked = next(text for text in ASKED if content[0]["text"].startswith(text))
        starts.add(content[1]["type"] if content[0]["text"] == asked else "text")
        heard = iter(spoken(with_one_clip(row, place)) for place in range(len(row["clips"])))
        pieces = [next(heard) if part["type"] == "audio" else part["text"] for part in content]
        kinds = [part["type"] for part in content[content[0]["text"] == asked :]]
        assert all(one != other for one, other in zip(kinds, kinds[1:], strict=False))
        assert SENTENCES[0] <= len(kinds) <= SENTENCES[1] and kinds.count("audio") == len(row["clips"])
        pieces[0] = pieces[0].removeprefix(asked).strip()
        assert " ".join(filter(None, pieces)) == row["target"] == answer(row)
        assert json.loads(row["task_definition"])["code"] == "MIX" and "MIX" not in PAPER_TASKS
    assert starts == {"audio", "text"}


def with_one_clip(row: dict[str, Any], place: int) -> dict[str, Any]:
    return row | {"clips": [row["clips"][place]]}


def test_every_sentence_of_a_row_keeps_it_apart():
    """A row is dropped if any of its sentences, written or spoken, is held out."""
    items = [item for item in SPOKEN.items() if isinstance(item, Item)]
    mixer = Interleaver(1.0, 30.0)
    made = [mixed for item in items if item.split == "train" for mixed in mixer.add(item)]
    sentences = {sentence_key(item.sentence) for item in items if item.split == "train"}
    for mixed in made:
        keys = set(keys_of(SPOKEN, mixed, "")["sentence"])
        assert len(mixed.joins) >= SENTENCES[0] and {sentence_key(one) for one in mixed.joins} <= keys & sentences
        assert sum(seconds(sound) for sound in mixed.sound) <= 30.0


def test_a_built_corpus_with_both_is_valid(tmp_path):
    root = write_recordings(tmp_path / "recordings")
    source = replace(SOURCE, root=root)
    chosen = {"eval_rows": 12, "validation_rows": 4, "voices": VOICES}
    build("eval", [source], tmp_path / "eval", **chosen)
    out = build("instruct", [source], tmp_path / "out", transcript_first=1.0, interleaved=1.0, **chosen)
    assert validate(out, against=[tmp_path / "eval"])["bad"] == 0
    card = (out / "README.md").read_text()
    assert "In 100% of the training rows of which it is known what is said" in card and "| MIX (written and" in card
    rows = [row for file in parquet_files(str(out), "train") for row in pq.read_table(file).to_pylist()]
    mixed = [row for row in rows if row["task"] == "MIX"]
    assert mixed and all(
        len(row["audio"]) == sum(p["type"] == "audio" for p in row["messages"][0]["content"]) for row in mixed
    )


def test_an_answer_after_a_transcript_is_still_the_target_after_export_and_import(tmp_path):
    source = replace(SOURCE, root=write_recordings(tmp_path / "recordings"))
    chosen = {"eval_rows": 12, "validation_rows": 4, "voices": VOICES}
    out = build("instruct", [source], tmp_path / "out", transcript_first=1.0, **chosen)
    export_release(out, tmp_path / "released")
    import_release(tmp_path / "released", tmp_path / "back", audio_root=tmp_path / "released" / "audio")
    assert validate(tmp_path / "back")["bad"] == 0
    there, back = (
        Counter(
            (row["target"], row["messages"][-1]["content"][0]["text"])
            for file in parquet_files(str(folder), "train")
            for row in pq.read_table(file).to_pylist()
        )
        for folder in (out, tmp_path / "back")
    )
    assert there == back and any(target != said for target, said in there)


@pytest.mark.parametrize("name", ["transcript_first", "interleaved"])
@pytest.mark.parametrize("share", [-0.1, 1.5, "half", True])
def test_no_other_share_is_taken(name, share):
    with pytest.raises(ValueError, match=f"{name}: {share!r} is no share; give a number between 0 and 1"):
        Settings("instruct", **{name: share})


def test_the_task_of_interleaved_rows_is_declared_once():
    settings = Settings("instruct", interleaved=0.5)
    assert settings.tasks == (MIX,) and replace(settings, seed=1).tasks == (MIX,)
