"""A quickstart that takes seconds, for the documentation to point at: real corpora, stages and report.

As a program it makes `runs/quickstart`, and `corpora` with two public ones in miniature, in the folder it is in. Its
backbones are drawn at random: training the stand-ins is what the quickstart's own test does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from support.tiny_corpus import write_public_corpora
from support.tiny_llaso import save_parts

OUT = Path("runs/quickstart")
COMMAND = "llaso quickstart --size minimum --ignore-gate"
"""Program of a second run, which finds everything done."""


def main() -> None:
    """Make the quickstart."""
    from llaso.quickstart import pipeline

    def draw_backbones(run: pipeline._Pipeline) -> dict:
        save_parts(run.out / "backbones")
        (run.out / "backbones/llama").rename(run.out / "backbones/llm")
        return {}

    pipeline._Pipeline.train_backbones = draw_backbones  # type: ignore[method-assign]
    small = {"utterances": 60, "notes": 12, "questions": 30, "eval_rows": 40, "validation_rows": 8}
    pipeline.SIZES["minimum"] = replace(pipeline.SIZES["minimum"], **small)
    assert pipeline.quickstart(OUT, pipeline.Options(size="minimum"), ignore_gate=True) == 0
    assert json.loads((OUT / "quickstart.json").read_text())["done"]["report"]
    write_public_corpora(Path("corpora"))


if __name__ == "__main__":
    main()
