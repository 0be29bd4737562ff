"""The `llaso` command.

Each file of `commands/` adds its own parsers (`add_parser(subparsers)`, whose parsers set `run=`), and imports heavy
libraries only inside `run`, so that help starts at once. A command that continues its own interrupted work sets
`goes_on=True` as well. Mistakes of the user (`ValueError`, missing files or packages) end in one clear line and exit
code 2; anything else is a fault of this program, in one line and with exit code 3. `--debug` shows the traceback of
both.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from llaso_common import __version__
from llaso_common.plain_message import plain_message

COMMANDS = (
    "llaso.commands.quickstart_commands",
    "llaso.commands.real_commands",
    "llaso.commands.model_commands",
    "llaso.commands.train_commands",
    "llaso.commands.data_commands",
    "llaso.commands.eval_commands",
    "llaso.commands.publish_commands",
    "llaso.commands.demo_commands",
    "llaso.commands.serve_commands",
    "llaso.commands.export_commands",
)


class OneLineParser(argparse.ArgumentParser):
    """A parser that refuses wrong options in one line, like every other mistake; its commands do as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; `{self.prog} --help` lists the options\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the whole command line, ready to parse; imports no heavy library."""
    parser = OneLineParser(prog="llaso", description="Train, evaluate and share speech-language models.")
    parser.add_argument("--version", action="version", version=f"llaso {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens inside")
    parser.set_defaults(goes_on=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for file in COMMANDS:
        importlib.import_module(file).add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after `llaso`; the process's own by default.

    Returns:
        The exit code: 0 done, 1 a gate or check not passed, 2 bad input, 3 a fault of this program, 130
        interrupted.
    """
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as stopped:  # of --help, --version, or options that are refused
        return int(stopped.code or 0)
    if sys.stderr is None:  # closed by the caller; messages have nowhere to go
        sys.stderr = open(os.devnull, "w")
    if not sys.stderr.isatty():  # libraries draw their bars on it
        for library in ("HF_HUB", "HF_DATASETS"):  # transformers asks the first
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        return arguments.run(arguments) or 0
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        print(f"llaso: error: {plain_message(error)}", file=sys.stderr)
        return 2
    except Exception as error:
        if arguments.debug:
            raise
        print(
            f"llaso: unexpected {type(error).__name__}: {error}; `llaso --debug {arguments.command} …` shows where it "
            "was raised",
            file=sys.stderr,
        )
        return 3
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if arguments.goes_on else ""
        print(f"llaso: interrupted{goes_on}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
