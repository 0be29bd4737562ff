"""Maps rows of the authors' released JSON to this schema and back.

A released row is `{"id", "voice": path or [path], "conversations": [{"from": "human"|"gpt", "value": "…<audio>…"}],
"metadata": …, …}` in one list (or one object) a file, in the folders text_audio/, audio_text/ and pure_audio/. Fields
that this schema has no column for travel in a column `release`, so that the way back gives the same files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import Features, Value

from llaso_common.schema import FEATURES

RELEASE_FEATURES = Features({**FEATURES, "release": Value("string")})
"""This schema, and a JSON text of where the released row stood and of its other fields."""
FOLDERS = {"text_audio": "text_audio", "audio_text": "audio_text", "pure_audio": "audio"}
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
PLACEHOLDER = "<audio>"
"""Placeholder of a clip in a prompt; a text that contains it would break the prompt."""
ROWS_AT_ONCE = 100
OURS = ("task", "source", "split", "choices", "template_id", "style", "voice", "speaker", "license")
"""Columns that a released row has no field for: in the metadata of the rows that we export."""


def inside(root: Path, path: str) -> Path:
    """Return a path from the data below a folder; slashes and backslashes both separate.

    Raises:
        ValueError: it climbs out of the folder, or is no path.
    """
    parts = PurePosixPath(path.replace("\\", "/"))
    try:
        whole = (root / parts).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, a null byte
        raise ValueError("not a path") from error
    if parts.is_absolute() or re.match(r"[A-Za-z]:", path) or not whole.is_relative_to(root.resolve()):
        raise ValueError("the path climbs out of its folder")
    return whole


def parts_of(value: str) -> list[dict[str, str | None]]:
    """Split a turn into text and audio parts, in reading order; every character of the text is kept."""
    parts: list[dict[str, str | None]] = []
    for index, text in enumerate(value.split(PLACEHOLDER)):
        if index:
            parts.append({"type": "audio", "text": None})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def conversations_of(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Write the turns that `parts_of` read."""
    speakers = {role: name for name, role in ROLES.items()}
    return [
        {
            "from": speakers[message["role"]],
            "value": "".join(PLACEHOLDER if p["type"] == "audio" else p["text"] for p in message["content"]),
        }
        for message in messages
    ]
