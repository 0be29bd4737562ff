"""A killed run, resumed, is the undisturbed run: losses, rows and weights bit for bit, with real kills."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.paths import ROOT
from support.tiny_training import curve, row, save_backbones, save_corpus, tiny_recipe, weights_digest

from llaso.training.recipe.recipe import Recipe, load_recipe
from llaso.training.recipe.yaml_loader import names_and_ranges
from llaso.training.rows.corpora import open_corpus
from llaso.training.run.checkpoints import (
    FROZEN,
    MARKER,
    WEIGHTS,
    complete_checkpoints,
    mark_complete,
    remove_broken_checkpoints,
)
from llaso.training.run.history import History, read_history
from llaso.training.run.resume import (
    FREE_BUT_DECISIVE,
    FREELY_CHANGEABLE,
    StepPlan,
    decisive,
    record_run,
    refuse_another_run,
)
from llaso.training.run.train import train
from llaso_common.folder_lock import FolderBusy

STEPS = 14
KILL_AT = 5  # checkpoints are written every 3 steps
WORKER = str(ROOT / "tests/support/rank_worker.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    save_backbones(folder)
    rows = [row(i) for i in range(20)] + [row(i, task="IP") for i in range(10)]
    save_corpus(folder / "corpus", {"train": rows})
    broken = row(40) | {"audio": [{"bytes": b"no audio at all", "path": "40.flac"}]}
    save_corpus(folder / "broken", {"train": [*rows[:11], broken, *rows[11:]]})
    save_corpus(folder / "text", {"train": [row(i, task="AQA", clips=0) for i in range(12)]})
    return folder


STAGE_1: dict[str, Any] = {"compute__workers": 1, "compute__encoder_cache_gb": 0.01}
STAGE_2: dict[str, Any] = {
    "train": ["projector", "llm"],
    "data__path": "broken",
    "data__bad_rows": "skip",
    "data__text_path": "text",
    "data__text_share": 0.2,
    "lora": {"rank": 2, "dropout": 0.2},  # dropout draws random numbers, which must go on where they stopped
    "compute__precision": "bf16",
    "compute__frozen_weights": "bf16",
}


def recipe_for(root: Path, out: str, changes: dict[str, Any]) -> dict[str, Any]:
    paths = {name: str(root / changes[name]) for name in ("data__path", "data__text_path") if name in changes}
    fixed = {"optimizer__max_steps": STEPS, "watch__save_every": 3, "batch__per_device": 2}
    return tiny_recipe(root, out, **fixed, **(changes | paths))


def wait_until_frozen(process: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), process.stdout.read()


@contextlib.contextmanager
def frozen_run(recipe: dict[str, Any], freeze: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own that stands still where `rank_worker.py` is told to; killed at the end."""
    file = Path(recipe["out"] + ".yaml")
    file.write_text(yaml.safe_dump(recipe))
    with subprocess.Popen(
        [sys.executable, WORKER, str(file)],
        env=os.environ | {"FREEZE": freeze},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_until_frozen(process)
        yield process
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "point"),
    [
        pytest.param(STAGE_1, f"step:0:{KILL_AT}", id="stage1-workers-cache-in-a-step"),
        pytest.param(STAGE_2, "save:0:2", id="stage2-lora-bf16-in-a-checkpoint"),
        pytest.param(STAGE_2 | {"batch__packing": True}, f"step:0:{KILL_AT}", id="stage2-packed"),
        pytest.param({"train": ["projector", "llm"]}, "write:0:2", id="stage2-while-a-thread-writes"),
    ],
)
def test_killed_and_resumed_equals_undisturbed(root, tmp_path, changes, point):
    undisturbed = recipe_for(root, "undisturbed-" + tmp_path.name, changes)
    train(undisturbed)
    killed = recipe_for(root, "killed-" + tmp_path.name, changes)
    out = Path(killed["out"])
    with frozen_run(killed, point) as process:
        assert [step for step, _ in complete_checkpoints(out)] == [3]
        assert (out / "checkpoint-6").exists() == (not point.startswith("step"))
        with pytest.raises(FolderBusy, match=f"in use by process {process.pid} .*; wait for it, stop it, or name"):
            train(killed)
    lines: list[str] = []
    train(killed, report=lines.append)
    assert any("going on from step 3" in line for line in lines)
    assert curve(out) == curve(Path(undisturbed["out"])) and len(curve(out)) == STEPS
    assert weights_digest(out) == weights_digest(Path(undisturbed["out"]))


def test_sigterm_saves_first_and_the_same_call_goes_on(root, tmp_path):
    recipe = recipe_for(root, "term", {})
    before = signal.getsignal(signal.SIGTERM)

    def ask_to_stop(line: str) -> None:
        if line.startswith(f"step {4:>6}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        train(recipe, report=ask_to_stop)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    out = Path(recipe["out"])
    assert complete_checkpoints(out)[-1][0] == 5  # the step under way; not one that save_every names
    assert train(recipe, {"watch.log_every": 2}).steps == STEPS
    assert [step for step, *_ in curve(out)] == list(range(1, STEPS + 1))


def test_more_signals_while_the_last_checkpoint_is_written_do_not_break_it(root):
    recipe = recipe_for(root, "signals", {"compute__workers": 1})
    out = Path(recipe["out"])
    with frozen_run(recipe, "step:0:4,save:0:2") as process:
        for process_id in (process.pid, *(child.pid for child in psutil.Process(process.pid).children())):
            os.kill(process_id, signal.SIGINT)  # as Ctrl-C does, to the reading process as well
            os.kill(process_id, signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        wait_until_frozen(process)
        assert not (out / "checkpoint-5" / MARKER).exists()  # of the step under way as the first signals came
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        output = process.communicate()[0]
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM), output
    assert output.count("stopped after step 5, which is saved; the same command goes on from there") == 1
    assert [step for step, _ in complete_checkpoints(out)] == [3, 5]
    assert (out / "loss.png").stat().st_size > 5000


@pytest.mark.parametrize("last", [False, True])
def test_an_evaluation_is_left_when_asked_to_stop_and_made_up_for(root, tmp_path, last):
    corpus = tmp_path / "corpus"
    save_corpus(corpus, {"train": [row(i) for i in range(8)], "validation": [row(i, seed=1) for i in range(17)]})
    changes = {"data__path": str(corpus), "watch__evaluate_every": 2, "watch__evaluate_rows": 17}
    recipe = tiny_recipe(root, f"left-{last}", optimizer__max_steps=4, watch__final_rows=17, **changes)
    out = Path(recipe["out"])
    with frozen_run(recipe, f"hear:0:{3 if last else 1}") as process:  # two batches each time
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        output = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    step = 4 if last else 2
    assert f"stopped after step {step}, which is saved" in output
    train(recipe)
    kinds = [(record["kind"], record["step"]) for record in read_history(out / "history.jsonl")]
    assert kinds == [("step", 1), ("step", 2), ("held_out", 2), ("step", 3), ("step", 4), ("held_out", 4)]


def test_a_run_killed_before_its_model_is_written_goes_on_there(root):
    recipe = recipe_for(root, "written", {})
    with frozen_run(recipe, "train:0:1"):
        pass
    before = curve(Path(recipe["out"]))
    assert len(before) == STEPS and train(recipe).steps == STEPS
    assert curve(Path(recipe["out"])) == before
    assert (Path(recipe["out"]) / "model.safetensors").exists()


@pytest.fixture(scope="module")
def checkpoints(root) -> Path:
    """A run killed at step 7, with checkpoints of steps 3 and 6, neither of which is still being written."""
    recipe = recipe_for(root, "checkpoints", {"watch__save_beside": False})
    with frozen_run(recipe, "step:0:7"):
        pass
    return Path(recipe["out"])


def test_a_checkpoint_that_lost_part_of_any_file_gives_way_to_the_one_before(checkpoints, tmp_path, caplog):
    assert [step for step, _ in complete_checkpoints(checkpoints)] == [3, 6]
    names = sorted(path.name for path in (checkpoints / "checkpoint-6").iterdir())
    assert {MARKER, FROZEN, WEIGHTS, "optimizer.pt", "rng_state.pth", "scheduler.pt"} <= set(names)
    for name in names:
        out = tmp_path / name
        shutil.copytree(checkpoints, out)
        file = out / "checkpoint-6" / name
        os.truncate(file, file.stat().st_size // 2)
        assert [step for step, _ in complete_checkpoints(out)] == [3], name
        remove_broken_checkpoints(out)
        assert f"checkpoint-6: {'its ' if name == MARKER else ''}{name} " in caplog.text
        assert sorted(folder.name for folder in out.glob("*checkpoint*")) == ["checkpoint-3", "damaged-checkpoint-6"]
        caplog.clear()
    out = tmp_path / "header"
    shutil.copytree(checkpoints, out)
    weights = out / "checkpoint-6" / WEIGHTS
    weights.write_bytes(b"\xff" * 16 + weights.read_bytes()[16:])
    assert [step for step, _ in complete_checkpoints(out)] == [3]


def test_the_run_goes_on_from_the_checkpoint_before_a_damaged_one(root, checkpoints, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(checkpoints, out)
    os.truncate(out / "checkpoint-6" / "optimizer.pt", 100)
    lines: list[str] = []
    train(recipe_for(root, "checkpoints", {}) | {"out": str(out)}, report=lines.append)
    assert any("going on from step 3" in line for line in lines)
    assert len(curve(out)) == STEPS and curve(out)[:6] == curve(checkpoints)[:6]
    assert [folder.name for folder in out.glob("*checkpoint*")] == ["damaged-checkpoint-6"]


def test_settings_that_may_not_change_on_resume_are_refused_by_name(root, checkpoints, monkeypatch):
    recipe = recipe_for(root, "checkpoints", {})
    with pytest.raises(ValueError, match=r"another recipe \(seed was 7, is 8\)"):
        train(recipe, ["seed=8"])
    with pytest.raises(ValueError, match=r"2 micro-batches, but .* is 3 x 1 now; set batch.accumulation=2"):
        train(recipe, ["batch.accumulation=3"])
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"is 2 x 4 now; take a number of processes that divides it"):
        train(recipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="weights were split by none, now by fsdp, which cannot read"):
        train(recipe, ["batch.accumulation=1"])


def test_every_setting_that_may_change_is_one_that_recipes_have(root):
    valid = set(dict(names_and_ranges(Recipe)))
    names = {*valid, *(f"{name.partition('.')[0]}." for name in valid)}
    assert names >= {*FREELY_CHANGEABLE, *FREE_BUT_DECISIVE}
    settings = load_recipe(recipe_for(root, "unused", {})).to_dict()
    assert "watch.final_rows" in decisive(settings) and "watch.save_every" not in decisive(settings)
    assert {name for name in valid if name.startswith("data.") and name not in decisive(settings)} == {
        "data.rows",
        "data.seconds_per_row",
        "data.text_tokens_per_row",
    }


def test_deepspeed_goes_on_with_as_many_processes_only(root, tmp_path):
    recipe = load_recipe(recipe_for(root, "unused", {}))
    record_run(tmp_path, recipe, StepPlan(2, 2, "deepspeed"))
    refuse_another_run(tmp_path, recipe, StepPlan(2, 2, "deepspeed"), finished=False)
    refuse_another_run(tmp_path, recipe, StepPlan(1, 1, "none"), finished=True)  # only to read its result
    with pytest.raises(ValueError, match="checkpoints of 2 processes cannot be read by 1; launch 2 processes"):
        refuse_another_run(tmp_path, recipe, StepPlan(2, 1, "deepspeed"), finished=False)


def test_a_corpus_is_known_by_its_rows(root, tmp_path):
    choice = load_recipe(recipe_for(root, "unused", {"data__path": str(tmp_path / "corpus")})).data
    digests = []
    for rows in ([row(0), row(1)], [row(0), row(1)], [row(0), row(2)], [row(0), row(1), row(2)]):
        shutil.rmtree(tmp_path / "corpus", ignore_errors=True)
        save_corpus(tmp_path / "corpus", {"train": rows})
        digests.append(open_corpus(choice).digest())
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_rows_that_changed_are_noticed(root, tmp_path):
    rows = [row(i) for i in range(12)]
    save_corpus(tmp_path / "corpus", {"train": rows})
    recipe = recipe_for(root, "rows", {"data__path": str(tmp_path / "corpus")})
    with frozen_run(recipe, "step:0:4"):
        pass
    shutil.rmtree(tmp_path / "corpus")
    save_corpus(tmp_path / "corpus", {"train": rows[1:]})
    with pytest.raises(ValueError, match=r"the corpus has changed since this run began \(12 then, 11 now\)"):
        train(recipe)


def test_a_run_whose_rows_were_ordered_otherwise_is_not_resumed(root, checkpoints, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(checkpoints, out)
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({name: value for name, value in plan.items() if name != "order"}))
    with pytest.raises(ValueError, match="another version of llaso, which ordered the rows otherwise; finish it with"):
        train(recipe_for(root, "checkpoints", {}) | {"out": str(out)})


def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on_once_there_is_room(root):
    recipe = recipe_for(root, "full", {})
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(line: str) -> None:
        if line.startswith(f"step {5:>6}/"):  # from here on the system refuses to write files of any size worth naming
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))

    try:
        with pytest.raises(OSError, match="checkpoint-6 could not be written.*Earlier checkpoints are kept"):
            train(recipe, report=fill_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    out = Path(recipe["out"])
    assert [step for step, _ in complete_checkpoints(out)] == [3]
    assert not (out / "checkpoint-6").exists()
    lines: list[str] = []
    assert train(recipe, report=lines.append).steps == STEPS
    assert any("going on from step 3" in line for line in lines)


def test_a_lost_reading_process_is_told_plainly_and_nothing_is_lost(root):
    recipe = recipe_for(root, "lost", {"compute__workers": 1})

    def lose_worker(line: str) -> None:
        if line.startswith(f"step {5:>6}/"):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(OSError, match="a reading process died"):
        train(recipe, report=lose_worker)
    assert complete_checkpoints(Path(recipe["out"]))[-1][0] == 3


def test_only_whole_checkpoints_count(tmp_path):
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step < 8:
            mark_complete(tmp_path / f"checkpoint-{step}", step, keep=2)
    assert [step for step, _ in complete_checkpoints(tmp_path)] == [4, 6]
    assert json.loads((tmp_path / "checkpoint-6" / MARKER).read_text()) == {"step": 6, "bytes": {}}
    remove_broken_checkpoints(tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6"]


def test_a_history_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "history.jsonl"
    history = History(path)
    for step in (1, 2, 3):
        history.add({"kind": "step", "step": step, "loss": 1.0 / step, "tasks": {"ASR": [2.0 * step, 4]}})
    with path.open("a") as file:
        file.write('{"kind": "st')
    again = History(path, start_step=2)
    assert [record["step"] for record in again.recent] == [1, 2] == [r["step"] for r in read_history(path)]
    assert again.task_losses(2) == {"ASR": 6.0 / 8}
    with pytest.raises(ValueError, match="Out of range float"):
        again.add({"kind": "step", "step": 3, "loss": float("nan")})
