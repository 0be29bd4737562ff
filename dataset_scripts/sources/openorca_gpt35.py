"""OpenOrca, GPT-3.5 (3.5M): questions of the FLAN collection with answers of GPT-3.5, spoken by the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..questions import read_questions
from .base import Item, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Return one item a question; the system message is not asked, as in the released rows."""
    return read_questions(root, "3_5M-GPT3_5-Augmented.parquet", instruction="question", output="response", id="id")


SOURCE = Source(
    name="openorca_gpt35",
    title="OpenOrca, GPT-3.5 (3.5M)",
    license="MIT",
    homepage="https://huggingface.co/datasets/Open-Orca/OpenOrca",
    tasks=("AQA",),
    layout="3_5M-GPT3_5-Augmented.parquet",
    needs=("3_5M-GPT3_5-Augmented.parquet",),
    read=read,
    expected={"AQA": 3_238_928},
    benchmark={"AQA": 100},
)
