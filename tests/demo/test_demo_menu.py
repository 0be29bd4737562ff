"""What the demo page offers: all tasks with labels, or those of the corpus beside a model; examples that are heard."""

from __future__ import annotations

import re

import pytest

from dataset_scripts.build import build
from dataset_scripts.conversations import enumerate_choices
from dataset_scripts.instructions import templates
from dataset_scripts.sources import quickstart
from llaso.demo import menu_builder
from llaso.demo.menu import Menu, MenuTask
from llaso_common.audio import read_audio
from llaso_common.tasks import TASKS


@pytest.mark.parametrize("choices", [(), ("a",), ("a", "b"), ("a", "b", "c")])
def test_choices_are_listed_as_in_the_corpora(choices):
    assert MenuTask("x", "one of {choices}!").with_choices(choices) == f"one of {enumerate_choices(choices)}!"


def test_without_a_corpus_every_task_is_offered(tmp_path):
    menu = menu_builder.build_menu("owner/somewhere", tmp_path)
    assert Menu.read(tmp_path) == menu
    named = {task.name.partition(" (")[0].lower() for task in menu.tasks}
    assert named == {task.name.lower() for task in TASKS.values() if task.code != "AQA"}
    for task in menu.tasks:
        code = next(t for t in TASKS.values() if t.name.lower() == task.name.partition(" (")[0].lower())
        assert bool(task.choices) == ("{choices}" in task.instruction)
        assert bool(task.choices) == (code.answer == "closed" and not task.name.endswith("(number)"))
        assert "{" not in task.with_choices(task.choices)

    assert {example.modality for example in menu.examples} == {"text_audio", "audio_text", "audio"}
    assert [example.title for example in menu.examples] == list(menu_builder.EXAMPLES.values())
    for example in menu.examples:
        assert len(read_audio(tmp_path / example.recording)) > 8_000
        assert example.target
        assert bool(example.instruction) == (example.modality == "text_audio")
        assert bool(example.content) == (example.modality == "audio_text")
        assert example.task in {"", *(task.name for task in menu.tasks)}
        assert all(choice in example.instruction for choice in example.choices)


def test_without_a_speech_synthesizer_the_menu_offers_instruments(tmp_path, monkeypatch):
    def missing(name):
        raise ValueError("espeak-ng is not installed")

    monkeypatch.setattr(menu_builder, "backend", missing)
    menu = menu_builder.build_menu("owner/somewhere", tmp_path)
    assert [example.title for example in menu.examples] == [menu_builder.EXAMPLES["IC", "text_audio"]]


def test_a_quickstart_offers_its_own_corpus(tmp_path):
    source = quickstart.SOURCE.at(".", utterances=120, notes=24, questions=60, real=False)
    voices = quickstart.voices()
    build("eval", [source], tmp_path / "llaso-eval", seed=0, eval_rows=60, validation_rows=6, voices=voices)
    out = tmp_path / "menu"
    out.mkdir()
    menu = menu_builder.build_menu(str(tmp_path / "llaso-tiny"), out)
    accents = next(task for task in menu.tasks if task.name == "Accent classification")
    assert accents.choices == tuple(sorted(quickstart.ACCENTS))
    assert accents.instruction in {template.text for template in templates("AC")}
    assert not any("speaker identification" in task.name.lower() for task in menu.tasks)
    rows = {row["target"]: row for row in menu_builder._rows(tmp_path / "llaso-eval", ("target", "audio"))}
    assert len(menu.examples) > 4
    for example in menu.examples:
        assert (out / example.recording).read_bytes()[:4] == b"fLaC"
        assert example.target in rows


def test_a_broken_corpus_is_named(tmp_path):
    folder = tmp_path / "llaso-eval" / "data" / "ASR"
    folder.mkdir(parents=True)
    (folder / "test-00000.parquet").write_bytes(b"not a table")
    with pytest.raises(ValueError, match=re.escape(str(folder / "test-00000.parquet"))):
        menu_builder.build_menu(str(tmp_path / "llaso-tiny"), tmp_path)
