"""Writes the dataset card of a built corpus: the text for the Hub, and the metadata that `load_dataset` reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llaso_common.schema import SPLITS
from llaso_common.tasks import CATEGORIES, MODALITIES, PAPER_TASKS, Task

from .corpus_folder import content_of
from .leakage import shared_by_nature
from .own_tasks import told_styles

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
MEANINGS = {
    "default": "everything",
    **FORMATS,
    "linguistic": "tasks about the words",
    "semantic": "tasks about the meaning",
    "paralinguistic": "tasks about speakers and sounds",
}
"""The configs and what they hold."""
MANIFEST = """> **This is a manifest.** Its rows have no audio, because some sources may not be published again.
"""
REBUILD = """> With the sources, the corpus is built again: `llaso data build` with the seed and the settings in
> `build.json` gives rows of the same `id` and `sha256`."""
FIND = """> Who has the authors' audio finds each clip by its `path`, below the folder that the release's paths
> begin in."""
CITATION = """@article{llaso2025,
  author  = {Sun, Yirong and Geng, Yizhong and Wei, Peidong and Chen, Yanjun and Yang, Jinghan and Chen, Rongfei and
             Zhang, Wei and Shen, Xiaoyu},
  title   = {LLaSO: A Foundational Framework for Reproducible Research in Large Language and Speech Model},
  journal = {arXiv preprint arXiv:2508.15418},
  year    = {2025}
}"""


def write(summary: Mapping[str, Any], address: str = "PATH", leaks: Mapping[str, Any] | None = None) -> str:
    """Write the text of README.md.

    Args:
        summary: content of build.json.
        address: what its readers give to `load_dataset`.
        leaks: content of leakage.json, which has to be clean; None leaves it out.
    """
    own = {code: Task.from_record(record) for code, record in summary.get("tasks", {}).items()}
    tasks = PAPER_TASKS | own
    counts = {tuple(name.rsplit("/", 3)): entry for name, entry in summary["counts"].items()}
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    hours: Counter[str] = Counter()
    for (source, task, modality, split), entry in counts.items():
        rows[f"task {task}"][modality] += entry["rows"]
        parts = [f"config {name}" for name in ("default", modality, tasks[task].category)]
        for part in (*parts, f"source {source}"):
            rows[part][split] += entry["rows"]
        for part in (*parts, f"source {source}", f"task {task}"):
            hours[part] += entry["hours"]
    configs = _configs(rows, summary["shards"])
    head = {
        "pretty_name": TITLES[summary["corpus"]],
        "license": "other",
        "license_name": "per-source",
        "language": ["en"],
        "task_categories": ["automatic-speech-recognition", "audio-classification", "audio-text-to-text"],
        "tags": ["llaso", "speech", "audio", "instruction-tuning"],
        "size_categories": [_size(summary["rows"])],
        "configs": configs,
    }
    splits = [split for split in SPLITS if rows["config default"][split]]
    said = ", ".join(f"{rows['config default'][split]:,} {split}" for split in splits) or "none"
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {TITLES[summary['corpus']]}",
        *([MANIFEST + (REBUILD if "settings" in summary else FIND)] if summary.get("manifest") else []),
        f"{PURPOSE[summary['corpus']].capitalize()}, after the paper [LLaSO](https://arxiv.org/abs/2508.15418). "
        f"{summary['rows']:,} rows, {summary['hours']:,.2f} hours: {said}.",
        _example(address, configs),
        "## Configs",
        "Each format and each group of tasks is a config of its own; `default` is everything.",
        _table(
            ["config", "what", *splits, "hours"],
            [
                [f"`{name}`", meaning, *(f"{rows[f'config {name}'][split]:,}" for split in splits)]
                + [f"{hours[f'config {name}']:,.2f}"]
                for name, meaning in MEANINGS.items()
                if any(name == config["config_name"] for config in configs)
            ],
        ),
        "## Tasks",
        _table(
            ["task", *MODALITIES, "hours"],
            [
                [f"{task} ({tasks[task].name})", *(f"{rows[f'task {task}'][m]:,}" for m in MODALITIES)]
                + [f"{hours[f'task {task}']:,.2f}"]
                for task in tasks
                if f"task {task}" in rows
            ],
        ),
        *([_own_tasks(own, summary)] if own else []),
        "## Sources and licences",
        _table(
            ["source", *splits, "hours", "licence", "audio may be published again", "home"],
            [
                [card["title"], *(f"{rows[f'source {name}'][split]:,}" for split in splits)]
                + [f"{hours[f'source {name}']:,.2f}", card["license"], "yes" if card["redistributable"] else "no"]
                + [card["homepage"] + (f" at {card['revision']}" if card.get("revision") else "")]
                for name, card in summary["sources"].items()
                if f"source {name}" in rows
            ],
        ),
        "The rows of a source stay under its licence, which stands in each row (`license`), as does the source itself "
        "(`source`).",
        "## How it was made",
        f"By `llaso data`, from the sources above with seed {summary['seed']}; fingerprint "
        f"`{summary['fingerprint'][:16]}`. Synthetic speech is by {summary['speech']}. Which instruction, style, "
        "voice, format and split a row has is a function of a hash of the seed and its id."
        + _transcript_first(summary.get("settings", {}).get("transcript_first", 0.0)),
        _left_out(summary),
        *([_apart(leaks)] if leaks else []),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _example(address: str, configs: Sequence[Mapping[str, Any]]) -> str:
    """Show how to load the first format of the corpus."""
    shown = next((config for config in configs if config["config_name"] in MODALITIES), None)
    chosen = f', "{shown["config_name"]}", split="{shown["data_files"][0]["split"]}"' if shown else ""
    path = address if address == "PATH" else f'"{address}"'
    return (
        "```python\nfrom datasets import load_dataset\n\n"
        f"rows = load_dataset({path}{chosen}, streaming=True)\n```\n\n"
        "A row carries its conversation (`messages`, ready for a chat template), its reference answer (`target`, "
        "`choices`) and its clips (`audio`: 16 kHz mono FLAC in a typed `Audio` column, not decoded on reading)."
    )


def _own_tasks(own: Mapping[str, Task], summary: Mapping[str, Any]) -> str:
    """Describe the tasks that the paper does not have."""
    lines = [
        "## Tasks of its own",
        "The paper does not have these tasks. Each of their rows carries the definition (column `task_definition`), "
        "and LLaSO scores the answers by it.",
    ]
    table = []
    for code, task in own.items():
        answer: str = task.answer
        if task.labels:
            answer = f"one of {', '.join(task.labels)}"
        elif task.numbers:
            answer = f"a number from {task.numbers[0]:g} to {task.numbers[1]:g}"
        told = told_styles([style for style, _ in summary["tasks"][code]["instructions"]])
        table.append([f"`{code}`", task.name, answer, told])
    return "\n\n".join([*lines, _table(["task", "name", "answer", "instructions"], table)])


def _transcript_first(share: float) -> str:
    """Say that answers follow a transcript, if a share of the training rows has such answers."""
    if not share:
        return ""
    return (
        f" In {share:.0%} of the training rows of which it is known what is said, the answer follows the transcript; "
        "`target` is the bare answer."
    )


def _left_out(summary: Mapping[str, Any]) -> str:
    """Count what the sources hold and the corpus does not."""
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


def _apart(leaks: Mapping[str, Any]) -> str:
    """Say which corpora the held-out rows were compared with."""
    if not leaks["rows_checked"]:
        return "The held-out rows have been compared with no training corpus."
    names = ", ".join(f"`{name}`" for name, entry in leaks["compared"].items() if entry["rows_checked"])
    return (
        f"The held-out rows share no audio, speaker, synthetic voice, sentence or recording with the "
        f"{leaks['rows_checked']:,} training rows of {names} (`leakage.json`){shared_by_nature(leaks)}."
    )


def _configs(rows: Mapping[str, Mapping[str, int]], shards: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the configs: `default`, one for each format and category; splits without rows are left out.

    datasets refuses a config of which one split is empty. `description` names the content: datasets keeps what it has
    read of a folder under the folder's base name and a hash of these configs, and would otherwise answer for one
    `llaso-align` with the rows of another.
    """
    content = content_of(shards)
    globs = {"default": "data/*/{split}-*.parquet"}
    globs |= {modality: f"data/{modality}/{{split}}-*.parquet" for modality in MODALITIES}
    globs |= {category: f"data/*/{{split}}-{category}-*.parquet" for category in sorted(CATEGORIES)}
    configs = []
    for name, pattern in globs.items():
        files = [
            {"split": split, "path": pattern.format(split=split)}
            for split in SPLITS
            if rows.get(f"config {name}", {}).get(split)
        ]
        if files:
            configs.append({"config_name": name, "data_files": files, "description": f"content {content[:16]}"})
    return configs


def _size(rows: int) -> str:
    """Return the Hub's size category."""
    bounds = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
    return next((name for bound, name in bounds.items() if rows < bound), "10M<n<100M")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ((" ".join(cell.split()).replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
