"""Speech Commands 0.02: 35 words said by thousands of people, a folder a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .base import Fact, Item, Recording, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item a file; `_background_noise_` holds no words."""
    lists = {"validation_list.txt": "validation", "testing_list.txt": "test"}
    splits = {name: split for file, split in lists.items() for name in (root / file).read_text("utf-8").split()}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("_")):
        for file in sorted(folder.glob("*.wav")):
            speaker, mark, _ = file.stem.partition("_nohash_")
            if not mark:
                yield Reject(str(file), "not {speaker}_nohash_{n}.wav")
                continue
            yield Item(
                f"{folder.name}/{file.stem}",
                (Fact("SCR", folder.name),),
                (Recording(str(file)),),
                speaker=speaker,
                sentence=folder.name,
                split=splits.pop(f"{folder.name}/{file.name}", "train"),
            )
    yield from (Reject(str(root / name), f"in the list of {split}, but not there") for name, split in splits.items())


SOURCE = Source(
    name="speech_commands",
    title="Speech Commands 0.02",
    license="CC-BY-4.0",
    homepage="https://arxiv.org/abs/1804.03209",
    tasks=("SCR",),
    layout="{word}/{speaker}_nohash_{n}.wav\nvalidation_list.txt, testing_list.txt",
    needs=("*/*_nohash_*.wav", "validation_list.txt", "testing_list.txt"),
    read=read,
    expected={"SCR": 105_829},
    shared=("sentence",),
    benchmark={"SCR": 100},
)
