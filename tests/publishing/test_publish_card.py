"""What is published of a run: a card with the report's figures, results in the Hub's forms, recipes without paths."""

from __future__ import annotations

import json
import re
import shutil
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from support.paths import ROOT
from support.tiny_run import write_run

from llaso.publishing.finished_run import read_run
from llaso.publishing.hub_upload import Destination
from llaso.publishing.model_card import TEMPLATE, _rates, _trained, write_card
from llaso.publishing.publish_run import collect, publish, publish_module

TO = Destination("owner/llaso-tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    return write_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it, elsewhere, as runs are moved."""
    return Path(shutil.copytree(made, tmp_path / "moved"))


def rows_of(card: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    lines = card.split(f"## {heading}\n")[1].splitlines()
    table = takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table][2:]


def published(folder: Path, repo_id: str) -> None:
    """Note, as `llaso data publish` does, that a corpus lies on the Hub."""
    fingerprint = json.loads((folder / "build.json").read_text())["fingerprint"]
    place = {"repo_id": repo_id, "revision": "a" * 40, "fingerprint": fingerprint}
    (folder / "published.json").write_text(json.dumps(place))


def test_the_cards_figures_are_those_of_the_report(run: Path):
    card = write_card(run)
    report = json.loads((run / "report" / "report.json").read_text())
    scores = {task["task"]: task["scores"][0] for task in report["tasks"]}
    shown = rows_of(card, "Results")
    assert [row[0].split()[0] for row in shown] == list(scores)
    for task, metric, value, interval, baseline, rows in shown:
        score = scores[task.split()[0]]
        assert metric.split()[0] == score["metric"] and rows == str(score["n"])
        assert value == f"{score['value']:.3f}" and baseline == f"{score['baseline']:.3f}"
        assert interval == f"{score['low']:.3f} to {score['high']:.3f}"
    stages = rows_of(card, "Training")
    assert [row[3] for row in stages] == ["11", "23"] and stages[0][5:] == ["1.250", "0.062 (320)", "0.10"]
    behind = [task for task, score in scores.items() if score["verdict"] != "above"]
    assert behind and all(f"({task})" in card.split("## Limits")[1] for task in behind)
    corpora = {row[0]: row for row in rows_of(card, "Data")}
    for name, row in corpora.items():
        built = json.loads((run / name / "build.json").read_text())
        assert row[1] == f"{built['rows']:,}" and row[3] == f"`{built['fingerprint'][:12]}`"


def test_chats_that_were_mixed_in_are_named_and_need_no_record_of_building(run: Path):
    """`llaso data import-chats` leaves none; nor are they among the corpora that are compared with the evaluation."""
    before = write_card(run)
    file = run / "llaso-tiny" / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text())
    recipe["data"]["text_path"] = str(run / "own-chats")
    file.write_text(yaml.safe_dump(recipe))
    card = write_card(run)
    assert [row[2] for row in rows_of(card, "Training")] == [
        "llaso-align",
        "llaso-instruct, and own-chats (text alone)",
    ]
    assert card.replace(", and own-chats (text alone)", "") == before
    assert read_run(run).stages[-1].portable_recipe()["data"]["text_path"] == "own-chats"


def test_the_cards_figures_change_with_the_report(run: Path):
    """Nothing in the card outlives the number it came from."""
    file = run / "report" / "report.json"
    report = json.loads(file.read_text())
    report["tasks"][0]["scores"][0] |= {"value": 0.123456, "low": 0.1, "high": 0.2, "n": 4321}
    file.write_text(json.dumps(report))
    card = write_card(run)
    assert (
        rows_of(card, "Results")[0][2:4] == ["0.123", "0.100 to 0.200"] and rows_of(card, "Results")[0][5] == "4,321"
    )
    assert "0.123456" in card.split("---")[1]


def test_the_cards_metadata_is_read_by_the_hubs_parser(run: Path):
    published(run / "llaso-instruct", "owner/llaso-instruct")
    published(run / "llaso-eval", "owner/llaso-eval")
    data = ModelCard(write_card(run, "owner/llaso-tiny")).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "audio-text-to-text")
    assert data.datasets == ["owner/llaso-instruct"] and data.model_name == "llaso-tiny"
    report = json.loads((run / "report" / "report.json").read_text())
    found = {result.metric_name.split()[0]: result for result in data.eval_results}
    assert found.keys() == {task["task"] for task in report["tasks"]}
    for task in report["tasks"]:
        result = found[task["task"]]
        assert (result.metric_type, result.metric_value) == (task["scores"][0]["metric"], task["scores"][0]["value"])
        assert (result.dataset_type, result.dataset_revision) == ("owner/llaso-eval", "a" * 40)
    kinds = {task: result.task_type for task, result in found.items()}
    assert kinds["ASR"] == "automatic-speech-recognition" and kinds["SGC"] == "audio-classification"


def test_results_in_the_hubs_format_need_a_published_benchmark(run: Path):
    name = ".eval_results/llaso-eval.yaml"
    assert name not in collect(read_run(run), TO, "apache-2.0")
    published(run / "llaso-eval", "owner/llaso-eval")
    content = collect(read_run(run), TO, "apache-2.0")[name]
    entries = parse_eval_result_entries(yaml.safe_load(content))
    report = json.loads((run / "report" / "report.json").read_text())
    values = {task["task"]: task["scores"][0]["value"] for task in report["tasks"]}
    assert {entry.task_id: entry.value for entry in entries} == values
    for entry in entries:
        assert entry.dataset_id == "owner/llaso-eval" and entry.dataset_revision == "a" * 40
        assert entry.source_url.endswith("owner/llaso-tiny/blob/main/report/report.json")
        assert "95 % interval" in entry.notes and "protocol strict" in entry.notes
    # A corpus built anew since is not the one that lies there.
    built = json.loads((run / "llaso-eval" / "build.json").read_text())
    (run / "llaso-eval" / "build.json").write_text(json.dumps({**built, "fingerprint": "b" * 64}))
    assert name not in collect(read_run(run), TO, "apache-2.0")


def test_nothing_published_names_this_machine(run: Path, made: Path):
    files = collect(read_run(run), TO, "apache-2.0")
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert str(made.parent).encode() not in data and str(run).encode() not in data, name
    recipe = yaml.safe_load(files["training/2-llaso-tiny/recipe.yaml"])
    assert (recipe["model"]["checkpoint"], recipe["data"]["path"], recipe["out"]) == (
        "stage1", "llaso-instruct", "llaso-tiny",
    )  # fmt: skip
    records = json.loads(files["training/data.json"])
    assert [record["name"] for record in records] == ["llaso-align", "llaso-instruct", "llaso-eval"]
    assert all(record["sources"]["tiny"]["license"] == "CC0-1.0" for record in records)


def test_shared_rows_and_missing_comparisons_are_said(run: Path):
    file = run / "llaso-eval" / "leakage.json"
    leakage = json.loads(file.read_text())
    assert "shares no recording, speaker or sentence" in write_card(run)
    file.write_text(json.dumps({**leakage, "shared_by_nature": {"vctk": ["sentence"], "meld": ["speaker"]}}))
    shared = "but for what sources share by their nature: the sentences of vctk; the speakers of meld."
    assert shared in write_card(run)
    file.write_text(json.dumps({**leakage, "clean": False}))
    assert "**Training and evaluation share rows**" in write_card(run)
    file.write_text(json.dumps({**leakage, "compared": {}}))
    assert "were not compared" in write_card(run)


def test_a_training_folder_needs_its_report_and_a_licence(run: Path):
    (run / "quickstart.json").unlink()
    model, known = run / "llaso-tiny", {"report": run / "report", "evaluated_on": run / "llaso-eval"}
    with pytest.raises(ValueError, match="--report DIR.*--evaluated-on"):
        publish(model, TO)
    with pytest.raises(ValueError, match="no finished run"):
        read_run(run)
    with pytest.raises(ValueError, match="under which licence.*--license"):
        publish(model, TO, **known)
    card = write_card(read_run(model, **known), "owner/llaso-tiny", "llama3.2")
    assert "license: llama3.2" in card and "`encoder` and `llama`" in card and "standing in" not in card
    report = json.loads((run / "report" / "report.json").read_text())
    (run / "report" / "report.json").write_text(
        json.dumps({**report, "systems": [{**report["systems"][0], "name": name} for name in ("a", "b")]})
    )
    with pytest.raises(ValueError, match="about a, b; none of them is called llaso-tiny"):
        read_run(model, **known)


def test_the_licence_is_never_that_of_another_part(run: Path, monkeypatch):
    """An encoder from the Hub does not lend its licence to a language model from a folder."""
    (run / "quickstart.json").unlink()
    recipe = run / "stage1" / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["model"]["encoder"] = "openai/whisper-base"
    recipe.write_text(yaml.safe_dump(content))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_: pytest.fail("asked for the encoder's licence"))
    known = {"report": run / "report", "evaluated_on": run / "llaso-eval"}
    assert read_run(run / "llaso-tiny", **known).base_models == ("openai/whisper-base",)
    with pytest.raises(ValueError, match="under which licence.*--license"):
        publish(run / "llaso-tiny", TO, **known)


def test_what_is_missing_is_named(run: Path):
    finished = read_run(run)
    (run / "llaso-tiny" / "processing_llaso.py").unlink()
    with pytest.raises(ValueError, match="processing_llaso.py is missing"):
        collect(finished, TO, "mit")
    (run / "report" / "report.json").unlink()
    with pytest.raises(ValueError, match=r"report.json is missing: run `llaso eval report`"):
        read_run(run)
    (run / "llaso-instruct" / "build.json").unlink()
    with pytest.raises(ValueError, match="finish it with `llaso data build`"):
        read_run(run)
    shutil.rmtree(run / "llaso-instruct")
    recipe = (run / "llaso-tiny" / "recipe.yaml").read_text()
    (run / "llaso-tiny" / "recipe.yaml").write_text(re.sub(r"path: .*llaso-instruct", "path: /gone/corpus", recipe))
    with pytest.raises(ValueError, match="there is no such corpus"):
        read_run(run)


def test_a_sharded_checkpoint_is_whole_or_refused(run: Path):
    folder = run / "llaso-tiny"
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is missing"):
        collect(read_run(run), TO, "mit")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    files = collect(read_run(run), TO, "mit")
    assert {name for name in files if "model" in name and "safetensors" in name} == {
        "model.safetensors.index.json", *index["weight_map"].values()
    }  # fmt: skip


def test_the_module_has_the_name_that_evaluate_looks_for():
    with pytest.raises(ValueError, match="OWNER/llaso_eval"):
        publish_module(Destination("owner/metric", "space"))


def test_the_projects_own_card_is_the_template_filled():
    """No word of model_card.md beside what the template's fields take."""
    template, card = (
        TEMPLATE.read_text(encoding="utf-8"),
        (ROOT / "model_card.md").read_text("utf-8"),
    )
    fixed = re.split(r"\$\w+", template)
    assert re.fullmatch(".*?".join(map(re.escape, fixed)), card, flags=re.DOTALL)
    assert ModelCard(card).data.eval_results


def test_the_card_says_how_a_part_learned():
    assert _trained({"train": ["projector"]}) == "projector"  # an early recipe
    recipe = {"train": ["encoder", "projector", "llm"], "lora": {"rank": 32}, "encoder_lora": {"rank": 8}}
    assert _trained(recipe) == "encoder (LoRA, rank 8), projector, llm (LoRA, rank 32)"
    recipe = {"train": ["encoder", "llm"], "lora": {"rank": 0}, "encoder_lora": {"rank": 0}, "encoder_last_layers": 2}
    assert _trained(recipe) == "encoder (its last 2 layers), llm"


def test_the_card_gives_the_rates_of_parts_that_have_their_own():
    optimizer = {"learning_rate": 2e-3, "encoder": {"learning_rate": 1.2e-4}, "projector": {"learning_rate": None}}
    recipe = {"train": ["encoder", "projector"], "optimizer": optimizer}
    assert _rates(recipe) == "0.002, encoder 0.00012"
    assert _rates({"train": ["projector"], "optimizer": {"learning_rate": 1e-3}}) == "0.001"  # an early recipe
