"""Unnatural Instructions: questions written by a model, with their answers and, in the full data, paraphrases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import json_lines
from ..questions import distinct, question
from .base import Item, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Return one item for each instance and each paraphrase of an instruction; of two files, the full data is read.

    An instance's constraints on the answer are not asked: the released rows have none.
    """
    return distinct(_questions(root))


def _questions(root: Path) -> Iterator[Item | Reject]:
    file = next(file for file in (root / "full_data.jsonl", root / "core_data.jsonl") if file.exists())
    for number, entry in json_lines(file):
        where = f"{file}:{number}"
        if isinstance(entry, Reject):
            yield entry
            continue
        asked, instances, others = _instruction(entry), entry.get("instances"), entry.get("reformulations") or []
        if not instances or not all(isinstance(instance, dict) for instance in (*instances, *others)):
            yield Reject(where, "no instances")
            continue
        for index, instance in enumerate(instances):
            id = f"{number:07d}-{index}"
            yield question(id, where, asked, instance.get("input"), instance.get("output"))
        for index, other in enumerate(others):
            id = f"{number:07d}-p{index}"
            item = question(id, where, _instruction(other), other.get("input"), other.get("output"))
            if isinstance(item, Item):
                # Asked in other words, it is still the same question: it stays on the same side as the first.
                item = replace(item, sentence=f"{asked} {item.facts[0].input}".strip())
            yield item


def _instruction(entry: Mapping[str, Any]) -> str:
    """Return what is asked; {INPUT} marks where the input goes."""
    return str(entry.get("instruction", "")).replace("{INPUT}", "").strip()


SOURCE = Source(
    name="unnatural_instructions",
    title="Unnatural Instructions",
    license="MIT",
    homepage="https://github.com/orhonovich/unnatural-instructions",
    tasks=("AQA",),
    layout="full_data.jsonl (240,670 questions) or core_data.jsonl (68,478)",
    needs=("full_data.jsonl|core_data.jsonl",),
    read=read,
    expected={"AQA": 240_670},
    benchmark={"AQA": 200},
)
