"""Checks the columns of a corpus before a row of it is read: those of the schema that training needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import datasets

Feature = Any
"""One of datasets' column types."""


def _is_text(feature: Feature) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_number(feature: Feature) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float", "null"))


def _lists(feature: Feature, of: Callable[[Feature], bool]) -> bool:
    return isinstance(feature, datasets.List | datasets.LargeList) and of(feature.feature)


def _is_part(feature: Feature) -> bool:
    return isinstance(feature, dict) and all(_is_text(feature.get(name)) for name in ("type", "text"))


def _is_message(feature: Feature) -> bool:
    return isinstance(feature, dict) and _is_text(feature.get("role")) and _lists(feature.get("content"), _is_part)


def _is_clip(feature: Feature) -> bool:
    return isinstance(feature, datasets.Audio) or isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()


TEXT: tuple[Callable[[Feature], bool], str] = (_is_text, "text")
NUMBER: tuple[Callable[[Feature], bool], str] = (_is_number, "a number")
TYPES: dict[str, tuple[Callable[[Feature], bool], str]] = {
    "id": TEXT,
    "task": TEXT,
    "modality": TEXT,
    "messages": (
        lambda feature: _lists(feature, _is_message),
        "a list of messages, each a `role` and a `content` that is a list of parts of `type` and `text`",
    ),
    "audio": (lambda feature: _lists(feature, _is_clip), "a list of clips, each `bytes` and a `path`"),
    "target": TEXT,
    "duration": NUMBER,
    "length": NUMBER,
}
"""What each column holds, as a check and in words."""
NEEDED = ("id", "task", "modality", "messages", "audio", "target")
"""Columns without which a row cannot be learned from."""


def checked_columns(features: Mapping[str, Feature], where: str) -> list[str]:
    """Check a corpus's columns, and return those that training reads; the others stay on disk.

    Args:
        features: the corpus's.
        where: its name, for messages.

    Raises:
        ValueError: a column is missing, or holds something else.
    """
    if missing := [name for name in NEEDED if name not in features]:
        raise ValueError(
            f"{where}: no column {', '.join(missing)}; a corpus to train on has {', '.join(NEEDED)} (the schema of "
            "dataset_scripts)"
        )
    for name, (fits, words) in TYPES.items():
        if name in features and not fits(features[name]):
            raise ValueError(f"{where}: column `{name}` is {features[name]}, not {words}")
    return [name for name in TYPES if name in features]
