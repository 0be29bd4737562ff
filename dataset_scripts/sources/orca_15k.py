"""OrcaNo / orca_15k: fifteen thousand instructions in Alpaca's format, spoken by the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..questions import distinct, read_questions
from .base import Item, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Return one item a question."""
    return distinct(read_questions(root, "*.json*"))


SOURCE = Source(
    name="orca_15k",
    title="OrcaNo / orca_15k",
    license="unknown",
    homepage="https://huggingface.co/datasets?search=orca_15k",
    tasks=("AQA",),
    layout="*.json or *.jsonl",
    needs=("*.json*",),
    read=read,
    expected={"AQA": 15_000},
    benchmark={"AQA": 200},
)
