"""Tigerbot Alpaca (English): fifty thousand instructions in Alpaca's format, spoken by the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..questions import distinct, read_questions
from .base import Item, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Return one item a question."""
    return distinct(read_questions(root, "tigerbot-alpaca-en-50k.json"))


SOURCE = Source(
    name="tigerbot_alpaca",
    title="Tigerbot Alpaca (English)",
    license="Apache-2.0",
    homepage="https://huggingface.co/datasets/TigerResearch/tigerbot-alpaca-en-50k",
    tasks=("AQA",),
    layout="tigerbot-alpaca-en-50k.json (a row a line)",
    needs=("tigerbot-alpaca-en-50k.json",),
    read=read,
    expected={"AQA": 50_000},
    benchmark={"AQA": 200},
)
