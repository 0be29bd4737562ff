"""The commands of `llaso eval`: parsing and printing.

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

from llaso_common.output_folder import refuse_existing, refuse_existing_file

from .option_types import (
    DTYPES,
    add_output_file,
    at_least_0,
    at_least_1,
    device,
    path,
    resamples,
    seed,
    share,
    some_text,
    temperature,
)


def add_parser(commands) -> None:
    """Add these commands to the `llaso` parser."""
    room = commands.add_parser("eval", help="measure, score, compare and show any model on LLaSO-Eval")
    steps = room.add_subparsers(dest="step", metavar="STEP", required=True)
    for add in COMMANDS:
        add(steps)


# Scoring -------------------------------------------------------------------------------------------------------


def _write_json(content: dict, out: Path | None) -> None:
    """Write `content` to the file `out`, or print it."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"wrote {out}")


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
    )
    if arguments.out is not None:
        print(f"wrote {scored.write(arguments.out, arguments.rows)}")
        return
    if arguments.rows is not None:
        arguments.rows.parent.mkdir(parents=True, exist_ok=True)
        arguments.rows.write_text(rows_text(scored.rows), encoding="utf-8", errors="surrogatepass")
    sys.stdout.write(scores_text(scored.content))


def _add_panel(steps) -> None:
    parser = steps.add_parser("panel", help="build or show the frozen panel of systems behind the panel score")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="measure folders of answers and write a panel file")
    build.add_argument("folders", type=path, nargs="*", help="folders of answers, one a system")
    build.add_argument("--protocol", choices=("strict", "paper"), default="strict")
    build.add_argument("--name", default="released", help="of the panel (default: %(default)s)")
    build.add_argument("--panel-version", type=at_least_1, default=1, help="of the panel (default: %(default)s)")
    build.add_argument("--values", type=path, help="a table of values for systems whose answers are not at hand")
    build.add_argument("--values-about", default="", help="what that table is, for the provenance")
    build.add_argument("--exclude", nargs="+", default=(), help="systems of the table to leave out")
    add_output_file(build, "panel file to write", required=True)
    build.set_defaults(run=_build_panel)
    show = actions.add_parser("show", help="print a panel's worst and best by task, and where its values came from")
    show.add_argument("--protocol", choices=("strict", "paper"), default="strict")
    show.add_argument("--panel", help="panel file, or name of a shipped panel; the current shipped one by default")
    show.set_defaults(run=_show_panel)


def _build_panel(arguments: argparse.Namespace) -> None:
    from eval_suite.panel_build import build_panel

    refuse_existing_file(arguments.out, arguments.overwrite)
    panel = build_panel(
        arguments.folders,
        protocol=arguments.protocol,
        name=arguments.name,
        version=arguments.panel_version,
        table=arguments.values,
        table_about=arguments.values_about,
        exclude=arguments.exclude,
    )
    _write_json(panel, arguments.out)


def _show_panel(arguments: argparse.Namespace) -> None:
    from eval_suite.panel import load_panel

    panel = load_panel(arguments.protocol, arguments.panel)
    print(f"{panel.name} {panel.version}, protocol {panel.protocol}")
    for system, source in panel.provenance["systems"].items():
        missing = f", without {', '.join(source['missing'])}" if source.get("missing") else ""
        print(f"  {system}: {len(panel.values[system])} tasks, from {source['from']}{missing}")
    for task, (worst, best) in panel.bounds().items():
        print(f"{task:>6} {panel.metrics[task]:<12} worst {worst:.4f}  best {best:.4f}")


def _add_compare(steps) -> None:
    parser = steps.add_parser("compare", help="compare systems: paired bootstrap per task and overall, in words")
    parser.add_argument("paths", type=path, nargs="+", help="scores.json files or folders of answers, at least two")
    parser.add_argument(
        "--protocol", choices=("strict", "paper"), help="for folders (default: that of the scores, else strict)"
    )
    parser.add_argument(
        "--resamples", type=resamples, default=10_000, help="bootstrap resamples (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--panel", help="panel file, or name of a shipped panel, for the overall score under paper")
    add_output_file(parser, "also write the numbers as JSON")
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    from eval_suite.compare import compare

    refuse_existing_file(arguments.out, arguments.overwrite)
    found = compare(
        arguments.paths,
        protocol=arguments.protocol,
        resamples=arguments.resamples,
        seed=arguments.seed,
        panel=arguments.panel,
    )
    for pair in found["pairs"]:
        print(f"{pair['a']} and {pair['b']}, {pair['rows']} rows of both")
        for task, result in pair["tasks"].items():
            least = "unknown" if result["detectable"] is None else f"{result['detectable']:.3f}"
            print(f"  {task:<8} {result['verdict']} (p {result['p_holm']:.4f}, detectable {least})")
        if pair["overall"] is not None:
            print(f"  overall  {pair['overall']['verdict']} (p {pair['overall']['p']:.4f})")
        if pair["speed"] is not None:
            print(f"  speed    {pair['speed']['verdict']}")
    if arguments.out is not None:
        _write_json(found, arguments.out)


def _add_power(steps) -> None:
    parser = steps.add_parser(
        "power",
        help="say how many rows tell two systems apart, before a run",
        description="Say by task which difference two systems must have to be told apart with the rows at hand, and "
        "how many rows a given difference needs. Without SYSTEMS, from the released systems on LLaSO-Eval.",
    )
    parser.add_argument("systems", type=path, nargs="*", help="scores.json or folders of answers to the same data")
    parser.add_argument("--protocol", choices=("strict", "paper"), help="for folders (default: strict)")
    parser.add_argument("--difference", type=share, default=0.02, help="to be told apart (default: %(default)s)")
    parser.add_argument("--power", type=share, default=0.8, help="chance to find it (default: %(default)s)")
    parser.add_argument("--level", type=share, default=0.05, help="of the test (default: %(default)s)")
    parser.add_argument("--errors", type=path, help="errors that an earlier --out wrote, in place of SYSTEMS")
    add_output_file(parser, "also write the errors of the differences as JSON")
    parser.set_defaults(run=_power)


def _power(arguments: argparse.Namespace) -> None:
    from eval_suite import power
    from eval_suite.compare import scored_systems

    refuse_existing_file(arguments.out, arguments.overwrite)
    if arguments.systems and arguments.errors:
        raise ValueError("give systems or --errors, not both")
    if len(arguments.systems) == 1:
        raise ValueError("a difference needs two systems; give more, or none for the released ones")
    if arguments.systems:
        systems = scored_systems(arguments.systems, protocol=arguments.protocol)
        errors: dict[str, Any] = {
            "schema": 1,
            "protocol": systems[0].protocol,
            "systems": [system.system for system in systems],
            "tasks": power.task_errors(systems),
        }
    else:
        errors = power.read_errors(arguments.errors) if arguments.errors else power.shipped_errors()
    found = power.forecast(errors["tasks"], arguments.difference, arguments.power, arguments.level)
    print(
        f"two systems, told apart with probability {arguments.power:g} by a two-sided test at {arguments.level:g}; "
        f"variances of {len(errors['systems'])} systems, protocol {errors['protocol']}"
    )
    if not found:
        print("no task has two recordings that two of the systems answered differently")
    heads = ("detectable", "difference", "rows needed", "worst pair")
    print(f"{'task':<9}{'metric':<13}{'rows':>6}" + "".join(f"{head:>13}" for head in heads))
    for task, one in found.items():
        print(
            f"{task:<9}{one['metric']:<13}{one['rows']:>6}{one['detectable']:>13.4f}{one['difference']:>13.4f}"
            f"{one['rows_needed']:>13,}{one['rows_needed_worst_pair']:>13,}"
        )
    if arguments.out is not None:
        _write_json(errors, arguments.out)


def _add_groups(steps) -> None:
    parser = steps.add_parser(
        "groups",
        help="score by group: speakers, recordings, wordings; the largest gaps and whether they are sure",
        description="Score by group of gender, accent, age, language, noise, voice, style or wording, as far as the "
        "data or the reference labels of the same recording say. p is corrected over all pairs of groups and tasks.",
    )
    parser.add_argument("system", type=path, help="a scores.json or a folder of answers")
    parser.add_argument("--by", nargs="+", metavar="ATTRIBUTE", help="attributes (default: all that separate rows)")
    parser.add_argument("--protocol", choices=("strict", "paper"), help="for a folder (default: strict)")
    parser.add_argument(
        "--resamples", type=resamples, default=10_000, help="bootstrap resamples (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the bootstrap (default: %(default)s)")
    add_output_file(parser, "also write the numbers as JSON")
    parser.set_defaults(run=_groups)


def _groups(arguments: argparse.Namespace) -> None:
    from eval_suite.compare import scored_systems
    from eval_suite.groups import group_scores, worst_groups
    from eval_suite.repeats import repeat_scores

    refuse_existing_file(arguments.out, arguments.overwrite)
    (scored,) = scored_systems([arguments.system], protocol=arguments.protocol)
    groups = group_scores(scored, arguments.by, resamples=arguments.resamples, seed=arguments.seed)
    for attribute, one in groups.items():
        print(f"by {attribute} ({one['unknown']} rows without)")
        for task, found in one["tasks"].items():
            gap = found["gap"]
            print(f"  {task} {found['metric']}: gap {_estimate(gap)}, p {_short(gap['p_holm'])}")
            for group, value in found["groups"].items():
                mark = {gap["best"]: ", best", gap["worst"]: ", worst"}.get(group, "")
                shown = "too few rows" if value is None else _estimate(value)
                print(f"    {group:<28} {found['sizes'][group]:>5} rows  {shown}{mark}")
    for sentence in worst_groups(groups):
        print(f"sure: {sentence}")
    repeats = repeat_scores(scored)
    for task, kinds in repeats.items():
        for kind, one in kinds.items():
            if one is not None:
                print(
                    f"{task} {kind}: {one['answers']} answers to {one['questions']} questions, "
                    f"{one['agreement']:.1%} of pairs agree; row scores spread {_short(one['within'])} within a "
                    f"question and {_short(one['between'])} between; {one['metric']} {_short(one['first'])} of first "
                    f"answers, {_short(one['majority'])} of the majority's"
                )
    if arguments.out is not None:
        _write_json({"schema": 1, "system": scored.system, "groups": groups, "repeats": repeats}, arguments.out)


def _add_page_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=path, required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="write to a folder that is not empty")


def _add_board(steps) -> None:
    parser = steps.add_parser(
        "board",
        help="show many systems on one page, ranked with the uncertainty of ranks",
        description="Show many systems on one page, by task and modality format. Folders of answers (or a folder of "
        "such folders) are scored under both protocols first.",
    )
    parser.add_argument("systems", type=path, nargs="+", metavar="DIR", help="scores.json, or folders of answers")
    _add_page_folder(parser)
    parser.add_argument("--title", default="LLaSO-Eval", help="heading of the page (default: %(default)s)")
    parser.add_argument("--resamples", type=resamples, default=1000, help="bootstrap resamples (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of the bootstrap (default: %(default)s)")
    parser.set_defaults(run=_board)


def _board(arguments: argparse.Namespace) -> None:
    from eval_suite.board import write_board
    from eval_suite.report import collect

    refuse_existing(arguments.out, arguments.overwrite)
    options = {"resamples": arguments.resamples, "seed": arguments.seed}
    out = write_board(collect(arguments.systems, **options), arguments.out, title=arguments.title, **options)
    print(f"board: {out / 'index.html'}")


def _add_schema(steps) -> None:
    parser = steps.add_parser("schema", help="print the JSON schema of scores.json")
    add_output_file(parser, "file to write (default: print it)")
    parser.set_defaults(run=_schema)


def _schema(arguments: argparse.Namespace) -> None:
    from importlib.resources import files

    import eval_suite

    refuse_existing_file(arguments.out, arguments.overwrite)
    schema = (files(eval_suite) / "data" / "scores.schema.json").read_text(encoding="utf-8")
    _write_json(json.loads(schema), arguments.out)


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
    parser.set_defaults(run=_generate)


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
    parser.add_argument("--seed", type=seed, default=0, help="of sampling (default: %(default)s)")
    parser.add_argument("--system", help="a system prompt in place of the rows' own")
    parser.add_argument("--revision", help="of the model on the Hub, or a label for what the endpoint serves")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as stored)")
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

    if not arguments.endpoint:
        import modeling_llaso  # noqa: F401 - makes LLaSO known to transformers' Auto classes

    out = generate(
        _function(arguments.callable) if arguments.callable else arguments.model,
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


def _function(name: str):
    """Return the function that MODULE:FUNCTION names."""
    import importlib

    module, _, function = name.partition(":")
    try:
        found = importlib.import_module(module)
        return getattr(found, function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--callable {name}: {error}; give it as MODULE:FUNCTION, importable from here") from None


def _add_judge(steps) -> None:
    parser = steps.add_parser(
        "judge",
        help="have a language model grade open answers from 1 to 5, or say which of two systems answered better",
        description="Have a language model grade answers from 1 to 5. Judgements lie in PREDICTIONS/judge, where "
        "`llaso eval score` finds them. With --against it says of each row which of two systems answered better. "
        "Replies are kept by content as they come: nothing is asked twice.",
    )
    parser.add_argument("predictions", type=path, help="a folder of answers, ours or released ones")
    parser.add_argument("--against", type=path, metavar="DIR", help="another system's answers, judged in pairs")
    _judge_options(parser, required=True)
    parser.add_argument(
        "--out", type=path, help="the folder of the judgements (default: PREDICTIONS/judge, or PREDICTIONS/pairs/NAME)"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to judge (default: those without a metric)")
    parser.add_argument("--limit", type=at_least_1, help="judge only so many answers, picked by a digest")
    parser.add_argument(
        "--agree-with",
        type=path,
        metavar="RATINGS",
        help="judgements or people's ratings to compare with, see agreement",
    )
    parser.add_argument("--prompt", help="prompt file (default: judge_v1, or judge_pairs_v1 for pairs)")
    _asking_options(parser)
    parser.set_defaults(run=_judge)


def _judge_options(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--judge-model", required=required, help="local folder or Hub id; with an endpoint, its name there"
    )
    parser.add_argument("--judge-endpoint", metavar="URL", help="base of an OpenAI-compatible chat server")


def _asking_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-calls", type=at_least_1, help="ask at most so many questions; a later run goes on")
    parser.add_argument("--batch-size", type=at_least_1, default=8, help="questions at once (default: %(default)s)")
    parser.add_argument("--revision", help="of the judge")
    parser.add_argument("--overwrite", action="store_true", help="write to a folder that holds something else")


def _asking(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that every command with a judge passes on."""
    return {
        "endpoint": arguments.judge_endpoint,
        "max_calls": arguments.max_calls,
        "batch_size": arguments.batch_size,
        "revision": arguments.revision,
        "overwrite": arguments.overwrite,
    }


def _print_asking(made: dict[str, Any]) -> None:
    for reason, count in made["reasons"].items():
        print(f"  {count} x {reason}")
    usage = made["usage"]
    uncounted = f", {usage['uncounted']} of them without a count of tokens" if usage["uncounted"] else ""
    print(
        f"{made['asked']} questions asked now; {usage['replies']} replies in all{uncounted}: "
        f"{usage['prompt_tokens']:,} tokens read and {usage['tokens']:,} written"
    )


def _judge(arguments: argparse.Namespace) -> int:
    from eval_suite.judge import judge
    from eval_suite.judge_pairs import judge_pairs

    options = _asking(arguments) | {"out": arguments.out, "tasks": arguments.tasks, "limit": arguments.limit}
    options |= {"prompt": arguments.prompt} if arguments.prompt else {}
    if arguments.against:
        if arguments.agree_with:
            raise ValueError("--agree-with compares scores; it cannot be combined with --against")
        made = judge_pairs(arguments.predictions, arguments.against, arguments.judge_model, **options)
        print(
            f"{made['judged']} of {made['rows']} pairs judged by {made['judge']}, {made['without_asking']} of them "
            f"without asking, {made['missing']} missing"
        )
        _print_asking(made)
        print(f"{made['system']} against {made['against']}: win rate {_estimate(made['win_rate'])}, ties half")
        for task, one in made["tasks"].items():
            print(f"  {task} {_estimate(one)}")
        print(
            f"won {made['won']}, tied {made['tied']}, lost {made['lost']}; in the other order the other answer was "
            f"chosen {made['contradicted']} times; share of choices that fell on the answer shown first "
            f"{_estimate(made['first_preferred'])}, on the longer one {_estimate(made['longer_preferred'])}"
        )
        return 0 if made["judged"] else 1
    made = judge(arguments.predictions, arguments.judge_model, agree_with=arguments.agree_with, **options)
    print(f"{made['judged']} of {made['rows']} answers judged by {made['judge']}, {made['missing']} missing")
    _print_asking(made)
    if "agreement" in made:
        _print_agreement(made["agreement"])
    return 0 if made["judged"] else 1


def _print_agreement(found: dict[str, Any]) -> None:
    from eval_suite.judge_agreement import STATISTICS

    shown = [f"n {found['n']}", *(f"{name} {_estimate(found[name])}" for name in STATISTICS if name in found)]
    print("agreement:", ", ".join(shown))


def _add_agreement(steps) -> None:
    parser = steps.add_parser(
        "agreement",
        help="say how far two judges agree on the same answers: models, people, or both",
        description="Compare two sets of scores from 1 to 5 of one system's answers: equal and neighbouring scores, "
        "quadratic weighted kappa, correlation, mean difference, with intervals over source recordings. RATINGS is a "
        "folder of judgements, or a .csv or .jsonl with the columns file, id and score.",
    )
    parser.add_argument("predictions", type=path, help="the folder of the answers that were rated")
    parser.add_argument("first", type=path, metavar="RATINGS", help="one judge's scores")
    parser.add_argument("second", type=path, metavar="RATINGS", help="the other's")
    parser.add_argument("--resamples", type=resamples, default=1000, help="bootstrap resamples (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of the bootstrap (default: %(default)s)")
    add_output_file(parser, "also write the numbers as JSON")
    parser.set_defaults(run=_agreement)


def _agreement(arguments: argparse.Namespace) -> None:
    from eval_suite.judge_agreement import compare_ratings

    refuse_existing_file(arguments.out, arguments.overwrite)
    found = compare_ratings(
        arguments.predictions,
        arguments.first,
        arguments.second,
        resamples=arguments.resamples,
        seed=arguments.seed,
    )
    _print_agreement(found)
    print(
        f"rated by one of the two only: {found['only_first']} and {found['only_second']}; "
        f"ratings of no answer here: {found['unknown']}"
    )
    if arguments.out is not None:
        _write_json({"schema": 1} | found, arguments.out)


def _add_judge_bias(steps) -> None:
    parser = steps.add_parser(
        "judge-bias",
        help="measure a judge's biases on a standard set of answers",
        description="Put a standard set of 20 cases to a judge, 200 questions in all: equal answers in both orders, "
        "padded ones, wrong ones, and wrong ones that claim to be right. Writes OUT/bias.json.",
    )
    _judge_options(parser, required=True)
    parser.add_argument("--out", type=path, required=True, help="the folder for replies and bias.json")
    _asking_options(parser)
    parser.set_defaults(run=_judge_bias)


def _judge_bias(arguments: argparse.Namespace) -> int:
    from eval_suite.judge_bias import MEASURES, measure_bias

    made = measure_bias(arguments.judge_model, arguments.out, **_asking(arguments))
    print(f"{made['judge']}, prompts {made['prompt']} and {made['pairs_prompt']}, set {made['probes']}")
    for name, meaning in MEASURES.items():
        print(f"  {name:<13} {_estimate(made['measures'][name]):<24} {meaning}")
    _print_asking(made)
    return 0 if any(one["n"] for one in made["measures"].values()) else 1


def _estimate(one: dict) -> str:
    """Return a value with its interval, as it stands in scores.json."""
    return f"{_short(one['value'])} [{_short(one['low'])}, {_short(one['high'])}]"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _add_run(steps) -> None:
    parser = steps.add_parser("run", help="generate, judge if a judge is named, score and report, in one go")
    _generation_options(parser)
    _judge_options(parser, required=False)
    parser.add_argument(
        "--out", type=path, required=True, help="holds predictions/, scores.json and report/ at the end"
    )
    parser.set_defaults(run=_run)


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
    _add_page_folder(parser)
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
    _add_page_folder(parser)
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
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"wrote {arguments.out}")


COMMANDS = (
    _add_score,
    _add_compare,
    _add_power,
    _add_groups,
    _add_board,
    _add_panel,
    _add_schema,
    _add_generate,
    _add_judge,
    _add_judge_bias,
    _add_agreement,
    _add_report,
    _add_run,
    _add_lmms_tasks,
    _add_hub_yaml,
)
