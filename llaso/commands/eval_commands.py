"""The commands of `llaso eval`: parsing and printing.

The commands that ask a judge are in `judge_commands.py`, those that compare in `compare_commands.py`.

Each command is one `_add_<name>` (its options) and one `_<name>` (its run function), listed in `COMMANDS`. Heavy
imports stay inside the run functions, so that help starts at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from llaso_common.atomic_write import write_atomically
from llaso_common.output_folder import refuse_existing, refuse_existing_file

from . import compare_commands, judge_commands
from .eval_output import add_output_folder, write_json
from .option_types import (
    DTYPES,
    add_answer_after,
    add_ctc_weight,
    add_output_file,
    at_least_0,
    at_least_1,
    device,
    path,
    resamples,
    seed,
    some_text,
    temperature,
)
from .text_skill_commands import add_text_skill


def add_parser(commands) -> None:
    """Add these commands to the `llaso` parser."""
    room = commands.add_parser("eval", help="measure, score, compare and show any model on LLaSO-Eval")
    steps = room.add_subparsers(dest="step", metavar="STEP", required=True)
    for add in COMMANDS:
        add(steps)


# Scoring -------------------------------------------------------------------------------------------------------


def _add_score(steps) -> None:
    parser = steps.add_parser("score", help="score a folder of answers under a stated protocol")
    parser.add_argument("path", type=path, help="a folder of released outputs or of our own predictions")
    parser.add_argument("--protocol", choices=("strict", "paper"), default="strict")
    add_output_file(parser, "scores.json to write (default: print it)")
    parser.add_argument("--rows", type=path, help="file for what was read of every row (default: beside --out)")
    parser.add_argument("--system", help="the system's name; the folder's name by default")
    parser.add_argument("--panel", help="panel file, or name of a shipped panel; the current shipped one by default")
    parser.add_argument("--no-intervals", action="store_true", help="skip the bootstrap")
    parser.add_argument("--resamples", type=resamples, default=1000, help="bootstrap resamples (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of the bootstrap (default: %(default)s)")
    add_answer_after(parser)
    parser.set_defaults(run=_score)


def _score(arguments: argparse.Namespace) -> None:
    from eval_suite.score import score_rows
    from eval_suite.scored_rows import rows_path, rows_text, scores_text

    rows = arguments.rows or (arguments.out and rows_path(arguments.out))
    for file in (arguments.out, rows):
        refuse_existing_file(file, arguments.overwrite)
    scored = score_rows(
        arguments.path,
        protocol=arguments.protocol,
        intervals=not arguments.no_intervals,
        resamples=arguments.resamples,
        seed=arguments.seed,
        system=arguments.system,
        panel=arguments.panel,
        answer_after=arguments.answer_after,
    )
    if arguments.out is not None:
        print(f"wrote {scored.write(arguments.out, arguments.rows)}")
        return
    if arguments.rows is not None:
        write_atomically(arguments.rows, rows_text(scored.rows))
    sys.stdout.write(scores_text(scored.content))


def _add_schema(steps) -> None:
    parser = steps.add_parser("schema", help="print the JSON schema of scores.json")
    add_output_file(parser, "file to write (default: print it)")
    parser.set_defaults(run=_schema)


def _schema(arguments: argparse.Namespace) -> None:
    from importlib.resources import files

    import eval_suite

    refuse_existing_file(arguments.out, arguments.overwrite)
    schema = (files(eval_suite) / "data" / "scores.schema.json").read_text(encoding="utf-8")
    write_json(json.loads(schema), arguments.out)


# Measuring and showing -----------------------------------------------------------------------------------------


def _add_generate(steps) -> None:
    parser = steps.add_parser(
        "generate",
        help="ask a model every row of a corpus and write its answers",
        description="Ask a model every row of a corpus. Stop it at any moment and start it again, with any number of "
        "processes (`accelerate launch -m llaso.cli eval generate ...`): it continues where it stopped.",
    )
    _generation_options(parser)
    parser.add_argument("--out", type=path, required=True, help="the predictions folder to write")
    parser.set_defaults(run=_generate, goes_on=True)


def _generation_options(parser: argparse.ArgumentParser) -> None:
    answering = parser.add_mutually_exclusive_group(required=True)
    answering.add_argument("--model", help="checkpoint folder or Hub id; with --endpoint, the model's name there")
    answering.add_argument("--callable", metavar="MODULE:FUNCTION", help="a Python function from requests to texts")
    parser.add_argument("--endpoint", metavar="URL", help="base of an OpenAI-compatible server that takes audio")
    parser.add_argument("--data", type=some_text, required=True, help="corpus folder or Hub id, in the row schema")
    parser.add_argument("--config", help="config of the data, e.g. a modality format; its default one by default")
    parser.add_argument("--split", default="test", help="split of the data (default: %(default)s)")
    parser.add_argument("--limit", type=at_least_1, help="answer only so many rows, spread over the data")
    parser.add_argument("--batch-size", type=at_least_1, default=16, help="rows at once (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=at_least_1, default=256, help="of one answer (default: %(default)s)")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--samples", type=at_least_1, default=1, help="answers to each row (default: %(default)s)")
    parser.add_argument(
        "--wordings",
        type=at_least_1,
        default=1,
        help="instructions to ask each row under (default: %(default)s, its own)",
    )
    add_ctc_weight(parser, "0, so that all models are decoded alike")
    parser.add_argument("--seed", type=seed, default=0, help="of sampling (default: %(default)s)")
    parser.add_argument("--system", help="a system prompt in place of the rows' own")
    parser.add_argument("--revision", help="of the model on the Hub, or a label for what the endpoint serves")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the weights (default: as stored, or float32 on a processor without bf16 instructions)",
    )
    parser.add_argument(
        "--device", type=device, help="e.g. cuda:1; this process's accelerator, else the CPU, by default"
    )
    parser.add_argument("--attn-implementation", help="e.g. sdpa; the model's own choice by default")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that travels with the checkpoint")
    parser.add_argument("--retry-errors", action="store_true", help="ask rows again that failed before")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace answers of another model, settings or data, or what is there"
    )


def _generate(arguments: argparse.Namespace) -> int:
    from eval_suite.generate import generate

    if arguments.callable and arguments.ctc_weight:
        raise ValueError("--ctc-weight is for a model that this command loads, not for a function; leave it out")
    if not arguments.endpoint:
        import modeling_llaso  # noqa: F401 - makes LLaSO known to transformers' Auto classes

    out = generate(
        _function(arguments.callable) if arguments.callable else _model(arguments),
        arguments.data,
        arguments.out,
        split=arguments.split,
        config=arguments.config,
        limit=arguments.limit,
        endpoint=arguments.endpoint,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        samples=arguments.samples,
        wordings=arguments.wordings,
        seed=arguments.seed,
        system=arguments.system,
        revision=arguments.revision,
        dtype=arguments.dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        attn_implementation=arguments.attn_implementation,
        retry_errors=arguments.retry_errors,
        overwrite=arguments.overwrite,
    )
    if int(os.environ.get("RANK", "0")) != 0:
        return 0  # the first process of `accelerate launch` speaks for all
    made = json.loads((out / "generation.json").read_text(encoding="utf-8"))
    print(f"{made['rows']} rows answered, {made['errors']} of them with an error: {out}")
    return 1 if made["errors"] == made["rows"] else 0


def _model(arguments: argparse.Namespace) -> Any:
    """Return the model's name, or what answers with it if its transcripts are to be decoded jointly."""
    if not arguments.ctc_weight:
        return arguments.model
    if arguments.endpoint:
        raise ValueError(
            "--ctc-weight is for a model that this command loads; a server has its own: llaso serve --ctc-weight"
        )
    from ..alignment.joint_answers import JointBackend, JointSettings

    return JointBackend(
        arguments.model,
        JointSettings(
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
            system=arguments.system,
            ctc_weight=arguments.ctc_weight,
        ),
        hub_revision=arguments.revision,
        dtype=arguments.dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        attn_implementation=arguments.attn_implementation,
    )


def _function(name: str):
    """Return the function that MODULE:FUNCTION names."""
    import importlib

    module, _, function = name.partition(":")
    try:
        found = importlib.import_module(module)
        return getattr(found, function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--callable {name}: {error}; give it as MODULE:FUNCTION, importable from here") from None


def _add_run(steps) -> None:
    parser = steps.add_parser("run", help="generate, judge if a judge is named, score and report, in one go")
    _generation_options(parser)
    judge_commands.add_judge_options(parser, required=False)
    parser.add_argument(
        "--out", type=path, required=True, help="holds predictions/, scores.json and report/ at the end"
    )
    parser.set_defaults(run=_run, goes_on=True)


def _run(arguments: argparse.Namespace) -> int:
    from eval_suite.report import write_report
    from eval_suite.score import score_rows

    out = arguments.out
    predictions = out / "predictions"
    if not predictions.exists():
        refuse_existing(out, arguments.overwrite)
    status = _generate(argparse.Namespace(**{**vars(arguments), "out": predictions}))
    if status or int(os.environ.get("RANK", "0")) != 0:
        return status
    if arguments.judge_model:
        from eval_suite.judge import judge

        judge(predictions, arguments.judge_model, endpoint=arguments.judge_endpoint)
    system = Path(arguments.model or arguments.callable).name
    scored = score_rows(predictions, system=system, seed=arguments.seed)
    print(f"wrote {scored.write(out / 'scores.json')}")
    report = write_report([scored], out / "report", data=arguments.data)
    print(f"report: {report / 'index.html'}")
    return 0


def _add_report(steps) -> None:
    parser = steps.add_parser(
        "report",
        help="show one or several systems as a page, Markdown and a radar",
        description="Show scores. Folders of answers (or a folder of such folders) are scored under both protocols "
        "first, so that one command goes from answers to the page.",
    )
    parser.add_argument("scores", type=path, nargs="+", help="scores.json files, or folders of answers")
    add_output_folder(parser)
    parser.add_argument(
        "--no-examples", action="store_true", help="show no single rows, neither on the page nor in evidence/"
    )
    parser.add_argument("--data", help="corpus folder or Hub id for the rows' sound")
    parser.add_argument(
        "--audio-limit",
        type=at_least_0,
        default=1000,
        metavar="MB",
        help="megabytes of recordings to copy into evidence/ (default: %(default)s)",
    )
    parser.add_argument("--title", default="LLaSO-Eval", help="heading of the page (default: %(default)s)")
    parser.add_argument(
        "--resamples", type=resamples, default=1000, help="bootstrap, for folders (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the bootstrap and the examples drawn at random")
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from eval_suite.report import collect, write_report

    refuse_existing(arguments.out, arguments.overwrite)
    out = write_report(
        collect(arguments.scores, resamples=arguments.resamples, seed=arguments.seed),
        arguments.out,
        data=arguments.data,
        examples=not arguments.no_examples,
        title=arguments.title,
        seed=arguments.seed,
        audio_bytes=arguments.audio_limit * 1_000_000,
    )
    print(f"report: {out / 'index.html'}")


def _add_lmms_tasks(steps) -> None:
    parser = steps.add_parser(
        "lmms-tasks",
        help="write a folder of tasks for lmms-eval over a corpus",
        description="Write a folder of tasks, one a task code, for `lmms_eval --include_path FOLDER`. "
        "They are scored there as `llaso eval score` scores them.",
    )
    parser.add_argument("data", type=some_text, help="corpus folder or Hub id, in the row schema")
    parser.add_argument("--config", help="config of the data; its default one by default")
    parser.add_argument("--split", default="test", help="split of the data (default: %(default)s)")
    add_output_folder(parser)
    parser.set_defaults(run=_lmms_tasks)


def _lmms_tasks(arguments: argparse.Namespace) -> None:
    from llaso.doors.lmms_tasks import write_lmms_tasks

    names = write_lmms_tasks(
        arguments.data, arguments.out, config=arguments.config, split=arguments.split, overwrite=arguments.overwrite
    )
    print(f"{arguments.out}: {', '.join(names)}")


def _add_hub_yaml(steps) -> None:
    parser = steps.add_parser("hub-yaml", help="write the eval.yaml that makes a data set a benchmark on the Hub")
    parser.add_argument("data", type=some_text, help="corpus folder or Hub id, in the row schema")
    parser.add_argument("--name", default="LLaSO-Eval", help="of the benchmark (default: %(default)s)")
    parser.add_argument("--config", help="config of the data; its default one by default")
    parser.add_argument("--split", default="test", help="split of the data (default: %(default)s)")
    add_output_file(parser, "file to write; printed by default")
    parser.set_defaults(run=_hub_yaml)


def _hub_yaml(arguments: argparse.Namespace) -> None:
    import yaml

    from llaso.doors.hub_benchmark import hub_benchmark

    refuse_existing_file(arguments.out, arguments.overwrite)
    content = hub_benchmark(arguments.data, arguments.name, config=arguments.config, split=arguments.split)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    if arguments.out is None:
        sys.stdout.write(text)
    else:
        write_atomically(arguments.out, text)
        print(f"wrote {arguments.out}")


COMMANDS = (
    _add_score,
    *compare_commands.COMMANDS,
    _add_schema,
    _add_generate,
    *judge_commands.COMMANDS,
    add_text_skill,
    _add_report,
    _add_run,
    _add_lmms_tasks,
    _add_hub_yaml,
)
