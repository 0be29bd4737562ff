"""Checks the values of options: `type=` functions for argparse, which refuse a wrong one, with exit code 2."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from ..alignment import CTC_WEIGHT

LARGEST = 2**31 - 1
"""Counts beyond this are typing mistakes, and libraries fail on them in their own words."""

DTYPES = ("auto", "float32", "float16", "bfloat16")
MAX_STRIDE = 1500
"""Encoder vectors of a 30-second window: a larger stride leaves no audio token of it."""


def _whole(least: int, most: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return number

    return parse


def _between(least: float, most: float, with_ends: bool) -> Callable[[str], float]:
    ends = "" if with_ends else ", both left out"

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (least <= number <= most if with_ends else least < number < most):  # nor is NaN
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:g}{ends}")
        return number

    return parse


temperature = _between(0, 100, with_ends=True)
error_rate = _between(0, 100, with_ends=True)
seconds_up_to_10 = _between(0, 10, with_ends=True)
share = _between(0, 1, with_ends=False)
weight = _between(0, 1, with_ends=True)
at_least_1 = _whole(1, LARGEST, f"a whole number from 1 to {LARGEST}")
at_least_0 = _whole(0, LARGEST, f"a whole number from 0 to {LARGEST}")
seed = _whole(0, 2**32 - 1, f"a whole number from 0 to {2**32 - 1}")  # NumPy's range, the narrowest
beams = _whole(1, 64, "a whole number from 1 to 64")
port = _whole(1, 65_535, "a port, 1 to 65535")
port_or_0 = _whole(0, 65_535, "a port, 0 to 65535")
resamples = _whole(1, 1_000_000, "a whole number from 1 to 1000000")
workers = _whole(1, 4096, "a whole number from 1 to 4096")
stride = _whole(1, MAX_STRIDE, f"a whole number from 1 to {MAX_STRIDE}")


def device(text: str) -> str:
    """Return a device of this machine, e.g. `cpu` or `cuda:1`."""
    import torch  # only if a device is named: help starts without it

    try:
        named = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no device: write cpu, cuda, cuda:1 or mps") from None
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = {"cpu": 1} | ({} if accelerator is None else {accelerator.type: torch.accelerator.device_count()})
    if (named.index or 0) >= here.get(named.type, 0):
        numbered = (f"{name}:{index}" if count > 1 else name for name, count in here.items() for index in range(count))
        raise argparse.ArgumentTypeError(f"{text!r} is not on this machine, which has {', '.join(numbered)}")
    return text


def some_text(text: str) -> str:
    """Return a name that is not empty: `--out "$UNSET"` must not mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    if "\0" in text:
        raise argparse.ArgumentTypeError("it holds a zero byte")
    return text


def path(text: str) -> Path:
    """Return a path that is not empty."""
    return Path(some_text(text))


def named_folder(text: str) -> tuple[str, Path]:
    """Return a name and a folder of `NAME=FOLDER`."""
    name, equals, folder = text.partition("=")
    if not (name.strip() and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name.strip(), path(folder)


def add_speech_finder(parser: argparse.ArgumentParser) -> None:
    """Add `--speech-finder NAME`."""
    parser.add_argument(
        "--speech-finder",
        choices=("energy", "silero"),  # FINDERS of transcription/speech_finders.py, which needs NumPy
        default="energy",
        help="what finds the speech of long recordings: its level, or silero-vad, which tells it from music and noise "
        "(extra vad)",
    )


def add_ctc_weight(
    parser: argparse.ArgumentParser, default: str = f"{CTC_WEIGHT} if the model was aligned by CTC"
) -> None:
    """Add the option of CTC's weight in transcripts; `default` says what happens without it."""
    parser.add_argument(
        "--ctc-weight",
        type=weight,
        metavar="W",
        help="weight of CTC when a transcript is decoded, 0 to 1; 0: the language model decodes alone (default: "
        f"{default})",
    )


def add_answer_after(parser: argparse.ArgumentParser) -> None:
    """Add `--answer-after TEXT`."""
    parser.add_argument(
        "--answer-after",
        type=some_text,
        metavar="TEXT",
        help="score what follows the last TEXT of a reply that holds it, e.g. 'Answer:' after a transcript",
    )


def add_output_file(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    """Add `--out FILE` and `--overwrite`; the command calls `refuse_existing_file` with them before its work."""
    parser.add_argument("--out", type=path, metavar="FILE", required=required, help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --out names")
