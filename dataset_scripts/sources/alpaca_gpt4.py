"""Alpaca GPT-4: Alpaca's instructions with answers of GPT-4, spoken by the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..questions import distinct, read_questions
from .base import Item, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Return one item a question."""
    return distinct(read_questions(root, "alpaca_gpt4_data.json"))


SOURCE = Source(
    name="alpaca_gpt4",
    title="Alpaca GPT-4",
    license="CC-BY-NC-4.0",
    homepage="https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM",
    tasks=("AQA",),
    layout="alpaca_gpt4_data.json",
    needs=("alpaca_gpt4_data.json",),
    read=read,
    expected={"AQA": 52_002},
    benchmark={"AQA": 100},
)
