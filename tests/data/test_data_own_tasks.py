"""Tasks of a corpus's own: from a few lines of YAML to a scored report, and every way a definition can be wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from support.tiny_eval import save_llaso

from dataset_scripts import own_tasks
from dataset_scripts.instructions import STYLES
from dataset_scripts.sources import base
from dataset_scripts.sources.base import Fact, Item, Recording, Reject, Source
from dataset_scripts.validate import validate
from eval_suite.corpus import EvalCorpus
from eval_suite.text_normalization import fold
from llaso.cli import main
from llaso.demo.menu_builder import build_menu
from llaso.training.recipe.recipe import DataChoice
from llaso.training.rows.corpora import open_corpus
from llaso_common.schema import FEATURES, TASK_DEFINITION
from llaso_common.tasks import PAPER_TASKS, TASKS, Task, fold_label, task_of

YAML = """
sources: {calls: calls}
tasks:
  URGENCY: {kind: closed, name: urgency of a call, labels: [low, medium, high], instructions: urgency.txt,
            aliases: {high: [urgent]}, formats: [text_audio]}
  WAIT: {kind: number, bounds: [0, 2.5], instructions: wait.txt, formats: [text_audio]}
  DICTATION: {kind: transcript, instructions: dictation.txt, formats: [text_audio]}
  FIELDS: {kind: slots, instructions: fields.txt, formats: [text_audio]}
  SUMMARY: {kind: open, metric: judge, instructions: summary.txt, formats: [text_audio]}
eval_rows: 60
validation_rows: 10
voices: {train: [en-us+f1], validation: [en-us+f2], test: [en+f4]}
"""
TEXTS = {
    "urgency.txt": "How urgent is this call: {choices}?\nRate the urgency: {choices}.\n",
    "wait.txt": "".join(f"[{style}]\nHow many minutes did they wait, in a {style} way?\n" for style in STYLES),
    "dictation.txt": "Write down the call.\n",
    "fields.txt": "Find the fields.\n",
    "summary.txt": "Sum up the call.\n",
}


def calls(root: Path) -> Iterator[Item | Reject]:
    """Sixty calls of twenty callers with an answer to each task, one of them outside its set."""
    for n in range(60):
        facts = (
            Fact("ASR", f"call {n}"),
            Fact("URGENCY", ("low", "medium", "high")[n % 3] if n else "dire"),
            Fact("WAIT", f"{n / 30:.1f}"),
            Fact("DICTATION", f"call number {n}"),
            Fact("FIELDS", f"[number : {n}]"),
            Fact("SUMMARY", f"someone says {n}"),
        )
        yield Item(f"call-{n:02d}", facts, (Recording(str(root / f"{n}.wav")),), f"s{n % 20}", f"call {n}")


SOURCE = Source(
    "calls", "Calls", "CC0-1.0", "https://example.org", ("ASR", "URGENCY", "WAIT", "DICTATION", "FIELDS", "SUMMARY"),
    "{number}.wav", ("*.wav",), calls, eval_share=0.4,
)  # fmt: skip


def write_sources(folder: Path, yaml: str = YAML) -> Path:
    (folder / "calls").mkdir(parents=True)
    for n in range(60):
        soundfile.write(folder / "calls" / f"{n}.wav", 0.3 * np.sin(np.arange(1600) * (0.05 + 0.01 * n)), 8_000)
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    (folder / "sources.yaml").write_text(yaml)
    return folder / "sources.yaml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instruct and Eval, built by the command from the YAML above."""
    root = tmp_path_factory.mktemp("own")
    file = write_sources(root)
    with pytest.MonkeyPatch.context() as patch, TASKS.scope():
        patch.setattr(base, "load", lambda name: SOURCE)
        for corpus in ("instruct", "eval"):
            command = ["data", "build", corpus, "--sources", str(file), "--out", str(root / f"llaso-{corpus}")]
            assert main([*command, *(["--against", str(root / "llaso-instruct")] if corpus == "eval" else [])]) == 0
    return root


def test_rows_and_card_carry_the_definition(built: Path):
    assert set(TASKS) == set(PAPER_TASKS)  # what was built in this process is forgotten
    rows = [
        row for file in (built / "llaso-instruct").glob("data/*/*.parquet") for row in pq.read_table(file).to_pylist()
    ]
    assert {row["task"] for row in rows} >= {"ASR", "URGENCY", "WAIT", "DICTATION", "FIELDS", "SUMMARY"}
    for row in rows:
        assert (row[TASK_DEFINITION] is None) == (row["task"] in PAPER_TASKS)
        task = task_of(row)
        assert task.code == row["task"] and task.category == row["category"]
        assert row["template_id"].startswith(f"{task.code}/")
        assert bool(row["choices"]) == (task.code == "URGENCY") and set(row["choices"]) == set(task.labels)
        if task.code == "URGENCY":
            (said,) = [part["text"] for part in row["messages"][0]["content"] if part["type"] == "text"]
            assert all(label in said for label in task.labels) and row["style"] == ""
        if task.code == "WAIT":
            assert row["style"] in STYLES
    record = json.loads((built / "llaso-instruct" / "build.json").read_text())
    assert record["rejects"] == {"URGENCY: label is not among low, medium, high": 1}
    card = (built / "llaso-eval" / "README.md").read_text()
    assert (
        "| `URGENCY` | urgency of a call | one of low, medium, high | 2 instructions, without the paper's four" in card
    )
    assert "| `WAIT` | wait | a number from 0 to 2.5 | 4 instructions in the paper's four styles |" in card
    assert "| URGENCY (urgency of a call) |" in card
    with TASKS.scope():
        assert validate(built / "llaso-instruct")["found"] == 0
    assert "Answers of URGENCY" in (page := (built / "llaso-instruct" / "validation.html").read_text())
    assert "URGENCY (urgency of a call)" in page


def test_the_definition_is_kept_by_whatever_reads_rows(built: Path, tmp_path: Path):
    """`load_dataset`, a stream, and what a person pushes anew from filtered rows, without the card."""
    folder = built / "llaso-eval"
    whole = datasets.load_dataset(str(folder), split="test", cache_dir=tmp_path / "cache")
    streamed = datasets.load_dataset(str(folder), split="test", streaming=True)
    assert {row[TASK_DEFINITION] for row in streamed} == set(whole[TASK_DEFINITION])
    again = tmp_path / "again" / "data"
    again.mkdir(parents=True)
    whole.filter(lambda task: task == "URGENCY", input_columns="task").to_parquet(again / "test-0.parquet")
    corpus = EvalCorpus(tmp_path / "again")
    assert corpus.own_tasks["URGENCY"]["aliases"] == {"high": ["urgent"]} and "URGENCY" in TASKS


def test_from_yaml_to_a_scored_report(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Nothing but the corpus, the answers and the scores says what the tasks are: each command forgets the last."""

    def run(*command: object) -> None:
        with TASKS.scope():
            assert main(list(map(str, command))) == 0

    corpus = built / "llaso-eval"
    save_llaso(tmp_path / "model")
    run(
        "eval",
        "generate",
        "--model",
        tmp_path / "model",
        "--data",
        corpus,
        "--max-new-tokens",
        3,
        "--out",
        tmp_path / "a",
    )
    with TASKS.scope():
        right = {row.id: row for row in EvalCorpus(corpus).rows}
    (tmp_path / "b").mkdir()
    for file in (tmp_path / "a").glob("*.json*"):  # the same answers, corrected, as another system's
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else []
        for line in lines:
            target = right[line["id"]].reference
            line["prediction"] = {"high": "It is urgent!", "1.5": "They waited 1.5 minutes."}.get(target, target)
        text = "".join(json.dumps(line) + "\n" for line in lines) or file.read_text()
        (tmp_path / "b" / file.name).write_text(text)
    for name in ("a", "b"):
        out = tmp_path / f"{name}.json"
        run("eval", "score", tmp_path / name, "--protocol", "strict", "--no-intervals", "--out", out)
    tasks = json.loads((tmp_path / "b.json").read_text())["tasks"]
    metric = {code: entry["primary"]["metric"] for code, entry in tasks.items()}
    assert metric == {
        "ASR": "wer", "URGENCY": "accuracy", "WAIT": "mae", "DICTATION": "wer", "FIELDS": "slot_f1",
        "SUMMARY": "exact_match",
    }  # fmt: skip
    assert all(entry["primary"]["value"] == entry["primary"]["perfect"] for entry in tasks.values())
    assert tasks["URGENCY"]["name"] == "urgency of a call" and tasks["URGENCY"]["category"] == "paralinguistic"
    run("eval", "report", tmp_path / "a.json", tmp_path / "b.json", "--out", tmp_path / "report")
    assert "urgency of a call" in (tmp_path / "report" / "index.html").read_text()
    capsys.readouterr()
    run("eval", "compare", tmp_path / "a.json", tmp_path / "b.json", "--resamples", 100)
    said = capsys.readouterr().out
    assert "URGENCY" in said and "WAIT" in said
    run("eval", "panel", "build", tmp_path / "a", tmp_path / "b", "--name", "calls", "--out", tmp_path / "panel.json")
    panel = json.loads((tmp_path / "panel.json").read_text())
    assert panel["provenance"]["benchmark"] == str(corpus) and panel["systems"]["b"]["tasks"]["URGENCY"] == 1
    out = tmp_path / "against.json"
    run("eval", "score", tmp_path / "b", "--panel", tmp_path / "panel.json", "--no-intervals", "--out", out)
    against = json.loads(out.read_text())["normalized"]["panel"]
    assert against["name"] == "calls" and against["tasks"]["URGENCY"]["value"] == 1


def test_training_takes_the_task(built: Path):
    corpus = open_corpus(DataChoice(path=str(built / "llaso-instruct"), config="default", tasks=("URGENCY", "ASR")))
    assert {corpus[number]["task"] for number in range(corpus.rows)} == {"URGENCY", "ASR"}


def test_the_demo_offers_the_task(built: Path, tmp_path: Path):
    menu = build_menu(str(built / "model"), tmp_path)
    task = next(task for task in menu.tasks if task.name == "Urgency of a call")
    assert task.choices == ("high", "low", "medium") and task.instruction == "How urgent is this call: {choices}?"


def test_one_code_means_one_task(built: Path):
    EvalCorpus(built / "llaso-eval")
    other = Task("URGENCY", "urgency", "urgency", "paralinguistic", "closed", labels=("no", "yes"))
    with pytest.raises(ValueError, match="elsewhere: URGENCY is defined otherwise than in .*llaso-eval; give one of"):
        TASKS.declare([other], "elsewhere")


def test_answers_without_their_definition_are_refused(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = {"id": "1", "file": "x", "task": "URGENCY", "modality": "audio", "prediction": "low", "reference": "low"}
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    assert main(["eval", "score", str(tmp_path)]) == 2
    assert "own task is in the generation.json that `llaso eval generate` writes" in capsys.readouterr().err


def test_a_definition_that_cannot_be_read_is_named(built: Path, tmp_path: Path):
    file = next((built / "llaso-eval").glob("data/*/*.parquet"))
    rows = pq.read_table(file).to_pylist()
    for broken in ("{", "{}", '"URGENCY"', json.dumps({**TASKS["SGC"].record(), "category": "unheard of"})):
        changed = [{**row, TASK_DEFINITION: broken} for row in rows]
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(changed, schema=pq.read_schema(file)), tmp_path / "data" / "test-0.parquet"
        )
        with pytest.raises(ValueError, match="does not define a task .*; build the corpus again"):
            EvalCorpus(tmp_path)
        assert task_of(changed[0]) is None


def test_a_corpus_of_the_papers_tasks_has_no_further_column():
    assert TASK_DEFINITION not in FEATURES


GOOD = {"kind": "closed", "labels": ["low", "high"], "instructions": "i.txt"}


@pytest.mark.parametrize(
    ("code", "entry", "said"),
    [
        ("urgency", GOOD, "a code has capital letters"),
        ("SGC", GOOD, "the paper's speaker gender classification has this code; choose another"),
        ("U", "closed", "give its keys, as"),
        ("U", {"labels": ["a", "b"]}, "kind: choose one of closed, number, transcript, slots, open"),
        ("U", GOOD | {"kind": "close"}, "kind: unknown kind 'close'; did you mean closed"),
        ("U", GOOD | {"kind": ["closed"]}, r"kind: unknown kind \['closed'\]"),
        ("U", GOOD | {"labels": ["low ", "high"]}, "labels: 'low ' has spaces around it, .*; write 'low'"),
        ("U", GOOD | {"labels": ["a\nb", "high"]}, "labels: 'a.nb' has spaces .* or a line break; write 'a b'"),
        ("U", GOOD | {"formats": ["audio_text"]}, "formats: unknown 'audio_text'; .*choose from text_audio, audio"),
        ("U", {"kind": "number", "bounds": [0, float("inf")], "instructions": "i.txt"}, "bounds: .* is no range"),
        ("U", GOOD | {"label": ["a"]}, "label: no key of a closed task; did you mean labels"),
        ("U", GOOD | {"bounds": [0, 1]}, "bounds: no key of a closed task"),
        ("U", GOOD | {"labels": ["low"]}, "labels: a closed set needs two or more"),
        ("U", GOOD | {"labels": [True, "x"]}, "labels: True is not text; write it in quotes"),
        ("U", GOOD | {"labels": "low, high"}, "labels: 'low, high' is not a list"),
        ("U", GOOD | {"labels": ["low", "low"]}, "labels: 'low' and 'low' cannot be told apart"),
        ("U", GOOD | {"labels": ["On hold", "on-hold."]}, "labels: 'On hold' and 'on-hold.' cannot be told apart"),
        ("U", GOOD | {"aliases": {"hig": ["urgent"]}}, "aliases: 'hig' is not among the labels low, high"),
        ("U", GOOD | {"aliases": {"high": ["Low"]}}, "aliases: 'Low' of 'high' is already 'low'"),
        ("U", GOOD | {"category": "semantics"}, "category: unknown 'semantics'; did you mean semantic"),
        ("U", GOOD | {"formats": ["text"]}, "formats: unknown 'text'"),
        ("U", {"kind": "number", "instructions": "i.txt"}, "bounds: missing; give the lowest and the highest"),
        ("U", {"kind": "number", "bounds": [9, 1], "instructions": "i.txt"}, r"bounds: \[9, 1\] is no range"),
        ("U", {"kind": "open", "metric": "bleu", "instructions": "i.txt"}, "metric: 'bleu' is unknown; open answers"),
        ("U", {"kind": "open"}, "instructions: missing; name a text file"),
        ("U", {"kind": "open", "instructions": "none.txt"}, "none.txt cannot be read .*; make it"),
        ("U", {"kind": "open", "instructions": "empty.txt"}, "empty.txt is empty; write at least one"),
        ("U", {"kind": "open", "instructions": "odd.txt"}, "odd.txt:1: no style 'odd'"),
        ("U", {"kind": "open", "instructions": "choices.txt"}, "which only closed tasks have"),
        ("U", {"kind": "open", "instructions": "audio.txt"}, "holds <audio>; leave it out"),
    ],
)
def test_what_is_wrong_with_a_task_is_one_line(tmp_path: Path, code: str, entry: object, said: str):
    texts = {"i": "Say.", "empty": "\n\n", "odd": "[odd]\nSay.", "choices": "Say {choices}.", "audio": "Say <audio>."}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(ValueError, match=f"s.yaml: tasks: {code}: .*{said}") as caught:
        own_tasks.read_tasks(tmp_path / "s.yaml", {code: entry})
    assert "\n" not in str(caught.value)


def test_other_instructions_are_another_build(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(base, "load", lambda name: SOURCE)
    file = write_sources(tmp_path)
    command = ["data", "build", "eval", "--sources", str(file), "--out", str(tmp_path / "out"), "--limit", "6"]
    with TASKS.scope():
        assert main(command) == 0
    (tmp_path / "urgency.txt").write_text("How urgent is this call: {choices}?\nAnother: {choices}.\n")
    with TASKS.scope():
        assert main(command) == 2
    assert "holds another build (tasks)" in capsys.readouterr().err


@pytest.mark.parametrize("pair", [("low", "LOW."), ("a b", "a  b"), ("ｈｉｇｈ", "high"), ("yes", "Yes!")])
def test_labels_fold_as_answers_do(pair: tuple[str, str]):
    assert fold(pair[0]) == fold(pair[1]) and fold_label(pair[0]) == fold_label(pair[1])


def test_a_manifest_answers_a_task_of_its_own(tmp_path: Path):
    """Without any code: recordings, a manifest with a column for the task, and the YAML."""
    write_sources(tmp_path)
    lines = [
        {"audio": f"calls/{n}.wav", "text": f"call {n}", "speaker": f"s{n % 20}", "urgency": ("low", "high")[n % 2]}
        for n in range(60)
    ]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "sources.yaml").write_text(
        "sources:\n"
        "  calls:\n"
        "    manifest: calls.jsonl\n"
        "    columns: {audio: audio, text: text, speaker: speaker}\n"
        "    tasks: {ASR: text, URGENCY: urgency}\n"
        "tasks:\n"
        "  URGENCY: {kind: closed, labels: [low, high], instructions: urgency.txt, formats: [text_audio]}\n"
        "eval_rows: 20\n"
        "validation_rows: 4\n"
    )
    out = tmp_path / "out"
    with TASKS.scope():
        assert main(["data", "build", "instruct", "--sources", str(tmp_path / "sources.yaml"), "--out", str(out)]) == 0
    rows = [row for file in out.glob("data/*/*.parquet") for row in pq.read_table(file).to_pylist()]
    urgency = [row for row in rows if row["task"] == "URGENCY"]
    assert {row["target"] for row in urgency} == {"low", "high"}
    assert all(sorted(row["choices"]) == ["high", "low"] and task_of(row).code == "URGENCY" for row in urgency)
