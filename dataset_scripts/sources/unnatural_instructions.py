"""Unnatural Instructions: instructions written by a model, each with one or more inputs and answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .base import Item, Reject, Source, json_lines, question


def read(root: Path) -> Iterator[Item | Reject]:
    """One item for each instance of each instruction."""
    file = next(iter(sorted(root.glob("*_data.jsonl"))))
    for number, entry in json_lines(file):
        if isinstance(entry, Reject):
            yield entry
            continue
        for index, instance in enumerate(entry.get("instances", ())):
            where = f"{file}:{number}"
            # Core data puts the whole question into the instance; {INPUT} marks where its input goes.
            instruction = str(entry.get("instruction", "")).replace("{INPUT}", "").strip()
            yield question(f"{number:07d}-{index}", where, instruction, instance.get("input"), instance.get("output"))


SOURCE = Source(
    name="unnatural_instructions",
    title="Unnatural Instructions",
    license="MIT",
    redistributable=True,
    homepage="https://github.com/orhonovich/unnatural-instructions",
    tasks=("AQA",),
    layout="core_data.jsonl or full_data.jsonl",
    needs=("*_data.jsonl",),
    read=read,
    expected={"AQA": 240_670},
    benchmark={"AQA": 200},
)
