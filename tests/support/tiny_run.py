"""Writes a small finished quickstart: real corpora, checkpoints, scores and report, of an untrained model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import yaml

from dataset_scripts.build import build
from eval_suite.generate import generate
from eval_suite.report import write_report
from eval_suite.score import score_rows
from llaso.training.recipe.recipe import load_recipe
from llaso.training.run.history import TrainResult
from modeling_llaso.conversion import new_model
from support.tiny_corpus import SOURCE, VOICES, write_recordings
from support.tiny_llaso import save_parts


def guess(requests) -> list[str]:
    """Return this system's answer: its first choice, or a word; wrong as often as not."""
    return [request.row.choices[0] if request.row.choices else "sentence" for request in requests]


def write_run(root: Path) -> Path:
    """Write the folder of a quickstart as `llaso quickstart` leaves it, without the encoder's cache and clips.

    Args:
        root: an empty folder; the run is its `run`.
    """
    run = root / "run"
    source = SOURCE.at(write_recordings(root / "tiny"), notes=12, questions=0)
    before: list[Path] = []
    for corpus in ("align", "instruct", "eval"):
        folder = run / f"llaso-{corpus}"
        build(
            corpus, [source], folder, clips=root / "clips", voices=VOICES, rows_per_shard=20, eval_rows=30,
            validation_rows=6, against=before if corpus == "eval" else (),
        )  # fmt: skip
        before.append(folder)
    encoder, llm = save_parts(run / "backbones")
    model, processor = new_model(str(encoder), str(llm), audio_padding="trim")
    write_stage(
        run / "stage1", model, processor, "quickstart_stage1",
        [f"model.encoder={encoder}", f"model.llm={llm}", f"data.path={run / 'llaso-align'}"],
        TrainResult(str(run / "stage1"), 11, 1.25, 0.0625, 320, 0.1, 3.5, 0),
    )  # fmt: skip
    write_stage(
        run / "llaso-tiny", model, processor, "quickstart_stage2",
        [f"model.checkpoint={run / 'stage1'}", f"data.path={run / 'llaso-instruct'}"],
        TrainResult(str(run / "llaso-tiny"), 23, 0.75, None, 0, None, 4.5, 0),
    )  # fmt: skip
    generate(guess, str(run / "llaso-eval"), run / "predictions", progress=False)
    scored = score_rows(run / "predictions", protocol="strict", system="llaso-tiny", resamples=100)
    write_report([scored], run / "report", data=run / "llaso-eval", examples=False, title="A tiny run")
    (run / "quickstart.json").write_text(json.dumps({"options": {"encoder": "", "llm": "", "seed": 0}, "done": {}}))
    return run


def write_stage(folder: Path, model, processor, recipe: str, overrides: list[str], result: TrainResult) -> None:
    """Write what `llaso train` leaves behind."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    settings = load_recipe(recipe, [*overrides, f"out={folder}"])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings.to_dict(), sort_keys=False))
    (folder / "training.json").write_text(json.dumps(asdict(result)))
    (folder / "loss.png").write_bytes(b"\x89PNG of a curve")
