"""Experiments: which runs they make, that equal ones are made once, and what tables, plots and pages say of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.tiny_eval import corpus_row, write_corpus
from support.tiny_training import row, save_backbones, save_corpus, tiny_recipe

from llaso.cli import main
from llaso.training.experiments import experiments
from llaso.training.experiments.experiment_report import put_into_page, table, write_report
from llaso.training.experiments.experiments import Inputs, _steps_of, evaluate_model, flat_scores, run_experiment
from llaso.training.recipe.recipe import load_recipe
from llaso.training.run.train import train
from llaso_common.folder_lock import FolderBusy

SMALL = (
    "batch.per_device=4",
    "watch.evaluate_rows=2",
    "watch.final_rows=2",
    "watch.reporters=[none]",
    "model.projector_stride=1",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("journey")
    save_backbones(folder / "backbones")
    spoken = [row(i) for i in range(8)]
    held_out = [row(i, seed=1) for i in range(2)]
    save_corpus(folder / "llaso-align", {"train": spoken, "validation": held_out})
    instruct = [*spoken, *(row(i, task="IP") for i in range(4)), *(row(i, task="AQA", clips=1) for i in range(3))]
    save_corpus(folder / "llaso-instruct", {"train": instruct, "validation": held_out})
    save_corpus(folder / "llaso-eval", {"test": held_out})
    return Inputs(folder)


def scores_of(model: Path, corpus: Path, out: Path, rows: int) -> dict[str, Any]:
    """Scores made of what the training itself wrote: a tenth for each task it saw."""
    seen = [json.loads(line) for line in (model / "history.jsonl").read_text().splitlines()]
    tasks = {task for record in seen if record["kind"] == "step" for task in record["tasks"]}
    entry = {
        "primary": {"metric": "accuracy", "value": len(tasks) / 10, "direction": "higher"},
        "coverage": 1.0,
    }
    entries = {task: entry for task in ("ASR", "IP", "AQA")}
    return {
        "tasks": entries,
        "modalities": {
            "text_audio": {"tasks": entries, "normalized": {"skill": {"value": 0.3}}, "coverage": 1.0},
            "audio": {"tasks": {"AQA": entry}, "normalized": {"skill": {"value": 0.1}}, "coverage": 1.0},
        },
        "normalized": {"skill": {"value": 0.25}},
        "coverage": 1.0,
    }


@pytest.mark.slow
def test_an_experiment_trains_its_variations_alike_and_puts_them_into_its_page(inputs, tmp_path):
    lines: list[str] = []

    def run() -> Path:
        return run_experiment(
            "unseen",
            inputs,
            tmp_path,
            seeds=(0,),
            overrides=SMALL,
            stage2_steps=3,
            evaluate=scores_of,
            report=lines.append,
        )

    folder = run()
    results = json.loads((folder / "results.json").read_text())
    runs = results["runs"]
    assert [one["variation"] for one in runs] == ["all tasks", "without IP", "without pure audio"]
    assert {one["steps"] for one in runs} == {3}
    assert [one["scores"]["IP"]["value"] for one in runs] == [0.3, 0.2, 0.3]
    assert results["shown"] == ["AQA (audio)", "AQA (text_audio)", "IP"]
    stages = sorted(path.name.partition("-")[0] for path in (tmp_path / "runs").glob("stage*"))
    assert stages == ["stage1", "stage2", "stage2", "stage2"]  # Stage 1 is shared

    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("Before.\n<!-- unseen -->\nold\n<!-- end of unseen -->\nAfter.\n")
    put_into_page(folder, page)
    put_into_page(folder, page)
    text = page.read_text()
    assert text.startswith("Before.\n<!-- unseen -->\nTo be tested: ") and text.endswith(
        "<!-- end of unseen -->\nAfter.\n"
    )
    assert "old" not in text and text.count("| without IP | 1 |") == 1
    assert "(images/experiment-unseen.png)" in text
    assert (page.parent / "images" / "experiment-unseen.png").stat().st_size > 5000
    page.write_text("Nothing of the kind.\n")
    with pytest.raises(ValueError, match="no lines <!-- unseen -->"):
        put_into_page(folder, page)

    lines.clear()
    assert run() == folder and not any("step" in line for line in lines)  # everything was there


def work_along(inputs: Inputs, out: Path, seeds: tuple[int, ...], log: Path, freeze: bool = False) -> None:
    """One of several processes that are given the same experiment; it may stop itself in its first run."""

    def report(line: str) -> None:
        with log.open("a") as file:
            print(line, file=file)
        if freeze and line.startswith("    step"):
            os.kill(os.getpid(), signal.SIGSTOP)

    folder = run_experiment(
        "more-tasks", inputs, out, seeds=seeds, overrides=SMALL, stage2_steps=2, evaluate=scores_of, report=report
    )
    write_report(folder)


@pytest.mark.slow
def test_processes_share_the_runs_of_an_experiment_and_take_over_those_of_a_killed_one(inputs, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    out = tmp_path / "shared"
    killed = spawn.Process(target=work_along, args=(inputs, out, (0, 1), logs[0], True))
    killed.start()
    assert os.WIFSTOPPED(os.waitpid(killed.pid, os.WUNTRACED)[1]), "it ended instead of stopping in its first run"
    others = [
        spawn.Process(target=work_along, args=(inputs, out, seeds, log))
        for seeds, log in (((1, 0), logs[1]), ((0, 1), logs[2]))
    ]
    for process in others:
        process.start()
    while not all(log.exists() and "2 left, with other processes" in log.read_text() for log in logs[1:]):
        time.sleep(0.01)
        assert all(process.is_alive() for process in others)
    assert not any("seed 0" in log.read_text() for log in logs[1:])  # whose Stage 1 the stopped one holds
    killed.kill()
    killed.join()
    for process in others:
        process.join()
        assert process.exitcode == 0

    results = json.loads((out / "more-tasks" / "results.json").read_text())
    names = results["variations"]
    assert [(run["seed"], run["variation"]) for run in results["runs"]] == [(s, n) for s in (0, 1) for n in names]
    alone = run_experiment(
        "more-tasks",
        inputs,
        tmp_path / "alone",
        unseen=["PR"],
        seeds=(0, 1),
        overrides=SMALL,
        stage2_steps=2,
        evaluate=scores_of,
    )
    assert json.loads((alone / "results.json").read_text()) == results
    for stage in (out / "runs").glob("stage*"):
        steps = [json.loads(line)["step"] for line in (stage / "history.jsonl").read_text().splitlines()]
        assert steps == sorted(steps) and (stage / "training.json").exists() and not (stage / ".lock").exists()


def test_stage_1_stands_alone_or_is_given(inputs, tmp_path):
    common = {"seeds": (0,), "overrides": SMALL, "evaluate": scores_of}
    folder = run_experiment("gate", inputs, tmp_path, stage1_only=True, **common)
    runs = json.loads((folder / "results.json").read_text())["runs"]
    assert [one["variation"] for one in runs] == ["Stage 1 at 100%", "Stage 1 at 30%", "Stage 1 at 10%"]
    assert all(one["stage1_wer"] is not None and one["stage2_wer"] is None and not one["scores"] for one in runs)
    stages = list((tmp_path / "runs").glob("stage*"))
    steps = sorted(json.loads((stage / "training.json").read_text())["steps"] for stage in stages)
    assert len(steps) == 2 and steps[0] == 1 < steps[1]  # of so few steps, 30 % and 10 % are both one

    given = stages[0]
    folder = run_experiment("more-tasks", inputs, tmp_path, stage1=given, stage2_steps=2, **common)
    runs = json.loads((folder / "results.json").read_text())["runs"]
    assert [one["stage1_wer"] for one in runs] == [json.loads((given / "training.json").read_text())["wer"]] * 2
    seconds = list((tmp_path / "runs").glob("stage2*"))
    assert len(seconds) == 2 and set(stages) == set((tmp_path / "runs").glob("stage1*"))
    for second in seconds:
        assert load_recipe(second / "recipe.yaml").model.checkpoint == str(given)


def test_stage_1_is_varied_at_an_equal_number_of_steps(inputs, tmp_path):
    common = {"seeds": (0,), "overrides": SMALL, "stage1_only": True, "evaluate": scores_of}
    folder = run_experiment("padding", inputs, tmp_path, **common)
    runs = json.loads((folder / "results.json").read_text())["runs"]
    assert [one["variation"] for one in runs] == ["trim", "full", "trim, 1 s of silence"]
    assert all(one["stage1_wer"] for one in runs)
    recipes = [load_recipe(stage / "recipe.yaml") for stage in (tmp_path / "runs").glob("stage1*")]
    assert sorted((recipe.model.audio_padding, recipe.model.audio_tail or 0) for recipe in recipes) == [
        ("full", 0),
        ("trim", 0),
        ("trim", 1),
    ]
    assert len({recipe.optimizer.max_steps for recipe in recipes}) == 1

    with pytest.raises(ValueError, match="hours varies Stage 1, so that all cannot start from .*; omit --stage1"):
        run_experiment("hours", inputs, tmp_path, stage1=next((tmp_path / "runs").glob("stage1*")))


def test_the_encoder_learns_gently_in_three_ways(inputs, tmp_path):
    folder = run_experiment(
        "unfreeze",
        inputs,
        tmp_path,
        seeds=(0,),
        overrides=(*SMALL, "optimizer.learning_rate=0.005"),
        stage2_steps=1,
        evaluate=scores_of,
    )
    runs = json.loads((folder / "results.json").read_text())["runs"]
    names = ["encoder frozen", "a hundredth of the rate", "adapters", "its last layer"]
    assert [one["variation"] for one in runs] == names
    learns = {}
    for second in (tmp_path / "runs").glob("stage2*"):
        recipe = load_recipe(second / "recipe.yaml")
        way = (recipe.optimizer.encoder.learning_rate, recipe.encoder_lora.rank, recipe.encoder_last_layers)
        learns[way] = "encoder" in recipe.train
        assert recipe.optimizer.learning_rate == 0.005
    assert learns == {(None, 0, 0): False, (5e-5, 0, 0): True, (None, 8, 0): True, (5e-5, 0, 1): True}


def test_a_run_of_an_earlier_version_is_taken_as_if_newer_settings_had_their_defaults(inputs, tmp_path):
    common = {"seeds": (0,), "overrides": SMALL, "stage1_only": True, "evaluate": scores_of}
    run_experiment("padding", inputs, tmp_path, **common)
    before = set((tmp_path / "runs").glob("stage*"))
    for run in before:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        del recipe["encoder_lora"], recipe["optimizer"]["ctc_merges"]
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_experiment("padding", inputs, tmp_path, **common)
    assert set((tmp_path / "runs").glob("stage*")) == before

    damaged = tmp_path / "runs" / "stage1-0"  # looked at first
    damaged.mkdir()
    (damaged / "recipe.yaml").write_text("[")
    lines: list[str] = []
    run_experiment("padding", inputs, tmp_path, report=lines.append, **common)
    assert any(f"not looked at: {damaged / 'recipe.yaml'} cannot be read" in line for line in lines)
    assert set((tmp_path / "runs").glob("stage*")) == {*before, damaged}


def test_settings_of_stage_1_need_not_fit_a_stage_2_that_is_left_out(inputs, tmp_path):
    (tmp_path / "adapters.yaml").write_text("base: quickstart_stage2.yaml\nlora: {rank: 4}\n")
    inputs = replace(inputs, recipes=(inputs.recipes[0], str(tmp_path / "adapters.yaml")))
    common = {"seeds": (0,), "overrides": (*SMALL, "train=[projector]")}
    with pytest.raises(ValueError, match="`train` does not name llm"):
        run_experiment("padding", inputs, tmp_path, **common)
    folder = run_experiment("padding", inputs, tmp_path, stage1_only=True, **common)
    assert len(json.loads((folder / "results.json").read_text())["runs"]) == 3


def test_what_cannot_be_run_is_refused_before_anything_is_trained(inputs, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    result = {"steps": 1, "loss": 1.0, "wer": 0.5, "wer_words": 9, "gate_wer": None, "seconds": 1.0, "skipped": 0}
    (given / "training.json").write_text(json.dumps({"out": "elsewhere", **result}))
    for name, options, message in (
        ("pieces", {}, "the variation '1,000 merges' of quickstart_stage1: .* nothing is aligned"),
        ("gate", {"stage1": given}, "gate varies Stage 1"),
        ("unseen", {"stage1_only": True}, "unseen varies Stage 2 alone; omit --stage1-only"),
    ):
        with pytest.raises(ValueError, match=message):
            run_experiment(name, inputs, tmp_path / "out", **options)
    page = tmp_path / "page.md"
    page.write_text("# Nothing")
    command = ["experiment", "unseen", "--quickstart", str(inputs.folder), "--out", str(tmp_path / "out")]
    assert main([*command, "--page", str(page)]) == 2
    assert not (tmp_path / "out").exists()


def test_equal_steps_are_counted_in_the_steps_of_the_recipe(inputs):
    recipe = (*inputs.stage1(), *SMALL, "batch.per_device=2", "optimizer.epochs=1")
    assert _steps_of("quickstart_stage1", recipe) == 4
    for rows in ("batch.per_device=2", "batch.per_device=auto"):
        assert _steps_of("quickstart_stage1", (*recipe, rows, "batch.rows=4")) == 2


def test_a_run_is_taken_as_it_is_however_it_was_watched_unless_it_comes_to_something_else(inputs, tmp_path):
    def names() -> set[str]:
        return {folder.name for folder in (tmp_path / "runs").glob("stage*")}

    common = {"seeds": (0,), "stage2_steps": 1, "evaluate": scores_of}
    watched = ("watch.save_every=1", "watch.log_every=1", "watch.gate_wer=0.5", "data.rows=9")
    folder = run_experiment("more-tasks", inputs, tmp_path, overrides=(*SMALL, *watched), **common)
    results = (folder / "results.json").read_bytes()
    for run in (tmp_path / "runs").glob("stage2*"):
        run.rename(f"{run}-moved")  # known by the recipe that lies in it, not by its name
    before = names()

    otherwise = ("compute.workers=1", "watch.evaluate_every=2", "data.seconds_per_row=9", "data.text_tokens_per_row=9")
    run_experiment("more-tasks", inputs, tmp_path, overrides=(*SMALL, *otherwise), **common)
    assert names() == before and (folder / "results.json").read_bytes() == results
    assert not list(folder.glob("results-*.json"))
    for changed in ("watch.final_rows=1", "batch.accumulation=2"):  # another word error rate, another step
        run_experiment("more-tasks", inputs, tmp_path, overrides=(*SMALL, changed), **common)
        assert len(names() - before) == 3
        before = names()


def test_earlier_results_are_kept_unless_all_of_their_runs_come_again(inputs, tmp_path, monkeypatch):
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    lines: list[str] = []

    def results_of(*seeds: int) -> tuple[set[int], list[str]]:
        folder = run_experiment(
            "more-tasks", inputs, tmp_path, seeds=seeds, overrides=SMALL, stage2_steps=1, evaluate=scores_of,
            report=lines.append,
        )  # fmt: skip
        runs = json.loads((folder / "results.json").read_text())["runs"]
        return {run["seed"] for run in runs}, sorted(path.name for path in folder.glob("results-*.json"))

    assert results_of(0) == ({0}, [])
    before = (tmp_path / "more-tasks" / "results.json").read_bytes()
    assert results_of(0, 1) == ({0, 1}, [])
    assert results_of(1) == ({1}, ["results-1.json"])
    kept = json.loads((tmp_path / "more-tasks" / "results-1.json").read_text())["runs"]
    assert json.loads(before)["runs"] == [run for run in kept if run["seed"] == 0]
    assert lines[-1].startswith("the earlier results, of other settings or seeds, are kept in ")
    assert results_of(1) == ({1}, ["results-1.json"])
    for _ in range(2):  # stopped before its first run, twice
        with monkeypatch.context() as patch:
            patch.setattr(experiments, "train", stopped)
            with pytest.raises(KeyboardInterrupt):
                results_of(2)
    assert results_of(2) == ({2}, ["results-1.json", "results-2.json"])


def test_a_table_gives_mean_spread_and_what_every_seed_agrees_on():
    runs = [
        {
            "variation": name,
            "seed": seed,
            "steps": 300,
            "stage1_wer": 0.05,
            "stage2_wer": 0.1 if name == "frozen" else 0.1 + (seed - 1) / 10,
            "skill": None,
            "answered": 0.5,
            "scores": {"ASR": {"metric": "wer", "value": value + seed / 100, "direction": "lower", "answered": 0.5}},
        }
        for name, value in (("frozen", 0.1), ("unfrozen", 0.2))
        for seed in (0, 1, 2)
    ]
    text = table({"claim": "So it is.", "variations": ["frozen", "unfrozen"], "shown": ["ASR"], "runs": runs})
    assert "| trained | seeds | WER after Stage 1 | WER after Stage 2 | ASR wer | answered |" in text
    assert "| frozen | 3 | 0.050 ± 0.000 | 0.100 ± 0.000 | 0.110 ± 0.010 | 0.500 ± 0.000 |" in text
    assert "| unfrozen | 3 | 0.050 ± 0.000 | 0.100 ± 0.100 | 0.210 ± 0.010 ▲ | 0.500 ± 0.000 |" in text
    assert "over 3 seeds (0, 1, 2). Stage 2 took 300 steps." in text
    # Of runs that other processes do, the reference may come last: its place is kept, and nothing is compared yet.
    late = [run for run in runs if run["variation"] == "unfrozen"]
    text = table({"claim": "", "variations": ["frozen", "unfrozen"], "shown": ["ASR"], "runs": late})
    assert "| unfrozen | 3 | 0.050 ± 0.000 | 0.100 ± 0.100 | 0.210 ± 0.010 | " in text and "| frozen" not in text


def test_formats_of_a_task_are_told_apart_where_there_are_several():
    def entry(value: float | None) -> dict[str, Any]:
        primary = None if value is None else {"metric": "accuracy", "value": value, "direction": "higher"}
        return {"primary": primary, "coverage": 0.5}

    def skill(value: float | None) -> dict[str, Any]:
        return {"normalized": {"skill": {"value": value}}, "coverage": 0.5}

    flat = flat_scores(
        {
            "tasks": {"AQA": entry(0.4), "SGC": entry(0.7), "PSWL": entry(None)},
            "modalities": {
                "text_audio": {"tasks": {"AQA": entry(0.6), "SGC": entry(0.7)}} | skill(0.5),
                "audio": {"tasks": {"AQA": entry(0.2)}} | skill(0.1),
                "audio_text": {"tasks": {}} | skill(None),
            },
        }
    )
    assert {name: one["value"] for name, one in flat.items()} == {
        "AQA": 0.4,
        "AQA (text_audio)": 0.6,
        "AQA (audio)": 0.2,
        "SGC": 0.7,
        "skill (text_audio)": 0.5,
        "skill (audio)": 0.1,
    }


def test_mistakes_are_named(inputs, tmp_path):
    with pytest.raises(ValueError, match="there are gate, encoder, unfreeze, unseen, more-tasks"):
        run_experiment("gates", inputs, tmp_path)
    with pytest.raises(FileNotFoundError, match="no corpus at nowhere/llaso-instruct; run `llaso quickstart` first"):
        run_experiment("gate", Inputs(Path("nowhere")), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no finished training \(training.json is missing\)"):
        run_experiment("encoder", inputs, tmp_path, stage1=Path("nowhere"))
    with pytest.raises(ValueError, match="has none of the tasks PR; it has ASR, IP, AQA"):
        run_experiment("unseen", inputs, tmp_path, unseen=["PR"])


def test_corpora_are_compared_at_an_equal_number_of_steps(inputs, tmp_path):
    """Their names and folders may hold what means something in Markdown or YAML."""
    few = save_corpus(tmp_path / "few #2", {"train": [row(i) for i in range(8)], "validation": [row(0, seed=1)]})
    folder = run_experiment(
        "corpora",
        inputs,
        tmp_path / "out",
        seeds=(0,),
        overrides=SMALL,
        stage2_steps=2,
        corpora={"all": inputs.instruct, "a|b": few},
        answer_after="Answer:",
        evaluate=scores_of,
    )
    results = json.loads((folder / "results.json").read_text())
    runs = results["runs"]
    assert [(one["variation"], one["steps"]) for one in runs] == [("all", 2), ("a|b", 2)]
    assert results["corpora"] == {"all": str(inputs.instruct), "a|b": str(few)}
    assert [one["scores"]["ASR"]["value"] for one in runs] == [0.3, 0.1]  # the tasks that each has seen
    lines = table(results).splitlines()
    assert lines[5].startswith("| a\\|b | 1 |") and lines[7].endswith("holds `Answer:`, what follows it is scored.")
    assert "| skill (audio) | skill (text_audio) |" in lines[2] and lines[4].startswith("| all | 1 |")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("corpora", [], "the experiment corpora compares two corpora or more"),
        ("corpora", ["--corpus", "one=CORPUS"], "the experiment corpora compares two corpora or more"),
        (
            "gate",
            ["--corpus", "one=CORPUS", "--corpus", "two=CORPUS"],
            "the experiment gate compares no corpora; omit --corpus",
        ),
        ("corpora", ["--corpus", "one=CORPUS", "--corpus", "one=CORPUS"], "two corpora have the same name"),
        ("corpora", ["--corpus", "one=CORPUS", "--corpus", "two=nowhere"], "no corpus at nowhere; build it first"),
        ("corpora", ["--corpus", "one=CORPUS", "--corpus", "two=."], ". is no instruction corpus ("),
        ("corpora", ["--corpus", "CORPUS"], "is not NAME=FOLDER"),
    ],
)
def test_corpora_that_cannot_be_compared_are_refused(inputs, tmp_path, capsys, monkeypatch, name, options, message):
    monkeypatch.chdir(tmp_path)  # an empty folder to name: the repository has tens of thousands of files
    options = [option.replace("CORPUS", str(inputs.instruct)) for option in options]
    command = ["experiment", name, "--quickstart", str(inputs.folder), "--out", str(tmp_path / "out"), *options]
    try:
        assert main(command) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def model(inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny_recipe(inputs.folder / "backbones", "model", optimizer__max_steps=1, data__path=str(inputs.align))
    recipe["out"] = str(tmp_path_factory.mktemp("scored") / "model")
    return Path(train(recipe).out)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [corpus_row(number, "ASR", "text_audio", "one two three") for number in range(2)]
    return write_corpus(tmp_path_factory.mktemp("evaluation") / "llaso-eval", rows)


def test_a_model_is_scored_in_a_process_of_its_own_and_once(evaluation, model, tmp_path):
    scores = evaluate_model(model, evaluation, tmp_path / "evaluation", rows=0)
    file = tmp_path / "evaluation" / "scores.json"
    assert scores == json.loads(file.read_text()) and scores["tasks"]["ASR"]["primary"]["metric"] == "wer"
    assert json.loads((tmp_path / "evaluation" / "predictions" / "generation.json").read_text())["rows"] == 2
    before = file.stat().st_mtime_ns
    assert evaluate_model(model, evaluation, tmp_path / "evaluation", rows=0) == scores
    assert file.stat().st_mtime_ns == before
    with pytest.raises(RuntimeError, match=r"could not be scored on .*: Traceback(.|\n)*nowhere"):
        evaluate_model(tmp_path / "nowhere", evaluation, tmp_path / "failed", rows=0)
    assert not (tmp_path / "failed" / "scores.json").exists()


def test_scoring_goes_on_holding_the_folder_when_its_experiment_is_killed(evaluation, model, tmp_path):
    out, marker = tmp_path / "evaluation", tmp_path / "evaluation" / "predictions"
    spawn = multiprocessing.get_context("spawn")
    parent = spawn.Process(target=evaluate_model, args=(model, evaluation, out, 0))
    parent.start()
    while not (children := psutil.Process(parent.pid).children()) or not marker.exists():
        time.sleep(0.01)
        assert parent.is_alive()
    child = next(one for one in children if "resource_tracker" not in " ".join(one.cmdline()))
    child.suspend()
    parent.kill()
    parent.join()
    with pytest.raises(FolderBusy):
        evaluate_model(model, evaluation, out, rows=0)
    child.resume()
    child.wait()
    assert evaluate_model(model, evaluation, out, rows=0)["tasks"]["ASR"]
