"""`llaso real`, as the command line shows it."""

from __future__ import annotations

import argparse

from .option_types import seed, some_text


def add_parser(commands) -> None:
    """Add `llaso real`."""
    real = commands.add_parser(
        "real",
        help="a small model from real pretrained parts, on people's speech: fetch, corpora, both stages, report",
        description="Fetch a Whisper and a chat model (from folders, or from the Hub), build corpora from people's "
        "speech, train both stages with the recipes small_stage1 and small_stage2, evaluate and write a report. The "
        "same command resumes a stopped run and does nothing if all is done. Exit code 1: Stage 1 missed its gate.",
    )
    real.add_argument(
        "--speech",
        type=some_text,
        required=True,
        metavar="PATH",
        help="people's speech with transcripts: a sources file, a folder of manifests by split (train.jsonl, "
        "dev.jsonl), a manifest, a folder or a data set",
    )
    real.add_argument(
        "--encoder", type=some_text, metavar="DIR_OR_ID", help="a Whisper (default: openai/whisper-base)"
    )
    real.add_argument(
        "--llm",
        type=some_text,
        metavar="DIR_OR_ID",
        help="a causal language model (default: HuggingFaceTB/SmolLM2-135M-Instruct)",
    )
    real.add_argument(
        "--out", type=some_text, default="runs/real", metavar="DIR", help="folder for everything it makes"
    )
    real.add_argument("--seed", type=seed, default=0, help="random seed")
    real.add_argument("--ignore-gate", action="store_true", help="go on to Stage 2 whatever Stage 1 came to")
    real.add_argument(
        "--size", choices=("real", "minimum"), default="real", help="minimum: smallest run, to try every stage"
    )
    real.set_defaults(run=run_real, goes_on=True)


def run_real(arguments: argparse.Namespace) -> int:
    """Run `llaso real`."""
    from ..quickstart.pipeline import Options, quickstart
    from ..quickstart.real_parts import ENCODER, LLM

    options = Options(
        speech=arguments.speech,
        encoder=arguments.encoder or ENCODER,
        llm=arguments.llm or LLM,
        seed=arguments.seed,
        size=arguments.size,
        synthetic=False,
    )
    return quickstart(arguments.out, options, ignore_gate=arguments.ignore_gate)
