"""The card of a quickstart's model: what it is, what it was trained on, what it scored; every figure read from files.

Comes in: a finished run's folder. Goes out: Markdown with the Hub's metadata, for `llaso-tiny/README.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"


def write_card(run: str | Path) -> str:
    """The model card of a finished quickstart.

    Args:
        run: its folder, with `quickstart.json`, the corpora, `llaso-tiny` and `report`.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    run = Path(run)
    record = json.loads((run / "quickstart.json").read_text(encoding="utf-8"))
    report = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    corpora = {name: json.loads((run / f"llaso-{name}" / "build.json").read_text()) for name in ("align", "instruct")}
    corpora["eval"] = json.loads((run / "llaso-eval" / "build.json").read_text())
    model = json.loads((run / "llaso-tiny" / "config.json").read_text())
    stage1 = record["done"]["stage 1"]
    options = record["options"]
    backbones = (
        f"`{options['encoder']}` and `{options['llm']}`"
        if options["encoder"]
        else "a small Whisper-architecture encoder and a small Llama, both trained from scratch, standing in for "
        "whisper-large-v3 and Llama-3.2-3B-Instruct"
    )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        backbones=backbones,
        encoder=f"{model['audio_config']['encoder_layers']} layers of width {model['audio_config']['d_model']}",
        llm=f"{model['text_config']['num_hidden_layers']} layers of width {model['text_config']['hidden_size']}",
        stride=model["projector_stride"],
        padding=model["audio_padding"],
        corpora=_table(
            ("corpus", "rows", "hours", "sources"),
            [
                (f"llaso-{name}", f"{built['rows']:,}", f"{built['hours']:.2f}", ", ".join(built["sources"]))
                for name, built in corpora.items()
            ],
        ),
        seed=options["seed"],
        wer=f"{stage1['wer']:.3f}",
        words=stage1["wer_words"],
        gate=f"{stage1['gate_wer']:.2f}",
        scores=_table(("task", "metric", "score", "95 % interval", "baseline", "rows"), list(_scores(report))),
    )


def _scores(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for task in report["tasks"]:
        entry = task["scores"][0]
        interval = "–" if entry.get("low") is None else f"{entry['low']:.3f} to {entry['high']:.3f}"
        figures = [_number(entry.get("value")), interval, _number(entry.get("baseline"))]
        better = {"lower": " ↓", "higher": " ↑"}.get(entry.get("direction"), "")
        rows.append(
            (f"{task['task']} {task['name']}", f"{entry.get('metric', '–')}{better}", *figures, str(entry["n"]))
        )
    return rows


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
