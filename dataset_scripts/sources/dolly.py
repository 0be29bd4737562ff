"""Databricks Dolly 15k: questions written and answered by Databricks' staff, spoken by the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..questions import distinct, read_questions
from .base import Item, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Return one item a question."""
    return distinct(read_questions(root, "databricks-dolly-15k.jsonl", input="context", output="response"))


SOURCE = Source(
    name="dolly",
    title="Databricks Dolly 15k",
    license="CC-BY-SA-3.0",
    homepage="https://huggingface.co/datasets/databricks/databricks-dolly-15k",
    tasks=("AQA",),
    layout="databricks-dolly-15k.jsonl",
    needs=("databricks-dolly-15k.jsonl",),
    read=read,
    expected={"AQA": 15_011},
    benchmark={"AQA": 200},
)
