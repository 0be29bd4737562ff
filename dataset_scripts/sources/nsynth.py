"""NSynth: single notes of a thousand instruments with pitch, velocity, family and source; JSON is streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..files import stream_json_object
from ..musical_notes import VELOCITIES
from .base import Fact, Item, Recording, Reject, Source

FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth lead", "vocal")
KINDS = ("acoustic", "electronic", "synthetic")
SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item a note; the parts share no instruments, which stand here for speakers."""
    for part, split in SPLITS.items():
        file = root / f"nsynth-{part}" / "examples.json"
        if not file.exists():
            yield Reject(str(file), "no such file")
            continue
        for name, note in stream_json_object(file):
            facts = (
                Fact("IC", note["instrument_family_str"].replace("_", " "), FAMILIES),
                Fact("ISC", note["instrument_source_str"], KINDS),
                Fact("PP", str(note["pitch"])),
                Fact("VC", str(note["velocity"]), tuple(map(str, VELOCITIES))),
            )
            sound = (Recording(str(file.parent / "audio" / f"{name}.wav")),)
            yield Item(name, facts, sound, note["instrument_str"], split=split, where=f"{file}: {name}")


SOURCE = Source(
    name="nsynth",
    title="NSynth",
    license="CC-BY-4.0",
    homepage="https://magenta.tensorflow.org/datasets/nsynth",
    tasks=("IC", "ISC", "PP", "VC"),
    layout="nsynth-{train,valid,test}/examples.json\nnsynth-{train,valid,test}/audio/{instrument}-{pitch}-{velocity}.wav",
    needs=("nsynth-*/examples.json", "nsynth-*/audio"),
    read=read,
    expected={task: 305_979 for task in ("IC", "ISC", "PP", "VC")},
    benchmark={"IC": 100, "ISC": 100, "PP": 112, "VC": 100},
)
