"""`llaso real` with tiny parts: from a folder of manifests to a report, resumed; and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from support.hub_server import connected, serve
from support.tiny_training import WORDS, save_backbones, tiny_recipe
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dataset_scripts import sources_file
from llaso.cli import main
from llaso.quickstart.options import Options
from llaso.quickstart.real_parts import fetch
from llaso.quickstart.speech_sources import speech_sources
from llaso.training.cost.dry_run import dry_run
from llaso.training.recipe.recipe import load_recipe
from llaso.training.run import model_setup
from llaso_common.tasks import TASKS


def write_speech(folder: Path) -> Path:
    """Write hum of twelve speakers with transcripts, genders and ages as `train.jsonl` and `dev.jsonl`."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for split, speakers in (("train", range(8)), ("dev", range(8, 12))):
        rows = []
        for number in range(5 * len(speakers)):
            speaker, name = speakers[number % len(speakers)], f"{split}-{number}.wav"
            time = np.arange(16000 + 200 * number) / 8000  # long enough for CTC: more audio tokens than text tokens
            soundfile.write(folder / name, 0.3 * np.sin(2 * np.pi * (150 + 9 * number) * time), 8000)
            text = f"{' '.join(chance.sample(WORDS, 4))} and {' '.join(chance.sample(WORDS, 3))}"
            person = {"speaker": f"p{speaker}", "gender": ("male", "female")[speaker % 2], "age": 8 + speaker}
            rows.append({"audio": name, "text": text, "split": split, **person})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_backbones(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def journey(parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `llaso real` of minimum size."""
    folder = tmp_path_factory.mktemp("real")
    with TASKS.scope():
        assert main(command(folder, parts, write_speech(folder / "speech"))) == 0
    return folder / "run"


def command(folder: Path, parts: tuple[Path, Path], speech: Path) -> list[str]:
    named = ["--encoder", str(parts[0]), "--llm", str(parts[1]), "--speech", str(speech)]
    return ["real", "--out", str(folder / "run"), *named, "--size", "minimum", "--ignore-gate"]


@pytest.mark.slow
def test_the_journey_trains_by_the_small_recipes_and_reports_text_skill(journey, parts):
    for stage, recipe in (("stage1", "small_stage1"), ("llaso-small", "small_stage2")):
        trained = yaml.safe_load((journey / stage / "recipe.yaml").read_text())
        wanted = load_recipe(recipe).to_dict()
        assert trained["optimizer"]["learning_rate"] == wanted["optimizer"]["learning_rate"]
        assert trained["model"]["projector_norm"] == wanted["model"]["projector_norm"]
    assert (journey / "report" / "index.html").is_file() and (journey / "llaso-small" / "README.md").is_file()
    skill = json.loads((journey / "text_skill.json").read_text())
    assert skill["before"]["model"] == str(parts[1]) and skill["after"]["n"] == 100
    record = json.loads((journey / "quickstart.json").read_text())
    assert record["options"]["synthetic"] is False and list(record["done"])[:2] == ["backbones", "corpora"]


@pytest.mark.slow
def test_the_corpora_are_peoples_speech_with_made_questions_and_no_speaker_twice(journey):
    rows = [
        row | {"corpus": corpus}
        for corpus in ("align", "instruct", "eval")
        for file in sorted((journey / f"llaso-{corpus}").glob("data/*/*.parquet"))
        for row in pq.read_table(file, columns=["task", "source", "speaker", "split", "modality"]).to_pylist()
    ]
    assert {row["source"] for row in rows} == {"speech"}
    tasks = Counter(row["task"] for row in rows if row["corpus"] != "align")
    assert {"SGC", "AGE", "ABOUT"} <= tasks.keys() and len(tasks.keys() & {"WORDS", "SAID", "SPOT", "AFTER"}) > 1
    speakers = {split: {row["speaker"] for row in rows if row["split"] == split} - {""} for split in ("train", "test")}
    assert speakers["train"] and speakers["test"] and not speakers["train"] & speakers["test"]


@pytest.mark.slow
def test_the_same_command_goes_on_and_another_is_refused(journey, parts, capsys):
    again = command(journey.parent, parts, journey.parent / "speech")
    assert main(again) == 0
    said = capsys.readouterr().out
    assert said.count("done before") == 6 and "text skill" in said and "[1/6] backbones" in said
    assert main([*again, "--seed", "3"]) == 2


@pytest.mark.slow
def test_experiments_take_the_parts_and_recipes_of_the_journey(journey, parts, tmp_path):
    few = ["optimizer.max_steps=2", "watch.evaluate_rows=2", "watch.final_rows=2", "compute.compile=false"]
    command = ["experiment", "hours", "--quickstart", str(journey), "--out", str(tmp_path), "--seeds", "0"]
    assert main([*command, "--stage1-only", "--set", *few]) == 0
    results = json.loads((tmp_path / "hours" / "results.json").read_text())
    assert [run["variation"] for run in results["runs"]] == ["all hours", "half", "a quarter"]
    recipes = [load_recipe(file) for file in (tmp_path / "runs").glob("stage1-*/recipe.yaml")]
    assert {recipe.model.encoder for recipe in recipes} == {str(parts[0])}
    assert {recipe.optimizer.ctc_weight for recipe in recipes} == {1}
    assert sorted(recipe.data.speech_share for recipe in recipes) == [0.25, 0.5, 1]


def test_a_record_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "llaso-instruct").mkdir()
    for content in ("{", "[]", '{"options": {"colour": "red"}}'):
        (tmp_path / "quickstart.json").write_text(content)
        assert main(["experiment", "gate", "--quickstart", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        assert f"{tmp_path / 'quickstart.json'} is not what this version of" in capsys.readouterr().err


def test_a_development_part_alone_is_halved_by_speaker(tmp_path):
    speech = write_speech(tmp_path / "speech")
    file = speech_sources(str(speech), tmp_path / "out")
    content = yaml.safe_load(file.read_text())
    block = content["sources"]["speech"]
    assert set(block["manifest"]) == {"train", "validation", "test"} and block["lowercase"] is True
    assert block["tasks"] == {"ASR": "text", "SGC": "gender", "AGE": "age"} and "SAID" in block["questions"]
    halves = [
        {json.loads(line)["speaker"] for line in (tmp_path / "out" / f"{half}.jsonl").read_text().splitlines()}
        for half in ("validation", "test")
    ]
    assert all(halves) and not halves[0] & halves[1] and set.union(*halves) == {"p8", "p9", "p10", "p11"}
    with TASKS.scope():
        assert sources_file.read(file).sources[0].name == "speech"
    edited = file.read_text().replace("SAID: 0.15", "SAID: 1.0")
    file.write_text(edited)
    assert speech_sources(str(speech), tmp_path / "out").read_text() == edited  # what a person changed stays
    assert speech_sources(str(file), tmp_path / "other") == file


def test_a_development_part_with_other_columns_is_halved_by_its_speakers(tmp_path):
    """Also if a text holds a line separator that is no line break of JSON lines."""
    speech = write_speech(tmp_path / "speech")
    for file in speech.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        with file.open("w", encoding="utf-8") as out:
            for row in rows:
                speaker = 5 * (int(row["speaker"].removeprefix("p")) - 8)  # 0 is a speaker, too
                renamed = {"path": row["audio"], "sentence": f"a\u2028{row['text']}", "client_id": speaker}
                out.write(json.dumps(renamed, ensure_ascii=False) + "\n")
    block = yaml.safe_load(speech_sources(str(speech), tmp_path / "out").read_text())["sources"]["speech"]
    assert block["lowercase"] is True
    halves = [
        {json.loads(line)["client_id"] for line in (tmp_path / "out" / f"{half}.jsonl").read_text().splitlines()}
        for half in ("validation", "test")
    ]
    assert all(halves) and not halves[0] & halves[1] and len(set.union(*halves)) == 4
    broken = speech / "dev.jsonl"
    broken.write_text(broken.read_text() + "{\n")
    with pytest.raises(ValueError, match=r"dev\.jsonl:\d+: not JSON"):
        speech_sources(str(speech), tmp_path / "other")


def test_speech_without_transcripts_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": "a.wav", "mood": "glad"}) + "\n")
    with pytest.raises(ValueError, match="no column with transcripts was found"):
        speech_sources(str(tmp_path / "rows.jsonl"), tmp_path / "out")


def test_parts_that_are_not_there_are_named_before_anything_is_built(parts, tmp_path, capsys, monkeypatch):
    encoder, llm = map(str, parts)
    speech = str(write_speech(tmp_path / "speech"))
    (tmp_path / "empty").mkdir()
    shutil.copytree(llm, tmp_path / "unigram")
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    PreTrainedTokenizerFast(tokenizer_object=unigram).save_pretrained(tmp_path / "unigram")
    for named, message in (
        ([encoder, str(tmp_path / "unigram")], "has no tokenizer of byte-pair encoding"),
        ([str(tmp_path / "none"), llm], "encoder: there is no folder"),
        ([str(tmp_path / "empty"), llm], "has no config.json"),
        ([llm, encoder], "a Whisper is wanted. Are the two the wrong way round?"),
        (["openai/whisper-base", llm], "openai/whisper-base is not on this machine, and the Hub does not answer"),
    ):
        told = ["real", "--out", str(tmp_path / "run"), "--speech", speech, "--encoder", named[0], "--llm", named[1]]
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        assert main(told) == 2
        said = capsys.readouterr()
        assert message in said.err, said.err
        assert not (tmp_path / "run" / "llaso-align").exists()
    assert "make real ENCODER=DIR LLM=DIR" in said.err


def test_a_part_that_the_token_may_not_see_is_refused_with_the_hubs_reason(parts, tmp_path, monkeypatch):
    with serve(tmp_path / "objects") as hub, connected(hub, tmp_path / "home"):
        hub.repos["models/owner/secret"] = []
        hub.private.add("models/owner/secret")
        monkeypatch.setenv("HF_TOKEN", "hf_nobody")
        with pytest.raises(PermissionError, match="llm: owner/secret: the Hub does not accept this token.*llm DIR"):
            fetch(str(parts[0]), "owner/secret", lambda line: None)


def test_options_of_an_earlier_version_are_still_known():
    earlier = {"speech": "", "encoder": "", "llm": "", "seed": 0, "size": "standard"}
    assert Options.recorded(earlier)["synthetic"] is True
    with pytest.raises(ValueError, match="there has to be speech"):
        Options(synthetic=False)


def test_recipes_follow_the_parts():
    assert Options().recipes == ("quickstart_stage1", "quickstart_stage2")
    assert Options(encoder="a/b", llm="c/d").recipes == ("small_stage1", "small_stage2")


def test_a_dry_run_of_the_small_recipes_needs_no_download():
    lines = "\n".join(dry_run("small_stage1").lines())
    assert "20,590,592 parameters" in lines and "134,517,312 parameters" in lines


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"optimizer__learning_rate": 2e-3}, True),
        ({"optimizer__learning_rate": 1e-4}, False),
        ({"optimizer__learning_rate": 2e-3, "optimizer__llm": {"learning_rate": 1e-4}}, False),
        ({"optimizer__learning_rate": 2e-3, "lora": {"rank": 2}}, False),
        ({"optimizer__learning_rate": 2e-3, "train": ["projector"]}, False),
    ],
)
def test_a_rate_for_stand_ins_with_a_pretrained_llm_is_never_silent(parts, tmp_path, monkeypatch, settings, warned):
    monkeypatch.setattr(model_setup, "LARGE_PART", 10_000)  # the tiny LLM counts as pretrained
    recipe = tiny_recipe(tmp_path, "out", **{"train": ["projector", "llm"], **settings})
    recipe["model"] = {"encoder": str(parts[0]), "llm": str(parts[1]), "audio_padding": "trim"}
    lines: list[str] = []
    model_setup.set_up_model(load_recipe(recipe), lines.append)
    assert any("warning: llm has" in line and "(lora.rank)" in line for line in lines) == warned
