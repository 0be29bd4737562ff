"""AlpacaDan: instructions in Alpaca's format, spoken by the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..questions import distinct, read_questions
from .base import Item, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Return one item a question."""
    return distinct(read_questions(root, "*.json*"))


SOURCE = Source(
    name="alpaca_dan",
    title="AlpacaDan",
    license="unknown",
    homepage="https://huggingface.co/datasets?search=AlpacaDan",
    tasks=("AQA",),
    layout="*.json or *.jsonl",
    needs=("*.json*",),
    read=read,
    benchmark={"AQA": 200},
)
