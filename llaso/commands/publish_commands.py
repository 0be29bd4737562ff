"""The commands `llaso publish` and `llaso publish-module`."""

from __future__ import annotations

import argparse

from ..publishing.hub_upload import Destination, UploadResult


def add_parser(commands) -> None:
    """Add these commands to the `llaso` parser."""
    publish = commands.add_parser(
        "publish",
        help="a trained model to the Hub: weights, code, processor, card, results, recipes, data records",
        description="Everything goes in one commit; stopped on the way, the same command goes on without sending what "
        "has arrived, and sends nothing if all is there. Files that a repository holds are not overwritten unless "
        "--replace says so. Figures come from the run's report.json.",
    )
    publish.add_argument("run_dir", metavar="RUN_DIR", help="of `llaso quickstart`, or the `out` of `llaso train`")
    _add_destination(publish, "OWNER/NAME")
    publish.add_argument("--report", metavar="DIR", help="holds report.json; found by itself after a quickstart")
    publish.add_argument("--evaluated-on", metavar="DIR_OR_ID", help="the corpus of the report; likewise")
    publish.add_argument("--license", metavar="ID", help="of the weights; by default the language model's on the Hub")
    publish.set_defaults(run=run_publish, goes_on=True)

    module = commands.add_parser("publish-module", help="the `evaluate` module of LLaSO-Eval to the Hub, as a Space")
    _add_destination(module, "OWNER/llaso_eval")
    module.set_defaults(run=run_publish_module)


def _add_destination(parser: argparse.ArgumentParser, shape: str) -> None:
    parser.add_argument("repo_id", metavar="REPO_ID", help=shape)
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="created if it does not exist; main by default")
    parser.add_argument("--token", help="of an account that may write; better left to `hf auth login` or HF_TOKEN")
    parser.add_argument("--replace", action="store_true", help="overwrite files that differ, delete other weights")


def _destination(arguments: argparse.Namespace, repo_type: str) -> Destination:
    if arguments.repo_id.count("/") != 1:
        raise ValueError(f"{arguments.repo_id}: a repository is named OWNER/NAME")
    return Destination(
        arguments.repo_id, repo_type, arguments.private, arguments.revision, arguments.token, arguments.replace
    )


def run_publish(arguments: argparse.Namespace) -> None:
    """Run `llaso publish`."""
    from ..publishing.publish_run import publish

    _say(
        publish(
            arguments.run_dir,
            _destination(arguments, "model"),
            report=arguments.report,
            evaluated_on=arguments.evaluated_on,
            license=arguments.license,
        )
    )


def run_publish_module(arguments: argparse.Namespace) -> None:
    """Run `llaso publish-module`."""
    from ..publishing.publish_run import publish_module

    _say(publish_module(_destination(arguments, "space")))


def _say(done: UploadResult) -> None:
    print(f"{len(done.sent)} files sent" if done.sent else "all was there already; nothing sent")
    print(f"{done.url} at {done.commit}")
