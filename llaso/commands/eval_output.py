"""Writes JSON to a file or the screen, and values as people read them, for the commands of `llaso eval`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from llaso_common.atomic_write import write_atomically

from .option_types import path


def write_json(content: dict, out: Path | None) -> None:
    """Write `content` to the file `out`, or print it."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    write_atomically(out, text)
    print(f"wrote {out}")


def add_output_folder(parser: argparse.ArgumentParser) -> None:
    """Add --out and --overwrite of a command that writes a folder."""
    parser.add_argument("--out", type=path, required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="write to a folder that is not empty")


def estimate_text(one: dict) -> str:
    """Return a value with its interval, as it stands in scores.json."""
    return f"{short_text(one['value'])} [{short_text(one['low'])}, {short_text(one['high'])}]"


def short_text(value: float | None) -> str:
    """Return a value in three digits, a count as it is, and a dash for nothing."""
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
