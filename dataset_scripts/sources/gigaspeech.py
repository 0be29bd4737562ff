"""GigaSpeech: audiobooks, podcasts and YouTube, cut into segments by one large JSON file, which is streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .base import Fact, Item, Recording, Reject, Source, stream_json

PUNCTUATION = {" <COMMA>": ",", " <PERIOD>": ".", " <QUESTIONMARK>": "?", " <EXCLAMATIONPOINT>": "!"}
NO_SPEECH = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")
SPLITS = {"{DEV}": "validation", "{TEST}": "test"}


def read(root: Path) -> Iterator[Item | Reject]:
    """One item a segment; segments without speech are set aside."""
    for audio in stream_json(root / "GigaSpeech.json", "audios.item"):
        split = next((SPLITS[name] for name in audio["subsets"] if name in SPLITS), "train")
        for segment in audio["segments"]:
            text = segment.get("text_tn", "")
            if not text:
                yield Reject(segment["sid"], "no transcript")
                continue
            if NO_SPEECH.search(text):
                yield Reject(segment["sid"], "no speech (garbage tag)")
                continue
            for tag, mark in PUNCTUATION.items():
                text = text.replace(tag, mark)
            text = text.strip().lower()
            speaker = segment.get("speaker", "N/A")
            yield Item(
                segment["sid"],
                (Fact("ASR", text),),
                (Recording(str(root / audio["path"]), float(segment["begin_time"]), float(segment["end_time"])),),
                speaker=audio["aid"] if speaker == "N/A" else speaker,  # unnamed: nobody is in two recordings
                sentence=text,
                split=split,
            )


SOURCE = Source(
    name="gigaspeech",
    title="GigaSpeech",
    license="GigaSpeech terms of access (non-commercial research)",
    redistributable=False,
    homepage="https://github.com/SpeechColab/GigaSpeech",
    tasks=("ASR",),
    layout="GigaSpeech.json\naudio/{audiobook,podcast,youtube}/{P0000}/{id}.opus",
    needs=("GigaSpeech.json", "audio"),
    read=read,
    expected={"ASR": 8_282_987},
)
