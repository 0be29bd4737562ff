"""`llaso data`: plan, build, validate and publish the corpora, and read and write the authors' release."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from .option_types import (
    add_output_file,
    at_least_0,
    at_least_1,
    device,
    error_rate,
    path,
    seed,
    some_text,
    workers,
)

if TYPE_CHECKING:
    from dataset_scripts.sources_file import SourcesFile


def add_parser(commands) -> None:
    """Add these commands to the `llaso` parser."""
    data = commands.add_parser("data", help="build, check and publish the corpora")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)

    sources = actions.add_parser("sources", help="print a sources file to fill in: every corpus, its home and layout")
    sources.add_argument(
        "--inspect",
        metavar="PATH_OR_ID",
        help="print a block for data of your own instead: a manifest, a folder, or a data set of the Hub",
    )
    sources.set_defaults(run=_sources)

    plan = actions.add_parser("plan", help="say what would be built: rows, hours, bytes, shards")
    build = actions.add_parser("build", help="build LLaSO-Align, -Instruct or -Eval from corpora on disk")
    for parser in (plan, build):
        parser.add_argument("corpus", choices=("align", "instruct", "eval"))
        parser.add_argument("--sources", type=path, required=True, metavar="YAML", help="which corpora lie where")
        parser.add_argument("--seed", type=seed, default=0, help="of every draw (default 0)")
        parser.add_argument(
            "--limit",
            type=at_least_1,
            metavar="N",
            help="at most N rows in all, to try things out; the same for all corpora",
        )
        parser.add_argument("--processor", metavar="CHECKPOINT", help="count each row's tokens with its processor")
        parser.add_argument("--out", type=path, required=parser is build, metavar="DIR", help="the corpus's folder")
    plan.set_defaults(run=_plan)
    build.add_argument("--clips", type=path, metavar="DIR", help="synthesized clips, shared between corpora")
    build.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    build.add_argument("--workers", type=workers, default=1, metavar="N", help="processes at work (default 1)")
    build.add_argument(
        "--against", type=path, nargs="*", default=[], metavar="DIR", help="built corpora to prove apart"
    )
    build.set_defaults(run=_build, goes_on=True)

    validate = actions.add_parser("validate", help="check every row; write validation.json and a page to look at")
    validate.add_argument("folder", type=path, metavar="DIR")
    validate.add_argument(
        "--against",
        type=path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="other corpora that must share nothing with it",
    )
    validate.add_argument(
        "--set-aside", action="store_true", help="take bad rows out of the corpus (default: only report them)"
    )
    validate.add_argument(
        "--examples", type=at_least_0, default=12, metavar="N", help="players on the page (default 12)"
    )
    validate.add_argument("--workers", type=workers, default=1, metavar="N", help="processes at work (default 1)")
    validate.add_argument(
        "--listen",
        metavar="MODEL",
        help="let a Whisper, a LLaSO (folder or Hub id) or a server (http://HOST/v1) transcribe every row of a "
        "transcript task, and report where it hears something else",
    )
    validate.add_argument("--listen-model", metavar="NAME", help="the model's name on a server that serves several")
    validate.add_argument(
        "--listen-language",
        metavar="CODE",
        help="language of the recordings, e.g. en (default: the listener finds out)",
    )
    validate.add_argument(
        "--listen-batch-size", type=at_least_1, default=16, metavar="N", help="clips heard at once (default 16)"
    )
    validate.add_argument(
        "--max-wer",
        type=error_rate,
        metavar="X",
        help="with --listen: a row whose word error rate is above X is bad (default: none is bad for that)",
    )
    validate.set_defaults(run=_validate)

    publish = actions.add_parser("publish", help="upload a corpus to the Hub; run again to go on after a failure")
    publish.add_argument("folder", type=path, metavar="DIR")
    publish.add_argument("repo_id", metavar="REPO_ID")
    publish.add_argument("--private", action="store_true")
    publish.add_argument("--manifest-only", action="store_true", help="publish the rows without their audio")
    publish.set_defaults(run=_publish, goes_on=True)

    imports = actions.add_parser("import-release", help="read the authors' JSON files into this schema")
    imports.add_argument("folder", type=path, metavar="DIR", help="holds text_audio/, audio_text/ and pure_audio/")
    imports.add_argument("--audio-root", type=path, metavar="DIR", help="what the files' voice paths are relative to")
    imports.add_argument("--without-audio", action="store_true", help="keep the paths and leave the audio out")
    imports.add_argument("--corpus", choices=("align", "instruct", "eval"), default="instruct")
    imports.add_argument("--processor", default="", metavar="CHECKPOINT", help="count each row's tokens with it")
    imports.add_argument("--out", type=path, required=True, metavar="DIR")
    imports.set_defaults(run=_import, goes_on=True)

    chats = actions.add_parser(
        "import-chats",
        help="turn written chats into rows without audio, for a recipe's data.text_path",
        description="Read written chats: OpenAI's messages, ShareGPT's conversations, or a prompt and a response as "
        "in Alpaca. Training mixes them in to keep what the language model knew.",
    )
    chats.add_argument("chats", type=some_text, metavar="CHATS", help="a file, a folder, or a data set on the Hub")
    chats.add_argument("--split", help="of a folder or a data set (default: train)")
    chats.add_argument("--config", help="of a folder or a data set (default: its only one)")
    chats.add_argument("--revision", help="of a data set on the Hub")
    chats.add_argument("--limit", type=at_least_1, metavar="N", help="read only so many chats, from the beginning")
    chats.add_argument("--out", type=path, required=True, metavar="DIR")
    chats.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    chats.set_defaults(run=_import_chats)

    writes = actions.add_parser(
        "write-chats",
        help="let a chat model write chats, for import-chats",
        description="Given only the beginning of a user's turn, a chat model writes prompts, and then it answers "
        "them. Mix the chats into training to help the language model keep its text skill.",
    )
    writes.add_argument("llm", type=some_text, metavar="LLM", help="folder or Hub id of a chat model")
    writes.add_argument(
        "--chats", dest="wanted", type=at_least_1, default=1000, metavar="N", help="how many (default: 1000)"
    )
    writes.add_argument("--seed", type=seed, default=0, metavar="N")
    writes.add_argument("--device", type=device, help="cpu, cuda, … (default: the GPU if there is one)")
    add_output_file(writes, "file of JSON lines to write", required=True)
    writes.set_defaults(run=_write_chats)

    export = actions.add_parser("export-release", help="write a corpus as the authors' JSON files")
    export.add_argument("folder", type=path, metavar="DIR")
    export.add_argument("--out", type=path, required=True, metavar="DIR")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    export.set_defaults(run=_export)


def _sources(arguments: argparse.Namespace) -> int:
    from dataset_scripts import inspect_source, sources_file

    print(inspect_source.inspect(arguments.inspect) if arguments.inspect else sources_file.template(), end="")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    import contextlib
    import tempfile

    from dataset_scripts.build import check_folder
    from dataset_scripts.corpus_plan import Settings, make_plan, read_under
    from dataset_scripts.size_estimate import FLAC_BYTES_PER_SECOND
    from llaso_common.folder_lock import alone_in

    chosen = _chosen(arguments)
    if arguments.out:
        check_folder(arguments.out)
    settings = Settings(arguments.corpus, seed=arguments.seed, limit=arguments.limit, **chosen.settings)
    with tempfile.TemporaryDirectory() as scratch:
        # With --out the plan stays where the build will look for it.
        folder = arguments.out / ".build" / "plan" if arguments.out else Path(scratch) / "plan"
        with alone_in(arguments.out) if arguments.out else contextlib.nullcontext():
            plan = make_plan(settings, chosen.sources, folder, _Progress("planned"))
    print(f"{'source':24} {'task':6} {'format':11} {'split':11} {'rows':>12} {'hours':>10} {'size':>10}")
    for name, count in plan["counts"].items():
        source, task, modality, split = name.split("/")
        hours = plan["hours"][name]
        size = _size(hours * 3600 * FLAC_BYTES_PER_SECOND)
        print(f"{source:24} {task:6} {modality:11} {split:11} {count:12,} {hours:10,.2f} {size:>10}")
    shards: Counter[str] = Counter(shard["name"].rpartition("-of-")[0].rpartition("-")[0] for shard in plan["shards"])
    print("shards: " + ", ".join(f"{count} {name.replace('.', '/')}" for name, count in shards.items()))
    print(
        f"{plan['rows']:,} rows in {len(plan['shards'])} shards, about {sum(plan['hours'].values()):,.2f} h and "
        f"{_size(plan['bytes'])}"
    )
    for name, source in plan["sources"].items():
        for task, expected in source["expected"].items():
            if arguments.limit is None and (found := plan["found"].get(f"{name}/{task}", 0)) != expected:
                print(f"{name}: {found:,} {task} found, of {expected:,} that the whole corpus is said to have")
    held = plan["held_out"]
    print(f"held out: {held['drawn']:,} of {held['asked']:,} asked for, in {len(held['quotas'])} strata")
    if held["drawn"] < held["asked"]:
        for stratum, count in held["short"].items():
            print(f"  {stratum}: {count:,} too few")
        if arguments.limit:
            print(read_under(arguments.limit))
    elif held["short"]:
        print(f"  {len(held['short'])} strata gave less than their share; others made up for them")
    for kind, count in plan["dropped"].items():
        if count:
            print(f"left out of training: {count:,} rows that share a {kind} with held-out rows")
    if plan["beyond_limit"]:
        print(f"left out by the limit: {plan['beyond_limit']:,} of the rows read")
    if plan["held_back"]:
        print(f"held back: {sum(plan['held_back'].values()):,} rows of held-out speakers and sentences, in no split")
    for source, count in plan["without_facts"].items():
        print(f"{source}: {count:,} items without anything to ask about them")
    for reason, count in plan["rejects"].items():
        print(f"set aside: {count:,} × {reason}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from dataset_scripts.build import build

    chosen = _chosen(arguments)
    out = build(
        arguments.corpus,
        chosen.sources,
        arguments.out,
        seed=arguments.seed,
        limit=arguments.limit,
        clips=arguments.clips,
        workers=arguments.workers,
        executor=arguments.executor,
        executor_options=chosen.executors.get(arguments.executor),
        against=arguments.against,
        planning=_Progress("planned"),
        progress=_Progress("built"),
        **chosen.settings,
    )
    if not (out / "build.json").exists():
        print(f"{out}: with Slurm; run the same command again when its jobs are done")
        return 0
    return _summary(out)


def _chosen(arguments: argparse.Namespace) -> SourcesFile:
    """Read the sources file and lay the command's own options over it."""
    from dataset_scripts import sources_file

    chosen = sources_file.read(arguments.sources)
    if arguments.processor:
        chosen.settings["processor"] = arguments.processor
    if chosen.settings.get("processor"):
        import modeling_llaso  # noqa: F401 - makes LLaSO known to transformers' Auto classes
    return chosen


def _summary(out: Path) -> int:
    import json

    from dataset_scripts.corpus_plan import read_under

    built = json.loads((out / "build.json").read_text())
    leaks = json.loads((out / "leakage.json").read_text())
    rejects = sum(built["rejects"].values())
    print(f"{out}: {built['rows']:,} rows, {built['hours']:,.2f} h, {_size(built['bytes'])}; {rejects:,} set aside")
    held = built["held_out"]
    if built["corpus"] == "eval" and held["built"] < held["asked"]:
        print(
            f"{held['asked'] - held['built']:,} fewer rows than asked for: `held_out.short` in build.json says where"
        )
        if built["limit"]:
            print(read_under(built["limit"]))
    if not leaks["rows_checked"]:
        print("not compared with training yet: build again with --against and the training corpora's folders")
    if not leaks["clean"]:
        print(f"{out / 'leakage.json'}: training and evaluation share what it lists", file=sys.stderr)
        for name, entry in leaks["compared"].items():
            if not entry["drawn_alike"]:
                print(
                    f"{name} was built with another seed, limit, number of rows or other sources, and so held out "
                    "other rows: build it again with this corpus's",
                    file=sys.stderr,
                )
            elif any(entry["shared"].values()):
                print(
                    f"`llaso data validate` on {name} with --set-aside --against {out} takes those rows out of it",
                    file=sys.stderr,
                )
        return 1
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from dataset_scripts.listeners import open_listener
    from dataset_scripts.validate import validate

    listener = None
    if arguments.listen:
        import modeling_llaso  # noqa: F401 - makes LLaSO known to transformers' Auto classes

        listener = open_listener(arguments.listen, arguments.listen_language, arguments.listen_model)
    elif arguments.max_wer is not None or arguments.listen_language or arguments.listen_model:
        raise ValueError("--max-wer, --listen-language and --listen-model say how to listen: name a --listen MODEL")
    report = validate(
        arguments.folder,
        against=arguments.against,
        set_aside=arguments.set_aside,
        examples=arguments.examples,
        workers=arguments.workers,
        progress=_Progress("checked"),
        listener=listener,
        max_wer=arguments.max_wer,
        clips_at_once=arguments.listen_batch_size,
        listening=_Progress("heard"),
    )
    before = report["set_aside"] - report["found"] * arguments.set_aside
    print(
        f"{report['rows'] + report['set_aside'] - before:,} rows checked, {report['found']:,} bad"
        + f", {before:,} set aside before" * bool(before)
        + f": see {arguments.folder / 'validation.html'}"
    )
    for reason, count in report["reasons"].items():
        print(f"  {count:,} × {reason}")
    if heard := report.get("listening"):
        print(f"{heard['rows']:,} transcripts heard by {heard['listener']['name']}: word error rate {heard['wer']}")
        for kind, count in heard["kinds"].items():
            print(f"  {count:,} × {kind}")
    for note in report["notes"]:
        print(note)
    return 1 if report["found"] else 0


def _publish(arguments: argparse.Namespace) -> int:
    from dataset_scripts.publish_corpus import publish

    url = publish(
        arguments.folder, arguments.repo_id, private=arguments.private, manifest_only=arguments.manifest_only
    )
    print(url)
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from dataset_scripts.release_import import import_release

    if not arguments.without_audio and arguments.audio_root is None:
        raise ValueError("say where the audio lies (--audio-root DIR), or leave it out (--without-audio)")
    if arguments.without_audio and arguments.audio_root is not None:
        raise ValueError("either with audio (--audio-root DIR) or without it (--without-audio), not both")
    if arguments.processor:
        import modeling_llaso  # noqa: F401 - makes LLaSO known to transformers' Auto classes
    root = None if arguments.without_audio else arguments.audio_root
    report = import_release(
        arguments.folder,
        arguments.out,
        audio_root=root,
        corpus=arguments.corpus,
        processor=arguments.processor,
        progress=_Progress("read"),
    )
    print(f"{arguments.out}: {report['rows']:,} rows; {sum(report['rejects'].values()):,} set aside")
    for reason, count in report["rejects"].items():
        print(f"  {count:,} × {reason}")
    return 0


def _import_chats(arguments: argparse.Namespace) -> int:
    from dataset_scripts.chat_import import import_chats

    made = import_chats(
        arguments.chats,
        arguments.out,
        split=arguments.split,
        config=arguments.config,
        revision=arguments.revision,
        limit=arguments.limit,
        overwrite=arguments.overwrite,
        progress=_Progress("written"),
    )
    print(f"{arguments.out}: {made['rows']:,} rows; {sum(made['rejects'].values()):,} set aside in rejects.jsonl")
    for reason, count in made["rejects"].items():
        print(f"  {count:,} × {reason}")
    return 0


def _write_chats(arguments: argparse.Namespace) -> int:
    from dataset_scripts.write_chats import write_chats

    arguments.goes_on = not arguments.overwrite
    total, there = write_chats(
        arguments.llm,
        arguments.out,
        arguments.wanted,
        seed=arguments.seed,
        device=arguments.device,
        overwrite=arguments.overwrite,
        progress=_Progress("written"),
        report=lambda line: print(line, file=sys.stderr),
    )
    earlier = f", {there:,} of them from an earlier call" if there else ""
    print(f"{arguments.out}: {total:,} chats{earlier}; `llaso data import-chats` makes rows of them")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from dataset_scripts.release_export import export_release

    rows = export_release(arguments.folder, arguments.out, arguments.overwrite)
    print(f"{arguments.out}: {rows:,} rows")
    return 0


def _size(count: float) -> str:
    """Format bytes in units that people read."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(max(count, 1)) / 3), len(units) - 1)
    return f"{count / 1000**power:,.1f} {units[power]}"


class _Progress:
    """How far something is and how long it will take: in place on a terminal, else a line a minute."""

    def __init__(self, what: str) -> None:
        self._what, self._live = what, sys.stderr.isatty()
        self._started = self._told = time.monotonic()
        self._found: int | None = None

    def __call__(self, done: int, total: int = 0) -> None:
        """Report `done` rows of `total`, which is 0 if their number is unknown."""
        if self._found is None:
            self._found = done  # the work of an earlier run, which took no time now
        now, over = time.monotonic(), done == total
        if now - self._told < (0.5 if self._live else 60.0) and not (over and self._live):
            return
        self._told = now
        said = f"{self._what} {done:,} rows"
        if total:
            said = f"{self._what} {done:,} of {total:,} rows ({done / total:.0%})"
        if self._found < done < total:
            seconds = (now - self._started) / (done - self._found) * (total - done)
            said += f", {timedelta(seconds=round(seconds))} left"
        start, end = ("\r", "   " + "\n" * over) if self._live else ("", "\n")
        print(f"{start}{said}", end=end, file=sys.stderr, flush=True)
