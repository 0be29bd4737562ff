"""`llaso quickstart`, as the command line shows it."""

from __future__ import annotations

import argparse

from .option_types import seed, some_text


def add_parser(commands) -> None:
    """Add `llaso quickstart`."""
    quickstart = commands.add_parser(
        "quickstart",
        help="corpora, both training stages, evaluation and report, at laptop scale",
        description="Build small corpora, train both stages, evaluate and write a report, without GPU or Hub. The "
        "same command resumes a stopped run and does nothing if all is done. Exit code 1: Stage 1 missed its gate.",
    )
    quickstart.add_argument(
        "--out", type=some_text, default="runs/quickstart", metavar="DIR", help="folder for everything that it makes"
    )
    quickstart.add_argument(
        "--speech",
        type=some_text,
        metavar="DIR_OR_YAML",
        help="recordings as well: a sources file, a manifest, a folder or a data set; or spoken digits in "
        "recordings/*.wav",
    )
    quickstart.add_argument(
        "--encoder",
        type=some_text,
        metavar="ID",
        help="a Whisper, in place of the stand-in trained here; the recipes are then small_stage1 and small_stage2",
    )
    quickstart.add_argument(
        "--llm", type=some_text, metavar="ID", help="a causal language model, in place of the stand-in"
    )
    quickstart.add_argument("--seed", type=seed, default=0, help="random seed")
    quickstart.add_argument("--ignore-gate", action="store_true", help="go on to Stage 2 whatever Stage 1 came to")
    quickstart.add_argument(
        "--size",
        choices=("standard", "minimum"),
        default="standard",
        help="minimum: smallest run, to try every stage; its model hardly answers, and its gate stops nothing",
    )
    quickstart.set_defaults(run=run_quickstart, goes_on=True)


def run_quickstart(arguments: argparse.Namespace) -> int:
    """Run `llaso quickstart`."""
    from ..quickstart.pipeline import Options, quickstart

    options = Options(
        speech=arguments.speech or "",
        encoder=arguments.encoder or "",
        llm=arguments.llm or "",
        seed=arguments.seed,
        size=arguments.size,
    )
    return quickstart(arguments.out, options, ignore_gate=arguments.ignore_gate)
