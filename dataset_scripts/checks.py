"""Checks a single row: its text, its labels, its shard and its audio.

Takes a row with its audio undecoded; gives faults as "kind: detail". Nothing in a row, however broken, raises.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import soundfile

from llaso_common.audio import SAMPLE_RATE, AudioError, SilentAudio, audio_blocks
from llaso_common.schema import FEATURES, SPLITS, gives_answer
from llaso_common.tasks import MODALITIES, task_of

from .release import PLACEHOLDER

CLIPPED_SHARE = 0.001
"""A clip is clipped when more of its samples than this lie at full scale."""
FULL_SCALE = 1 - 2 / 32768
"""Amplitude from which a sample is at full scale."""
LENGTH_TOLERANCE = 0.01
"""Seconds by which a row's stated duration may differ from its audio."""


def faults_of(
    row: Mapping[str, Any],
    *,
    manifest: bool = False,
    shard: str = "",
    sources: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[str]:
    """Return what is wrong with a row by itself.

    Args:
        row: the row, audio undecoded.
        manifest: whether the corpus says that it has no audio, so that its presence is the fault.
        shard: name of the shard it lies in, "" if that does not matter.
        sources: the entry `sources` of build.json, None if there is none.
    """
    if absent := list(missing(row)):
        yield f"missing value: {', '.join(absent)}"
        return
    yield from _misplaced(row, shard, sources)
    yield from _bad_text(row)
    yield from _bad_answer(row)
    if not (math.isfinite(row["duration"]) and row["duration"] >= 0):
        yield f"duration: {row['duration']} s stated"
    if manifest:
        yield from (f"audio in a manifest: {clip['path']}" for clip in row["audio"] if clip["bytes"])
    else:
        yield from _bad_audio(row)


def missing(row: Mapping[str, Any]) -> Iterator[str]:
    """Return the columns read that are null, or hold a null although a value is needed."""
    for name in FEATURES:
        if row.get(name, ...) is None:
            yield name
    for message in row["messages"] or ():
        parts = message["content"] if message else None
        if not message or message["role"] is None or parts is None:
            yield "messages"
        elif not all(part and part["type"] and (part["type"] != "text" or part["text"] is not None) for part in parts):
            yield "messages.content"
    if any(clip is None for clip in row.get("audio") or ()):
        yield "audio"
    if any(choice is None for choice in row["choices"] or ()):
        yield "choices"


def _misplaced(row: Mapping[str, Any], shard: str, sources: Mapping[str, Mapping[str, Any]] | None) -> Iterator[str]:
    """Names that are unknown, and a row in a shard whose name promises something else."""
    task = task_of(row)
    if task is None:
        yield f"unknown task: {row['task']!r}"
    elif row["category"] != task.category:
        yield f"category: {row['task']} is {task.category}, not {row['category']!r}"
    for name, known in (("modality", MODALITIES), ("split", SPLITS)):
        if row[name] not in known:
            yield f"unknown {name}: {row[name]!r}"
    if sources is not None and row["source"] not in sources:
        yield f"unknown source: {row['source']!r}"
    elif sources is not None and row["license"] != sources[row["source"]]["license"]:
        yield f"licence: {row['license']!r} is not that of {row['source']}"
    if shard and not shard.startswith(f"{row['modality']}.{row['split']}-{row['category']}-"):
        yield f"in the wrong file: {row['modality']}, {row['split']}, {row['category']}"


def _bad_text(row: Mapping[str, Any]) -> Iterator[str]:
    """Turns that say nothing, or that a prompt cannot be made of; and whether placeholders and clips agree."""
    parts = [part for message in row["messages"] for part in message["content"]]
    for message in row["messages"]:
        if message["role"] not in ("system", "user", "assistant"):
            yield f"unknown role: {message['role']!r}"
        said = "".join(part["text"] or "" for part in message["content"] if part["type"] == "text")
        if not said.strip() and not any(part["type"] == "audio" for part in message["content"]):
            yield "empty text"
    if unknown := {part["type"] for part in parts} - {"text", "audio"}:
        yield f"unknown part: {', '.join(sorted(map(repr, unknown)))}"
    if any(part["type"] == "text" and PLACEHOLDER in part["text"] for part in parts):
        yield f"text holds {PLACEHOLDER}"
    placeholders = sum(part["type"] == "audio" for part in parts)
    if placeholders != len(row["audio"]):
        yield f"audio count: {placeholders} placeholders for {len(row['audio'])} clips"


def _bad_answer(row: Mapping[str, Any]) -> Iterator[str]:
    """Answers that are empty, elsewhere, or outside the set of a task that this project's prompts ask."""
    target = row["target"]
    if not target.strip():
        yield "empty target"
    last: Mapping[str, Any] = row["messages"][-1] if row["messages"] else {"role": "", "content": []}
    texts = [part["text"] or "" for part in last["content"]]
    if last["role"] != "assistant" or len(texts) != 1 or not gives_answer(texts[0], target):
        yield "target is not the last answer"
    task = task_of(row)
    if row["choices"]:
        if target not in row["choices"]:
            yield f"target not among choices: {target!r}"
        if task and task.labels and sorted(row["choices"]) != sorted(task.labels):
            yield f"choices: {', '.join(row['choices'])} are not the labels of {task.code}"
    elif row["template_id"] and task:
        if task.numbers:
            low, high = task.numbers
            if not task.holds(target):
                yield f"target not a number from {low:g} to {high:g}: {target!r}"
        elif task.answer == "closed":
            yield "no choices for a closed set"


def _bad_audio(row: Mapping[str, Any]) -> Iterator[str]:
    """Clips that are absent, broken, silent or clipped, or not what the row says of them."""
    heard, whole = 0.0, True
    for clip in row["audio"]:
        if not clip["bytes"]:
            yield f"no audio: {clip['path']}"
            whole = False
            continue
        samples = full = 0
        try:
            with soundfile.SoundFile(io.BytesIO(clip["bytes"])) as file:
                rate, channels = file.samplerate, file.channels
            if rate != SAMPLE_RATE or channels != 1:
                yield f"audio format: {rate} Hz, {channels} channels"
            for block in audio_blocks(clip["bytes"], rate):
                samples += len(block)
                full += int((np.abs(block) >= FULL_SCALE).sum())
            if full > CLIPPED_SHARE * samples:
                yield "clipped audio"
        except SilentAudio:
            yield "silent audio"
        except (AudioError, soundfile.LibsndfileError) as error:
            yield f"undecodable audio: {error.reason if isinstance(error, AudioError) else error.error_string}"
            whole = False
            continue
        heard += samples / rate
    if row["audio"] and whole:
        if not abs(heard - row["duration"]) <= LENGTH_TOLERANCE:
            yield f"duration: {row['duration']} s stated, {heard:.3f} s heard"
        if row["sha256"] != sha256(b"".join(clip["bytes"] for clip in row["audio"])).hexdigest():
            yield "sha256: not that of the audio"
