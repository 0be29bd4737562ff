"""The commands of `llaso eval` that ask a judge or compare judges.

Each command is one `_add_<name>` (its options) and one `_<name>` (its run function), listed in `COMMANDS`. Heavy
imports stay inside the run functions, so that help starts at once.
"""

from __future__ import annotations

import argparse
from typing import Any

from llaso_common.output_folder import refuse_existing_file

from .eval_output import estimate_text, write_json
from .option_types import add_output_file, at_least_1, path, resamples, seed


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
    add_judge_options(parser, required=True)
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
    parser.set_defaults(run=_judge, goes_on=True)


def add_judge_options(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add the options that name a judge."""
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
        print(f"{made['system']} against {made['against']}: win rate {estimate_text(made['win_rate'])}, ties half")
        for task, one in made["tasks"].items():
            print(f"  {task} {estimate_text(one)}")
        print(
            f"won {made['won']}, tied {made['tied']}, lost {made['lost']}; in the other order the other answer was "
            f"chosen {made['contradicted']} times; share of choices that fell on the answer shown first "
            f"{estimate_text(made['first_preferred'])}, on the longer one {estimate_text(made['longer_preferred'])}"
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

    shown = [f"n {found['n']}", *(f"{name} {estimate_text(found[name])}" for name in STATISTICS if name in found)]
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

    refuse_existing_file(arguments.out, arguments.overwrite, [arguments.first, arguments.second])
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
        write_json({"schema": 1} | found, arguments.out)


def _add_judge_bias(steps) -> None:
    parser = steps.add_parser(
        "judge-bias",
        help="measure a judge's biases on a standard set of answers",
        description="Put a standard set of 20 cases to a judge, 200 questions in all: equal answers in both orders, "
        "padded ones, wrong ones, and wrong ones that claim to be right. Writes OUT/bias.json.",
    )
    add_judge_options(parser, required=True)
    parser.add_argument("--out", type=path, required=True, help="the folder for replies and bias.json")
    _asking_options(parser)
    parser.set_defaults(run=_judge_bias)


def _judge_bias(arguments: argparse.Namespace) -> int:
    from eval_suite.judge_bias import MEASURES, measure_bias

    made = measure_bias(arguments.judge_model, arguments.out, **_asking(arguments))
    print(f"{made['judge']}, prompts {made['prompt']} and {made['pairs_prompt']}, set {made['probes']}")
    for name, meaning in MEASURES.items():
        print(f"  {name:<13} {estimate_text(made['measures'][name]):<24} {meaning}")
    _print_asking(made)
    return 0 if any(one["n"] for one in made["measures"].values()) else 1


COMMANDS = (_add_judge, _add_judge_bias, _add_agreement)
