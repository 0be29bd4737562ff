"""Decides whether a run may resume an earlier one in its folder: the recipe and the order of rows must agree.

`recipe.yaml` holds the recipe. `plan.json` holds the micro-batches of a step, the processes, how they split the
weights, and a digest of the rows. The number of processes may change as long as a step stays the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llaso.progress import Report
from llaso_common.atomic_write import write_atomically

from ..recipe.recipe import BatchChoice, Recipe, load_recipe
from ..recipe.yaml_loader import flatten, unknown_setting
from ..rows.corpora import Corpus
from .history import HISTORY, RESULT, History, TrainResult
from .optimizer_groups import has_own_rates

RECIPE, PLAN = "recipe.yaml", "plan.json"
FREELY_CHANGEABLE = (
    "watch.",
    "compute.workers",
    "compute.encoder_cache",
    "compute.memory_gb",  # read only until something has been measured
    "data.rows",
    "data.seconds_per_row",
    "data.text_tokens_per_row",
    "out",
    "batch.accumulation",  # with the number of processes: see `StepPlan`
)
"""Beginnings of the names of settings that may differ between a killed run and the one that resumes it."""
CHANGEABLE_IF_NAMED = (
    "optimizer.learning_rate",
    "optimizer.encoder.learning_rate",
    "optimizer.projector.learning_rate",
    "optimizer.llm.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_ratio",
    "optimizer.max_steps",
    "optimizer.epochs",
)
"""Settings that a resumed run may change if `--change` names them."""
FREE_BUT_DECISIVE = ("batch.accumulation", "watch.final_rows")
"""Those of `FREELY_CHANGEABLE` that change a run's result: the rows of a step, and of the last word error rate."""
ORDER = 1
"""The way in which rows are ordered; 0 is that of runs whose plan does not name one."""


@dataclass(frozen=True)
class StepPlan:
    """What decides, beyond the recipe, which rows share a step, and which processes can read the checkpoints.

    Attributes:
        micro_batches: number in a step, all processes together.
        processes: number of training processes.
        sharding: of the weights: `none`, `fsdp` or `deepspeed`.
        rows: of the corpus.
        data: a digest of what the order of rows depends on.
        order: the way in which rows are ordered.
        per_device: rows of a micro-batch, at most.
        max_tokens: rows x longest row of a micro-batch, at most; 0 means no such limit.
    """

    micro_batches: int
    processes: int
    sharding: str
    rows: int = 0
    data: str = ""
    order: int = 0
    per_device: int = 0
    max_tokens: int = 0


def step_plan(batch: BatchChoice, world: int) -> StepPlan:
    """Return the plan of this launch, without the digest of its data.

    Args:
        batch: in numbers; of one that is still to be measured, the micro-batches of a step are 0.
        world: processes.
    """
    used = [kind for kind in ("fsdp", "deepspeed") if os.environ.get(f"ACCELERATE_USE_{kind.upper()}") == "true"]
    micro_batches = 0 if batch.per_device == "auto" else batch.accumulation * world
    sharding = used[0] if used else "none"
    at_once = batch.at_once if micro_batches else 0
    return StepPlan(micro_batches, world, sharding, order=ORDER, per_device=at_once, max_tokens=batch.max_tokens)


def batch_in_numbers(out: Path, batch: BatchChoice, world: int) -> BatchChoice:
    """Return a recipe's batches for so many processes, as the run in a folder measured them if it did.

    Returns:
        Batches whose accumulation is known; `auto` stays if nothing has been measured yet.

    Raises:
        ValueError: a step cannot be divided into equal shares.
    """
    earlier = _read(out)
    if batch.per_device == "auto" and earlier is not None and earlier.per_device:
        tokens = earlier.micro_batches * earlier.max_tokens if batch.tokens else 0
        batch = replace(batch, per_device=earlier.per_device, max_tokens=earlier.max_tokens, tokens=tokens)
        if earlier.micro_batches % world:
            raise ValueError(
                f"{out}: batch.per_device=auto measured steps of {earlier.micro_batches} micro-batches on "
                f"{earlier.processes} processes, which {world} cannot share equally; launch as many as before, or a "
                f"number that divides {earlier.micro_batches}"
            )
    return batch.on(world)


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, by dotted name, that decide a run's result: runs that share them are made once.

    Args:
        settings: of a whole recipe, as `Recipe.to_dict` and `recipe.yaml` have them.
    """
    return {
        name: value
        for name, value in flatten(settings).items()
        if name in FREE_BUT_DECISIVE or not name.startswith(FREELY_CHANGEABLE)
    }


def changed_settings(out: Path, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Compare a recipe with that of the run in a folder; returns earlier and present value of what differs.

    A setting that did not exist when the run began had its default.
    """
    if not (out / RECIPE).exists():
        return {}
    earlier = flatten(recipe_of(out).to_dict())
    now = flatten(recipe.to_dict())
    return {name: (earlier[name], now[name]) for name in sorted(now) if earlier[name] != now[name]}


def recipe_of(out: Path) -> Recipe:
    """Return the recipe that a folder's run began with, or was changed to.

    Raises:
        ValueError: the file is damaged, or was written by a version of llaso that had other settings.
    """
    try:
        return load_recipe(out / RECIPE)
    except ValueError as error:
        raise ValueError(
            f"{out / RECIPE} cannot be read by this version of llaso; name another folder, or delete this one: {error}"
        ) from error


def refuse_another_run(
    out: Path, recipe: Recipe, plan: StepPlan, finished: bool, change: Collection[str] = ()
) -> None:
    """Compare a recipe, and how its steps are made, with those of the run that a folder holds, if it holds one.

    Args:
        out: the folder.
        recipe: of this launch.
        plan: of this launch; its digest of the data is not read.
        finished: whether the run in the folder is; the number of processes does not matter then.
        change: settings among `CHANGEABLE_IF_NAMED` that an unfinished run may change.

    Raises:
        ValueError: they differ in what may not change, which the message names.
    """
    differing = changed_settings(out, recipe)
    _refuse_useless_changes(out, recipe, [name for name in change if name in differing], change)
    allowed = () if finished else tuple(change)
    changed = {
        name: f"{name} was {was!r}, is {now!r}"
        for name, (was, now) in differing.items()
        if not name.startswith(FREELY_CHANGEABLE) and name not in allowed
    }
    if changed:
        remedy = "name another folder with --set out=…, set the earlier values, or delete this one"
        if not finished and changed.keys() <= set(CHANGEABLE_IF_NAMED):
            remedy += f"; to go on with the new values, add --change {' '.join(changed)}"
        what = "a finished run" if finished else "a run"
        raise ValueError(f"{out} holds {what} of another recipe ({'; '.join(changed.values())}); {remedy}")
    if not finished or "batch.accumulation" in differing:
        _refuse_another_step(out, plan)


def _refuse_useless_changes(out: Path, recipe: Recipe, differing: Sequence[str], change: Collection[str]) -> None:
    """Check the settings that `--change` names.

    Args:
        out: folder of the run.
        recipe: of this launch.
        differing: those of `change` whose value is another than before.
        change: settings that are to change.

    Raises:
        ValueError: one does not exist, may not change, or would change nothing.
    """
    settings = flatten(recipe.to_dict())
    for name in change:
        if name not in settings:
            raise ValueError(f"--change: {unknown_setting(name, settings)}")
    if fixed := [name for name in change if name not in CHANGEABLE_IF_NAMED]:
        raise ValueError(
            f"{', '.join(fixed)} cannot be changed in a run; only {', '.join(CHANGEABLE_IF_NAMED)} can be"
        )
    own_rates = [f"optimizer.{part}.learning_rate" for part in recipe.train]
    if "optimizer.learning_rate" in change and all(settings[name] is not None for name in own_rates):
        raise ValueError(
            "--change optimizer.learning_rate would change nothing: each part that learns has a rate of its own; "
            f"change {' or '.join(own_rates)}"
        )
    of_parts = [name for name in differing if name.count(".") > 1]
    if of_parts and not has_own_rates(recipe_of(out).optimizer):
        raise ValueError(
            f"--change {of_parts[0]}: the parts of this run had no settings of their own when it began, so that its "
            "optimizer's state is not kept by part; change optimizer.learning_rate"
        )


def _refuse_another_step(out: Path, plan: StepPlan) -> None:
    earlier = _read(out)
    if earlier is None:
        return
    if earlier.micro_batches != plan.micro_batches:
        whole, rest = divmod(earlier.micro_batches, plan.processes)
        remedy = f"set batch.accumulation={whole}" if not rest else "take a number of processes that divides it"
        raise ValueError(
            f"{out}: a step of this run is {earlier.micro_batches} micro-batches, but batch.accumulation x processes "
            f"is {plan.micro_batches // plan.processes} x {plan.processes} now; {remedy}"
        )
    if earlier.sharding != plan.sharding:
        raise ValueError(
            f"{out}: this run's weights were split by {earlier.sharding}, now by {plan.sharding}, which cannot read "
            "its checkpoints; launch it as before"
        )
    if plan.sharding == "deepspeed" and earlier.processes != plan.processes:
        raise ValueError(
            f"{out}: DeepSpeed's checkpoints of {earlier.processes} processes cannot be read by {plan.processes}; "
            f"launch {earlier.processes} processes"
        )


def refuse_other_rows(out: Path, plan: StepPlan) -> None:
    """Compare the rows with those that the run in a folder began with, if it holds one.

    Raises:
        ValueError: the rows differ.
    """
    earlier = _read(out)
    if earlier is not None and earlier.order != plan.order:
        raise ValueError(
            f"{out}: this run began with another version of llaso, which ordered the rows otherwise; finish it with "
            "that version, or name another folder with --set out=…"
        )
    if earlier is not None and earlier.data != plan.data:
        count = f" ({earlier.rows:,} then, {plan.rows:,} now)" if earlier.rows != plan.rows else ""
        raise ValueError(
            f"{out}: the corpus has changed since this run began{count}; put it back as it was, or name another "
            "folder with --set out=…"
        )


def begin_run(
    out: Path, recipe: Recipe, plan: StepPlan, corpus: Corpus, start_step: int, main_process: bool, report: Report
) -> History:
    """Open the history of a run that begins or is resumed; the main process records recipe, plan and changed settings.

    Raises:
        ValueError: the run is resumed, and the corpus has changed since it began.
    """
    if main_process:
        plan = replace(plan, rows=corpus.rows, data=corpus.digest())
        if start_step:
            refuse_other_rows(out, plan)
    history = History(out / HISTORY, start_step, main_process, recent=max(1000, 6 * recipe.watch.log_every))
    if main_process:
        changes = {
            name: values for name, values in changed_settings(out, recipe).items() if name in CHANGEABLE_IF_NAMED
        }
        if changes:
            history.add({"kind": "change", "step": start_step, "settings": changes})
        for name, (was, now) in changes.items():
            report(f"from step {start_step:,} on, {name} is {now}, not {was}")
        record_run(out, recipe, plan)
    return history


def record_run(out: Path, recipe: Recipe, plan: StepPlan) -> None:
    """Write the recipe and the plan that a resumed run must share."""
    write_atomically(out / RECIPE, yaml.safe_dump(recipe.to_dict(), sort_keys=False), durable=True)
    write_atomically(out / PLAN, json.dumps(asdict(plan)) + "\n", durable=True)


def finished_result(out: Path, recipe: Recipe, plan: StepPlan, change: Collection[str]) -> TrainResult | None:
    """Return the result in `out` if a run of this recipe has finished there.

    Raises:
        ValueError: `out` holds a run, finished or not, of another recipe.
    """
    finished = (out / RESULT).exists()
    refuse_another_run(out, recipe, plan, finished, change)
    if not finished:
        return None
    result = TrainResult(**json.loads((out / RESULT).read_text(encoding="utf-8")))
    return replace(result, out=recipe.out)  # the folder may have moved since


def _read(out: Path) -> StepPlan | None:
    if not (out / PLAN).exists():
        return None
    return StepPlan(**json.loads((out / PLAN).read_text(encoding="utf-8")))
