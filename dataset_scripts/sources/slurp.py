"""SLURP: spoken requests to a home assistant, with their intent and their slots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..files import json_lines, stream_json_object
from .base import Fact, Item, Recording, Reject, Source

PARTS = ("train", "devel", "test")
SYNTHETIC = "train_synthetic"


def read(root: Path, synthetic: bool = False) -> Iterator[Item | Reject]:
    """Yield one item a recording: a sentence was said by several people, most of them into two microphones.

    Nearly all of the 177 speakers are in each of SLURP's own parts. These are not kept, or no training row would be
    left beside the evaluation: what is held out is drawn by speaker, and takes its sentences out of training.

    Args:
        root: the folder.
        synthetic: also read the part of the training set that was made by synthesis.
    """
    speakers = {
        name: recording.get("usrid", "")
        for _, entry in stream_json_object(root / "dataset" / "slurp" / "metadata.json")
        for name, recording in entry["recordings"].items()
    }
    for part in (*PARTS, SYNTHETIC) if synthetic else PARTS:
        file = root / "dataset" / "slurp" / f"{part}.jsonl"
        if not file.exists():
            yield Reject(str(file), "no such file")
            continue
        folder = root / "audio" / ("slurp_synth" if part == SYNTHETIC else "slurp_real")
        for number, entry in json_lines(file):
            where = f"{file}:{number}"
            if isinstance(entry, Reject):
                yield entry
                continue
            sentence, annotation = entry.get("sentence", ""), entry.get("sentence_annotation", "")
            if not sentence or not annotation or not entry.get("scenario") or not entry.get("action"):
                yield Reject(where, "no sentence, annotation, scenario or action")
                continue
            intent = Fact("IP", f"{entry['scenario']} {entry['action'].replace('_', ' ')}", input=sentence)
            entities = (Fact("EE", annotation, input=sentence),) if "[" in annotation else ()
            if not entities:
                yield Reject(where, "EE: no entity in the sentence")  # the released rows have none such either
            if not entry.get("recordings"):
                yield Reject(where, "no recordings")
                continue
            for recording in entry["recordings"]:
                name = recording["file"]
                if recording.get("status", "correct") != "correct":
                    yield Reject(f"{where} ({name}: {recording['status']})", "the recording is not marked correct")
                    continue
                sound = (Recording(str(folder / name)),)
                split = "train" if part == SYNTHETIC else ""
                speaker = speakers.get(name, "")
                yield Item(Path(name).stem, (intent, *entities), sound, speaker, sentence, split, where)


SOURCE = Source(
    name="slurp",
    title="SLURP",
    license="CC-BY-NC-4.0 (audio); CC-BY-4.0 (text)",
    homepage="https://github.com/pswietojanski/slurp",
    tasks=("IP", "EE"),
    layout="dataset/slurp/{train,devel,test}.jsonl\ndataset/slurp/metadata.json (who says what)\n"
    "audio/slurp_real/audio-{n}[-headset].flac",
    needs=("dataset/slurp/*.jsonl", "dataset/slurp/metadata.json", "audio/slurp_real"),
    read=read,
    expected={"IP": 72_277},  # recordings; how many of their sentences name an entity is not said
    benchmark={"IP": 858, "EE": 569},
    eval_share=0.1,  # a few speakers said most of it: of fewer, too little might be left to draw from
)
