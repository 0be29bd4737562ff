"""GigaSpeech: audiobooks, podcasts and YouTube, cut into segments by one large JSON file, which is streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..files import stream_json
from .base import Fact, Item, Recording, Reject, Source

PUNCTUATION = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}
NO_SPEECH = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")
_MARK = re.compile(rf"\s*<({'|'.join(PUNCTUATION)})>")
SPLITS = {"{DEV}": "validation", "{TEST}": "test"}


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item a segment; segments without speech are set aside."""
    file = root / "GigaSpeech.json"
    for audio in stream_json(file, "audios.item"):
        for segment in audio["segments"]:
            where = f"{file}: {segment['sid']}"
            subsets = segment.get("subsets") or audio["subsets"]
            split = next((SPLITS[name] for name in subsets if name in SPLITS), "train")
            said = segment.get("text_tn", "")
            text = _MARK.sub(lambda tag: PUNCTUATION[tag[1]], said).strip().lower()
            if not any(char.isalnum() for char in text):
                yield Reject(where, "no transcript")
                continue
            if NO_SPEECH.search(said):
                yield Reject(where, "no speech (garbage tag)")
                continue
            if "<" in text:
                yield Reject(f"{where} ({said})", "a tag that is no punctuation mark")
                continue
            speaker = segment.get("speaker", "N/A")
            yield Item(
                segment["sid"],
                (Fact("ASR", text),),
                (Recording(str(root / audio["path"]), float(segment["begin_time"]), float(segment["end_time"])),),
                speaker=audio["aid"] if speaker == "N/A" else speaker,  # unnamed: of this recording alone
                sentence=text,
                split=split,
                where=where,
            )


SOURCE = Source(
    name="gigaspeech",
    title="GigaSpeech",
    license="GigaSpeech terms of access (non-commercial research)",
    homepage="https://github.com/SpeechColab/GigaSpeech",
    tasks=("ASR",),
    layout="GigaSpeech.json\naudio/{audiobook,podcast,youtube}/{P0000}/{id}.opus",
    needs=("GigaSpeech.json", "audio"),
    read=read,
    expected={"ASR": 8_282_987},
)
