"""MELD: lines of the series Friends with their speaker, emotion and sentiment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .base import Fact, Item, Recording, Reject, Source, table

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
SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def read(root: Path) -> Iterator[Item | Reject]:
    """One item a line; only the six main characters are asked for by name."""
    for part, split in SPLITS.items():
        csv = next(iter(sorted((*root.glob(f"{part}_sent_emo.csv"), *root.glob(f"{part}/{part}_sent_emo.csv")))), None)
        for row in table(csv, columns=("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID")) if csv else ():
            if isinstance(row, Reject):
                yield row
                continue
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            facts = [
                Fact("ER", EMOTIONS.get(row["Emotion"], row["Emotion"]), tuple(EMOTIONS.values())),
                Fact("EIE", row["Sentiment"], SENTIMENTS, "sentiment"),
            ]
            if row["Speaker"] in FRIENDS:
                facts.append(Fact("SV", row["Speaker"], FRIENDS))
            # Quotes and dashes went through the wrong code page once: U+0091 to U+0097 are Windows-1252 in disguise.
            text = row["Utterance"].encode("latin-1", "ignore").decode("cp1252", "ignore")
            sound = (Recording(str(root / "wav" / part / f"{name}.wav")),)
            yield Item(f"{part}/{name}", tuple(facts), sound, speaker=row["Speaker"], sentence=text, split=split)


SOURCE = Source(
    name="meld",
    title="MELD: Multimodal EmotionLines Dataset",
    license="GPL-3.0 (annotations); audio under its owners' terms",
    redistributable=False,
    homepage="https://affective-meld.github.io",
    tasks=("ER", "EIE", "SV"),
    layout="{train,dev,test}_sent_emo.csv, or {part}/{part}_sent_emo.csv\n"
    "wav/{train,dev,test}/dia{d}_utt{u}.wav (the sound of the released .mp4 files)",
    needs=("**/train_sent_emo.csv", "wav/*"),
    read=read,
    expected={"ER": 13_708, "EIE": 13_708},
    shared=("speaker",),
    benchmark={"ER": 100, "EIE": 100, "SV": 100},
)
