"""Code Alpaca 20k: instructions about code, spoken by the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..questions import distinct, read_questions
from .base import Item, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Return one item a question."""
    return distinct(read_questions(root, "code_alpaca_20k.json"))


SOURCE = Source(
    name="code_alpaca",
    title="Code Alpaca 20k",
    license="CC-BY-NC-4.0",
    homepage="https://github.com/sahil280114/codealpaca",
    tasks=("AQA",),
    layout="code_alpaca_20k.json",
    needs=("code_alpaca_20k.json",),
    read=read,
    expected={"AQA": 20_022},
    benchmark={"AQA": 100},
)
