"""The dataset card of a built corpus: what a person reads on the Hub, and what `load_dataset` reads in its head."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import yaml

from .schema import MODALITIES, SPLITS
from .tasks import TASKS

TITLES = {"align": "LLaSO-Align", "instruct": "LLaSO-Instruct", "eval": "LLaSO-Eval"}
PURPOSE = {
    "align": "speech recognition cast as instruction following, for the first training stage",
    "instruct": "twenty speech and audio tasks in three modality formats, for the second training stage",
    "eval": "a stratified held-out benchmark over the same tasks and formats",
}
FORMATS = {
    "text_audio": "written instruction, audio input",
    "audio_text": "spoken instruction, written input",
    "audio": "audio alone: the instruction is spoken too",
}
CITATION = """@article{llaso2025,
  title   = {LLaSO: A Foundational Framework for Reproducible Research in Large Language and Speech Model},
  journal = {arXiv preprint arXiv:2508.15418},
  year    = {2025}
}"""


def write(summary: Mapping[str, Any], out: Path, note: str = "") -> str:
    """The text of README.md.

    Args:
        summary: content of build.json.
        out: the corpus folder; its configs list the files that are there.
        note: what a reader is to know before all else.
    """
    counts = {tuple(name.split("/")): entry for name, entry in summary["counts"].items()}
    head = {
        "pretty_name": TITLES[summary["corpus"]],
        "license": "other",
        "license_name": "per-source",
        "language": ["en"],
        "task_categories": ["automatic-speech-recognition", "audio-classification", "audio-text-to-text"],
        "tags": ["llaso", "speech", "audio", "instruction-tuning"],
        "size_categories": [_size(summary["rows"])],
        "configs": _configs(out, summary["shards"]),
    }
    by_task: dict[str, Counter[str]] = defaultdict(Counter)
    by_source: dict[str, Counter[str]] = defaultdict(Counter)
    hours: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    for (source, task, modality, split), entry in counts.items():
        by_task[task][modality] += entry["rows"]
        by_source[source]["rows"] += entry["rows"]
        hours[source] += entry["hours"]
        splits[split] += entry["rows"]
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        *[f"> {note}"] * bool(note),
        f"# {TITLES[summary['corpus']]}",
        f"{PURPOSE[summary['corpus']].capitalize()} (arXiv 2508.15418). {summary['rows']:,} rows, "
        f"{summary['hours']:,.2f} hours: {', '.join(f'{splits[s]:,} {s}' for s in SPLITS if splits[s])}. "
        f"Seed {summary['seed']}, spoken by {summary['speech']}.",
        "```python\nfrom datasets import load_dataset\n\n"
        'rows = load_dataset(PATH, "text_audio", split="'
        + next(s for s in SPLITS if splits[s])
        + '", streaming=True)\n```\n'
        "Audio is 16 kHz mono FLAC in a typed `Audio` column that is not decoded on reading.",
        "## Formats and tasks",
        _table(
            ["task", *FORMATS],
            [
                [f"{task} ({TASKS[task].name})", *(f"{by_task[task][m]:,}" for m in MODALITIES)]
                for task in sorted(by_task)
            ],
        ),
        "\n".join(f"- `{name}`: {meaning}" for name, meaning in FORMATS.items()),
        "## Sources and licences",
        _table(
            ["source", "rows", "hours", "licence", "home"],
            [
                [s["title"], f"{by_source[name]['rows']:,}", f"{hours[name]:,.2f}", s["license"], s["homepage"]]
                for name, s in summary["sources"].items()
                if by_source[name]["rows"]
            ],
        ),
        "Each row names its source and licence. Which instruction, style, voice, format and split a row has is a "
        "function of a hash of the seed and its id.",
        "## What was left out",
        _left_out(summary),
        f"## Citation\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def digests(out: Path) -> dict[str, dict[str, Any]]:
    """The entry `shards` of build.json, by reading the files: their digests and sizes."""
    shards = {}
    for path in sorted(out.glob("data/*/*.parquet")):
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        shards[f"{path.parent.name}.{path.stem}"] = {"sha256": digest, "bytes": path.stat().st_size}
    return shards


def _left_out(summary: Mapping[str, Any]) -> str:
    """What the sources hold and the corpus does not, counted."""
    said = [
        f"{sum(summary['rejects'].values()):,} entries were set aside while building (`rejects.jsonl` lists each with "
        "its reason)"
    ]
    if limit := summary.get("limit"):
        said.append(f"it was built under a limit of {limit:,} rows, which left out more than is counted here")
    if set_aside := summary.get("set_aside", 0):
        said.append(f"{set_aside:,} rows were set aside by validation")
    if dropped := sum(summary["dropped"].values()):
        said.append(
            f"{dropped:,} training rows were dropped because they share a speaker, a sentence or a recording with "
            "held-out rows (`leakage.json` holds the comparison)"
        )
    if held_back := sum(summary["held_back"].values()):
        said.append(
            f"{held_back:,} rows of held-out speakers and sentences are in no split, because their quota was full or "
            "another corpus draws from them (`held_back` in `build.json` counts them)"
        )
    return "; ".join(said) + "."


def _configs(out: Path, shards: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`default` with everything, one config a format and one a category; only files that are there are named.

    `description` names the content: datasets keeps what it has read of a folder under the folder's base name and a
    hash of these configs, and would otherwise answer for one `llaso-align` with the rows of another.
    """
    content = sha256(
        json.dumps(sorted((name, shard["sha256"]) for name, shard in shards.items())).encode()
    ).hexdigest()
    globs = {"default": "data/*/{split}-*.parquet"}
    globs |= {modality: f"data/{modality}/{{split}}-*.parquet" for modality in MODALITIES}
    categories = sorted({task.category for task in TASKS.values()})
    globs |= {category: f"data/*/{{split}}-{category}-*.parquet" for category in categories}
    configs = []
    for name, pattern in globs.items():
        paths = {split: pattern.format(split=split) for split in SPLITS}
        files = [{"split": split, "path": path} for split, path in paths.items() if next(out.glob(path), None)]
        if files:
            configs.append({"config_name": name, "data_files": files, "description": f"content {content[:16]}"})
    return configs


def _size(rows: int) -> str:
    """The Hub's size category."""
    bounds = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
    return next((name for bound, name in bounds.items() if rows < bound), "10M<n<100M")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
