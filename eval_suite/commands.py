"""Commands of this room, as `llaso eval …` shows them.

Each command is one `_add_<name>` (its options) and one `_<name>` (its run function), listed in `COMMANDS`. Heavy
imports stay inside the run functions, so that help starts at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_parser(commands) -> None:
    """Add this room's commands to the `llaso` parser."""
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
    parser.add_argument("path", type=Path, help="a folder of released outputs or of our own predictions")
    parser.add_argument("--protocol", choices=("strict", "paper"), default="strict")
    parser.add_argument("--out", type=Path, help="scores.json to write; printed where absent")
    parser.add_argument("--rows", type=Path, help="also write what was read from every answer, one JSON line a row")
    parser.add_argument("--system", help="the system's name; the folder's name by default")
    parser.add_argument("--panel", type=Path, help="panel file for the normalized score; the shipped one by default")
    parser.add_argument("--no-intervals", action="store_true", help="skip the bootstrap")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parser.set_defaults(run=_score)


def _score(arguments: argparse.Namespace) -> None:
    from .score import score

    scores = score(
        arguments.path,
        protocol=arguments.protocol,
        intervals=not arguments.no_intervals,
        resamples=arguments.resamples,
        seed=arguments.seed,
        system=arguments.system,
        panel=arguments.panel,
        rows_out=arguments.rows,
    )
    _write_json(scores, arguments.out)


# Measuring and showing -----------------------------------------------------------------------------------------


COMMANDS = (_add_score,)
