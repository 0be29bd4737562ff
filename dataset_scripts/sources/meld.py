"""MELD: lines of the series Friends with their speaker, emotion and sentiment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..files import table
from .base import Fact, Item, Recording, Reject, Source

EMOTIONS = {
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "joy": "joy",
    "neutral": "neutrality",
    "sadness": "sadness",
    "surprise": "surprise",
}
SENTIMENTS = ("negative", "neutral", "positive")
FRIENDS = ("Chandler", "Joey", "Monica", "Phoebe", "Rachel", "Ross")
PARTS = {
    "train": ("train", "train_splits"),
    "dev": ("validation", "dev_splits_complete"),
    "test": ("test", "output_repeated_splits_test"),
}
"""Of each part: its split, and the folder of its clips as released, which are films."""
COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
WINDOWS_1252 = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
"""Some quotes and dashes went through the wrong code page once, and stand as control characters."""


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item a line; only the six main characters are asked for by name."""
    for part, (split, films) in PARTS.items():
        name = f"{part}_sent_emo.csv"
        csv = next((file for file in (root / name, root / part / name) if file.exists()), None)
        if not csv:
            yield Reject(str(root / name), "no such file")
            continue
        folders = [root / "wav" / part, root / films, root / part / films]
        for number, row in table(csv, columns=COLUMNS):
            where = f"{csv}:{number}"
            if isinstance(row, Reject):
                yield row
                continue
            clip = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            file = _find(folders, clip, (".wav", ".flac")) or _find(folders, clip, (".mp4",))
            if not file:
                yield Reject(where, "no clip")
                continue
            facts = [
                Fact("ER", EMOTIONS.get(row["Emotion"], row["Emotion"]), tuple(EMOTIONS.values())),
                Fact("EIE", row["Sentiment"], SENTIMENTS, "sentiment"),
            ]
            if row["Speaker"] in FRIENDS:
                facts.append(Fact("SV", row["Speaker"], FRIENDS))
            else:
                yield Reject(f"{where} ({row['Speaker']})", "SV: speaker is none of the six")
            text = row["Utterance"].translate(WINDOWS_1252)
            yield Item(f"{part}/{clip}", tuple(facts), (Recording(str(file)),), row["Speaker"], text, split, where)


def _find(folders: list[Path], clip: str, suffixes: tuple[str, ...]) -> Path | None:
    """Return the file of a clip; some of the test part have no name but a prefixed one."""
    names = [f"{prefix}{clip}{suffix}" for prefix in ("", "final_videos_test") for suffix in suffixes]
    return next((folder / name for name in names for folder in folders if (folder / name).exists()), None)


SOURCE = Source(
    name="meld",
    title="MELD: Multimodal EmotionLines Dataset",
    license="GPL-3.0 (annotations); audio under its owners' terms",
    homepage="https://affective-meld.github.io",
    tasks=("ER", "EIE", "SV"),
    layout="{train,dev,test}_sent_emo.csv, or {part}/{part}_sent_emo.csv\n"
    "dia{d}_utt{u}.mp4 (needs the extra `formats`), or its sound as .wav or .flac, in [train/]train_splits,\n"
    "[dev/]dev_splits_complete and [test/]output_repeated_splits_test; or the sound in wav/{train,dev,test}",
    needs=("train_sent_emo.csv|train/train_sent_emo.csv", "wav/train|train_splits|train/train_splits"),
    read=read,
    expected={"ER": 13_708, "EIE": 13_708},
    shared=("speaker",),
    benchmark={"ER": 100, "EIE": 100, "SV": 100},
)
