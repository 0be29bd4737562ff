"""`sources.yaml`: which corpora lie where, and how to build from them.

A source is a name and a folder, or a name and a mapping of its folder (`path`) and options. Paths are relative to the
file. The other keys are those of `plan.Settings`, and `slurm` and `ray` for the executors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from .plan import Settings
from .sources import base

SETTINGS = {field.name for field in fields(Settings)} - {"corpus", "seed", "limit"}
EXECUTORS = {"slurm", "ray"}


@dataclass(frozen=True)
class SourcesFile:
    """What a sources file says: sources at their folders, settings of the build, options of the executors."""

    sources: list[base.Source]
    settings: dict[str, Any]
    executors: dict[str, dict[str, Any]]


def read(path: Path) -> SourcesFile:
    """Read a sources file.

    Raises:
        ValueError: it is not YAML, names an unknown source or setting, or a source without a folder.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("sources"), dict) or not content["sources"]:
        raise ValueError(f"{path}: say which corpora to read, as\nsources:\n  librispeech: /data/LibriSpeech")
    if unknown := set(content) - {"sources"} - SETTINGS - EXECUTORS:
        known = ", ".join(sorted({"sources"} | SETTINGS | EXECUTORS))
        raise ValueError(f"{path}: unknown key {', '.join(sorted(unknown))}; there are {known}")
    sources = []
    for name, entry in content["sources"].items():
        options = dict(entry) if isinstance(entry, dict) else {"path": entry}
        folder = options.pop("path", None)
        if not isinstance(folder, str):
            raise ValueError(f"{path}: sources: {name}: say its folder, as `{name}: /data/{name}`")
        sources.append(base.load(name).at(path.parent / folder, **options))
    return SourcesFile(
        sources,
        {key: value for key, value in content.items() if key in SETTINGS},
        {key: content.get(key) or {} for key in EXECUTORS},
    )
