"""Fake-or-Real (for-norm): utterances of people and of speech synthesizers, sorted into folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .base import Fact, Item, Recording, Reject, Source

SPLITS = {"training": "train", "validation": "validation", "testing": "test"}
KINDS = ("fake", "real")


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item a file; who speaks is not said."""
    for part, split in SPLITS.items():
        for kind in KINDS:
            for file in sorted((root / part / kind).glob("*.wav")):
                fact = Fact("SSD", kind, KINDS)
                yield Item(f"{part}/{kind}/{file.stem}", (fact,), (Recording(str(file)),), split=split)


SOURCE = Source(
    name="fake_or_real",
    title="The Fake-or-Real Dataset (for-norm)",
    license="for research, see home page",
    homepage="https://bil.eecs.yorku.ca/datasets/",
    tasks=("SSD",),
    layout="{training,validation,testing}/{fake,real}/{file}.wav",
    needs=("training/fake/*.wav", "training/real/*.wav"),
    read=read,
    expected={"SSD": 69_300},
    benchmark={"SSD": 100},
)
