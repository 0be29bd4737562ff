"""`llaso data import-chats`: chats of every known form become rows; what cannot be used is listed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from support.tiny_training import row, save_corpus

from dataset_scripts import chat_import
from dataset_scripts.chat_import import import_chats
from llaso.cli import main
from llaso.training.recipe.recipe import DataChoice
from llaso.training.rows.corpora import open_corpus
from llaso_common.open_corpus import open_split
from modeling_llaso.processing_llaso import AUDIO_TAGS, AUDIO_TOKEN

TURNS = [("user", "Name a fruit."), ("assistant", "A pear."), ("user", "Another?"), ("assistant", "A fig.")]
FORMS = [
    {"messages": [{"role": role, "content": text} for role, text in TURNS]},
    {"messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TURNS]},
    {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TURNS]},
]


def said(row) -> list[tuple[str, str]]:
    return [(turn["role"], "".join(part["text"] for part in turn["content"])) for turn in row["messages"]]


def write(file: Path, chats: list) -> str:
    file.write_text("".join((chat if isinstance(chat, str) else json.dumps(chat)) + "\n" for chat in chats))
    return str(file)


def read(out: Path) -> list[dict]:
    return list(load_dataset(str(out), split="train"))


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", "folder"])
def test_every_form_in_every_kind_of_file_gives_the_same_rows(tmp_path, ending, capsys):
    if ending == ".parquet":
        # a table has the same columns in every row, and messages in one form
        tables = [pa.Table.from_pylist([form]) for form in FORMS]
        files = [tmp_path / f"{number}.parquet" for number in range(len(tables))]
        for file, table in zip(files, tables, strict=True):
            pq.write_table(table, file)
        sources = [(str(file), 1) for file in files]
    elif ending == "folder":
        (tmp_path / "chats").mkdir()
        write(tmp_path / "chats/train.jsonl", FORMS[:1])
        sources = [(str(tmp_path / "chats"), 1)]
    else:
        file, text = tmp_path / f"chats{ending}", "".join(json.dumps(form) + "\n" for form in FORMS)
        if ending.startswith(".json") and "jsonl" not in ending:
            text = json.dumps(FORMS)
        file.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
        sources = [(str(file), len(FORMS))]
    for number, (source, count) in enumerate(sources):
        out = tmp_path / f"out{number}"
        assert main(["data", "import-chats", source, "--out", str(out)]) == 0
        assert f"{count} rows; 0 set aside" in capsys.readouterr().out
        rows = read(out)
        assert [said(row) for row in rows] == [TURNS] * count
        assert all(row["target"] == "A fig." and not row["audio"] for row in rows)


def test_a_prompt_and_its_response_are_a_chat_of_one_turn(tmp_path):
    chats = [
        {"prompt": "Hello?", "response": "Hello!"},
        {"instruction": "Translate.", "input": "Birne", "output": "pear", "system": "Be brief."},
        {"question": "One and one?", "answer": "Two.", "input": ""},
        {"instruction": "Sum up.", "context": "A long text.", "response": "Short."},
        FORMS[2] | {"system_prompt": "Be a pirate."},
    ]
    import_chats(write(tmp_path / "chats.jsonl", chats), tmp_path / "out")
    assert [said(row) for row in read(tmp_path / "out")] == [
        [("user", "Hello?"), ("assistant", "Hello!")],
        [("system", "Be brief."), ("user", "Translate.\n\nBirne"), ("assistant", "pear")],
        [("user", "One and one?"), ("assistant", "Two.")],
        [("user", "Sum up.\n\nA long text."), ("assistant", "Short.")],
        [("system", "Be a pirate."), *TURNS],
    ]


def test_what_cannot_be_used_is_listed_with_its_place_and_reason(tmp_path):
    def chat(*turns):
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    wrong = [
        ("not user, assistant", chat(*TURNS[:3])),
        ("not user, assistant", chat(TURNS[1])),
        ("not user, assistant", {"messages": []}),
        ("is none of", chat(*TURNS, ("tool", "{}"))),
        ("is none of", {"messages": [{"role": ["user"], "content": "Hi"}]}),
        ("a turn is empty", chat(TURNS[0], ("assistant", " "))),
        ("mark of audio", chat(("user", "What is in <audio>?"), TURNS[1])),
        ("is not text", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
        ("is not text", {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}),
        ("is not text", {"prompt": "One?", "input": {"a": 1}, "response": "Two."}),
        ("not a list of objects", {"messages": "hello"}),
        ("it has neither", {"text": "a story"}),
        ("is not text", {"prompt": "One?", "response": 2}),
        ("it has a history", {"instruction": "And now?", "output": "Yes.", "history": [["Hi", "Hello"]]}),
        ("half of a surrogate pair", '{"prompt": "One \\ud83d", "response": "Two."}'),
        ("a turn calls tools", {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": 1}]}]}),
        ("it has images beside its text", {"prompt": "What is this?", "response": "A cat.", "images": ["a.png"]}),
        ("it has both messages and conversations", FORMS[0] | FORMS[2]),
        ("it has both prompt and instruction", {"prompt": "One?", "instruction": "Two?", "response": "Three."}),
        ("not JSON", "{"),
    ]
    file = write(tmp_path / "chats.jsonl", [FORMS[0], *(chat for _, chat in wrong), FORMS[1]])
    made = import_chats(file, tmp_path / "out")
    assert made["rows"] == 2 and sum(made["rejects"].values()) == len(wrong)
    listed = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert [one["where"] for one in listed] == [f"{file}:{number}" for number in range(2, 2 + len(wrong))]
    for one, (reason, _) in zip(listed, wrong, strict=True):
        assert reason in one["reason"]
    with pytest.raises(ValueError, match="no chat can be used: 1 × not JSON"):
        import_chats(write(tmp_path / "broken.jsonl", ["{"]), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_many_chats_are_written_in_shards_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_import, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(chat_import, "ROWS_PER_SHARD", 4)
    chats = [{"prompt": f"{number}?", "response": f"{number}!"} for number in range(12)]
    file, out = write(tmp_path / "chats.jsonl", chats), tmp_path / "out"
    counts: list[int] = []
    assert import_chats(file, out, limit=11, progress=counts.append)["rows"] == 11
    assert [row["target"] for row in read(out)] == [f"{number}!" for number in range(11)]
    assert len({row["id"] for row in read(out)}) == 11 and counts[-1] == 11
    assert len(list(out.glob("data/text/*.parquet"))) == 3
    with pytest.raises(ValueError, match="is not empty.*--overwrite"):
        import_chats(file, out)
    assert import_chats(file, out, limit=3, overwrite=True)["rows"] == 3 == len(read(out))


@pytest.mark.parametrize("name", ["chats", "text", "json", "./parquet"])
def test_training_opens_the_rows_beside_a_corpus(tmp_path, monkeypatch, name):
    """In a folder of any name, even one of a loader of datasets."""
    monkeypatch.chdir(tmp_path)
    corpus = save_corpus(tmp_path / "corpus", {"train": [row(number) for number in range(3)]})
    import_chats(write(tmp_path / "chats.jsonl", FORMS), Path(name))
    opened = open_corpus(DataChoice(path=str(corpus), text_path=name, text_share=0.5))
    assert opened.tasks() == {"ASR": 3, "TEXT": 3}
    assert len(list(open_split(name, "train"))) == 3
    again = import_chats(name, Path("again"))
    assert again["rows"] == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("chats.txt", r"a file of chats ends in \.jsonl"),
        ("nothing here", "no such file or folder"),
        ("fake.jsonl.gz", r"fake\.jsonl\.gz is not a whole gzip file"),
    ],
)
def test_a_source_that_is_no_file_of_chats_is_named(tmp_path, source, message):
    for name in ("chats.txt", "fake.jsonl.gz"):
        (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=message):
        import_chats(str(tmp_path / source), tmp_path / "out")


@pytest.mark.parametrize("out", ["chats", "chats/out", "."])
def test_chats_are_never_overwritten(tmp_path, out):
    (tmp_path / "chats").mkdir()
    file = write(tmp_path / "chats/train.jsonl", FORMS)
    for source in (file, str(tmp_path / "chats")):
        if out == "chats/out" and source == file:
            continue  # a folder beside the file
        with pytest.raises(ValueError, match="lie one in the other"):
            import_chats(source, tmp_path / out, overwrite=True)
    assert Path(file).exists()


def test_a_data_set_that_is_not_there_is_named(tmp_path):
    (tmp_path / "chats").mkdir()
    write(tmp_path / "chats/train.jsonl", FORMS)
    with pytest.raises(ValueError, match="split other"):
        import_chats(str(tmp_path / "chats"), tmp_path / "out", split="other")


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("in/missing.jsonl", "./missing"):
        with pytest.raises(ValueError, match="no such file or folder"):
            import_chats(source, tmp_path / "out")


def test_a_file_has_no_split(tmp_path):
    with pytest.raises(ValueError, match="is a file, which has no split"):
        import_chats(write(tmp_path / "chats.jsonl", FORMS), tmp_path / "out", split="test")


def test_marks_of_audio_are_the_processors():
    assert set(chat_import.AUDIO_MARKS) == {AUDIO_TOKEN, *AUDIO_TAGS}
