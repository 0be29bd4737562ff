"""OpenOrca, GPT-4 (1M): questions of the FLAN collection with answers of GPT-4, spoken by the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..questions import read_questions
from .base import Item, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Return one item a question; the system message is not asked, as in the released rows."""
    return read_questions(root, "1M-GPT4-Augmented.parquet", instruction="question", output="response", id="id")


SOURCE = Source(
    name="openorca_gpt4",
    title="OpenOrca, GPT-4 (1M)",
    license="MIT",
    homepage="https://huggingface.co/datasets/Open-Orca/OpenOrca",
    tasks=("AQA",),
    layout="1M-GPT4-Augmented.parquet",
    needs=("1M-GPT4-Augmented.parquet",),
    read=read,
    expected={"AQA": 994_896},
    benchmark={"AQA": 100},
)
