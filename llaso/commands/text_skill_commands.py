"""`llaso eval text-skill`: what training on speech left of a language model's skill in text."""

from __future__ import annotations

import argparse
import json
from typing import Any

from llaso_common.atomic_write import write_atomically
from llaso_common.output_folder import refuse_existing_file

from .option_types import add_output_file, device


def add_text_skill(steps) -> None:
    """Add `text-skill` to the steps of `llaso eval`."""
    parser = steps.add_parser(
        "text-skill",
        help="ask a hundred short questions without audio: text skill before and after training",
        description="For each question, the model's likeliest of four answers is taken. Name the language model first "
        "and what was trained from it after it: every further model is tested against the first.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="LLaSO checkpoints or causal language models")
    parser.add_argument("--device", type=device, help="cpu, cuda, … (default: the GPU if there is one)")
    add_output_file(parser, "JSON file for every answer and its likelihood")
    parser.set_defaults(run=run_text_skill)


def run_text_skill(arguments: argparse.Namespace) -> None:
    """Run `llaso eval text-skill`."""
    from eval_suite import text_skill
    from modeling_llaso.loading import load_for_text

    refuse_existing_file(arguments.out, arguments.overwrite)
    measured: list[list[text_skill.Chosen]] = []
    records: list[dict[str, Any]] = []
    print("| model | right | 95 % interval | against the first |\n|---|---|---|---|")
    for name in arguments.models:
        chosen = text_skill.measure(*load_for_text(name, arguments.device))
        made = text_skill.record(name, chosen)
        against = ""
        if measured:
            made["against_first"] = test = text_skill.compare(measured[0], chosen)
            against = f"{test['difference']:+.2f} ({test['lost']} lost, {test['gained']} gained, p {test['p']:.3g})"
        measured.append(chosen)
        records.append(made)
        print(f"| {name} | {made['accuracy']:.2f} | {made['low']:.2f} to {made['high']:.2f} | {against} |", flush=True)
    print(f"\n{records[0]['n']} questions with four answers each; chance is {text_skill.CHANCE:.2f}")
    if arguments.out is not None:
        write_atomically(arguments.out, json.dumps(records, indent=1, ensure_ascii=False))
        print(f"wrote {arguments.out}")
