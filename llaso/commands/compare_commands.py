"""The commands of `llaso eval` that set systems, groups and panels beside one another.

Each command is one `_add_<name>` (its options) and one `_<name>` (its run function), listed in `COMMANDS`. Heavy
imports stay inside the run functions, so that help starts at once.
"""

from __future__ import annotations

import argparse
from typing import Any

from llaso_common.output_folder import refuse_existing, refuse_existing_file

from .eval_output import add_output_folder, estimate_text, short_text, write_json
from .option_types import add_output_file, at_least_1, path, resamples, seed, share


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

    refuse_existing_file(arguments.out, arguments.overwrite, filter(None, [arguments.values]))
    panel = build_panel(
        arguments.folders,
        protocol=arguments.protocol,
        name=arguments.name,
        version=arguments.panel_version,
        table=arguments.values,
        table_about=arguments.values_about,
        exclude=arguments.exclude,
    )
    write_json(panel, arguments.out)


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

    refuse_existing_file(arguments.out, arguments.overwrite, filter(None, [*arguments.paths, arguments.panel]))
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
        write_json(found, arguments.out)


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

    refuse_existing_file(arguments.out, arguments.overwrite, arguments.systems)
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
        write_json(errors, arguments.out)


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

    refuse_existing_file(arguments.out, arguments.overwrite, [arguments.system])
    (scored,) = scored_systems([arguments.system], protocol=arguments.protocol)
    groups = group_scores(scored, arguments.by, resamples=arguments.resamples, seed=arguments.seed)
    for attribute, one in groups.items():
        print(f"by {attribute} ({one['unknown']} rows without)")
        for task, found in one["tasks"].items():
            gap = found["gap"]
            print(f"  {task} {found['metric']}: gap {estimate_text(gap)}, p {short_text(gap['p_holm'])}")
            for group, value in found["groups"].items():
                mark = {gap["best"]: ", best", gap["worst"]: ", worst"}.get(group, "")
                shown = "too few rows" if value is None else estimate_text(value)
                print(f"    {group:<28} {found['sizes'][group]:>5} rows  {shown}{mark}")
    for sentence in worst_groups(groups):
        print(f"sure: {sentence}")
    repeats = repeat_scores(scored)
    for task, kinds in repeats.items():
        for kind, one in kinds.items():
            if one is not None:
                print(
                    f"{task} {kind}: {one['answers']} answers to {one['questions']} questions, "
                    f"{one['agreement']:.1%} of pairs agree; row scores spread {short_text(one['within'])} within a "
                    f"question and {short_text(one['between'])} between; {one['metric']} {short_text(one['first'])} "
                    f"of first answers, {short_text(one['majority'])} of the majority's"
                )
    if arguments.out is not None:
        write_json({"schema": 1, "system": scored.system, "groups": groups, "repeats": repeats}, arguments.out)


def _add_board(steps) -> None:
    parser = steps.add_parser(
        "board",
        help="show many systems on one page, ranked with the uncertainty of ranks",
        description="Show many systems on one page, by task and modality format. Folders of answers (or a folder of "
        "such folders) are scored under both protocols first.",
    )
    parser.add_argument("systems", type=path, nargs="+", metavar="DIR", help="scores.json, or folders of answers")
    add_output_folder(parser)
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


COMMANDS = (_add_compare, _add_power, _add_groups, _add_board, _add_panel)
