"""The commands `llaso train`, `llaso curves` and `llaso experiment`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .option_types import add_answer_after, at_least_0, named_folder, path, seed


def add_parser(commands) -> None:
    """Add `train`, `curves` and `experiment` to the `llaso` parser."""
    train = commands.add_parser(
        "train",
        help="train as a recipe says, resuming where an earlier run stopped",
        description="Train as a recipe says. The same command resumes a stopped or killed run, and does nothing if it "
        "is finished. Exit code 1: the gate's word error rate was not reached, or the loss diverged.",
    )
    train.add_argument("recipe", help="a YAML file, or one of the package's own: stage1_align, stage2_instruct, …")
    _add_overrides(train, "change settings, e.g. --set batch.per_device=4 seed=1")
    train.add_argument(
        "--change",
        nargs="+",
        default=[],
        metavar="KEY",
        help="resume although these settings have changed since the run began, e.g. optimizer.learning_rate",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="only estimate the run: parameters, tokens, steps, memory, FLOPs; needs no weights or data",
    )
    train.set_defaults(run=run_train, goes_on=True)

    curves = commands.add_parser(
        "curves",
        help="draw the training curves of several runs in one picture",
        description="Draw the losses and held-out word error rates of several runs over their steps.",
    )
    curves.add_argument("runs", type=path, nargs="+", metavar="RUN", help="folders that `llaso train` writes")
    curves.add_argument("--out", type=path, default=Path("curves.png"), help="PNG, SVG or PDF (default: curves.png)")
    curves.add_argument("--overwrite", action="store_true", help="replace the picture if it is there")
    curves.set_defaults(run=run_curves)

    experiment = commands.add_parser(
        "experiment",
        help="test a claim: train and score variations with several seeds, write a table and a plot",
        description="gate: how good Stage 1 must be. encoder: frozen against unfrozen in Stage 2. unfreeze: frozen "
        "against three gentle ways to let it learn. unseen: tasks and formats left out of training. more-tasks: few "
        "against all. hours: all speech, half and a quarter of it. "
        "pieces: CTC on shorter pieces of words. padding: trim against full, and with silence behind each clip. "
        "corpora: those that --corpus names. "
        "What is finished is skipped.",
    )
    experiment.add_argument(
        "name",
        choices=("gate", "encoder", "unfreeze", "unseen", "more-tasks", "hours", "pieces", "padding", "corpora"),
    )
    experiment.add_argument(
        "--quickstart",
        type=path,
        default=Path("runs/quickstart"),
        help="the folder of a quickstart or of `make real`: its corpora, backbones and recipes",
    )
    experiment.add_argument("--out", type=path, default=Path("runs/experiments"), help="models, tables and plots")
    experiment.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2], help="of the runs (default: 0 1 2)")
    experiment.add_argument("--unseen", nargs="+", default=["IP", "SCR"], metavar="TASK", help="tasks to hold out")
    _add_overrides(experiment, "change settings of both recipes")
    experiment.add_argument("--stage1", type=path, metavar="MODEL", help="start every Stage 2 from this one")
    experiment.add_argument("--stage1-only", action="store_true", help="leave Stage 2 out")
    experiment.add_argument(
        "--rows",
        type=at_least_0,
        default=0,
        metavar="N",
        help="rows of the evaluation corpus to answer (default: all)",
    )
    experiment.add_argument(
        "--stage2-steps",
        type=at_least_0,
        default=0,
        metavar="N",
        help="steps of Stage 2 (default: as the recipe says)",
    )
    experiment.add_argument(
        "--corpus",
        type=named_folder,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an instruction corpus to compare, in the experiment corpora; the first is the reference",
    )
    add_answer_after(experiment)
    experiment.add_argument(
        "--page", type=path, help="a Markdown page in which this experiment's table and figure are replaced"
    )
    experiment.set_defaults(run=run_experiment, goes_on=True)


def _add_overrides(parser: argparse.ArgumentParser, help: str) -> None:
    """Add `--set KEY=VALUE …`, which takes several settings and may be repeated."""
    parser.add_argument(
        "--set", dest="overrides", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=help
    )


def run_train(arguments: argparse.Namespace) -> int:
    """Run `llaso train`."""
    if arguments.dry_run:
        from ..training.cost.dry_run import dry_run

        print("\n".join(dry_run(arguments.recipe, arguments.overrides).lines()))
        return 0
    from ..training.run.train import train
    from ..training.run.trainer import TrainingDiverged

    speaks = int(os.environ.get("RANK", 0)) == 0  # every process has the same result
    try:
        result = train(
            arguments.recipe, arguments.overrides, report=lambda line: print(line, flush=True), change=arguments.change
        )
    except TrainingDiverged as error:
        if speaks:
            print(f"llaso: training diverged: {error}", file=sys.stderr)
        return 1
    if speaks and result.wer is not None:
        print(f"held-out word error rate {result.wer:.3f} on {result.wer_words:,} words")
    if result.gate_passed is False:
        if speaks:
            gate = f"the gate is {result.gate_wer:.2f}"
            print(f"{gate}: train longer, or see where transcriptions go wrong, before Stage 2")
        return 1
    return 0


def run_curves(arguments: argparse.Namespace) -> None:
    """Run `llaso curves`."""
    from llaso_common.output_folder import refuse_existing_file

    from ..training.run.curves import draw_runs

    refuse_existing_file(arguments.out, arguments.overwrite)
    draw_runs(arguments.runs, arguments.out)
    print(f"the curves of {len(arguments.runs)} runs: {arguments.out}")


def run_experiment(arguments: argparse.Namespace) -> None:
    """Run `llaso experiment`."""
    from ..quickstart.options import Options
    from ..training.experiments.experiment_report import check_page, put_into_page, write_report
    from ..training.experiments.experiments import Inputs, run_experiment

    if arguments.page is not None:
        check_page(arguments.page, arguments.name)
    corpora = dict(arguments.corpus)
    if len(corpora) < len(arguments.corpus):
        raise ValueError("two corpora have the same name; give each --corpus a name of its own")
    options = Options.of_folder(arguments.quickstart)
    folder = run_experiment(
        arguments.name,
        Inputs(arguments.quickstart, options.encoder, options.llm, options.recipes),
        arguments.out,
        seeds=arguments.seeds,
        unseen=arguments.unseen,
        overrides=arguments.overrides,
        stage1=arguments.stage1,
        stage1_only=arguments.stage1_only,
        stage2_steps=arguments.stage2_steps,
        rows=arguments.rows,
        corpora=corpora,
        answer_after=arguments.answer_after,
        report=lambda line: print(line, flush=True),
    )
    table, _ = write_report(folder) if arguments.page is None else put_into_page(folder, arguments.page)
    print(table.read_text(encoding="utf-8"))
    print(f"table, plot and numbers: {folder}")
