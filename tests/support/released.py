"""The released answers, read and measured once a process, for the tests that hold scoring to published figures."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from eval_suite import paper, readers, strict
from eval_suite.metrics import Table
from support.paths import shared_fixture

SYSTEMS = ("LLaSO-Base", "LLaSO-Base_encoder_true", "Kimi-Audio", "Qwen2-Audio", "Typhoon-Audio", "Mini-Omni")
PANEL_SYSTEMS = tuple(system for system in SYSTEMS if system != "LLaSO-Base_encoder_true")


@cache
def golden(name: str) -> dict[str, Any]:
    """A golden file."""
    return json.loads((shared_fixture("golden") / f"{name}.json").read_text(encoding="utf-8"))


@cache
def answers(system: str) -> readers.Answers:
    """The answers of one system."""
    return readers.read(shared_fixture("official_outputs") / system)


@cache
def strict_table(system: str, file: str) -> Table:
    """One file measured under strict."""
    return strict.measure(answers(system).files[file])


@cache
def paper_table(system: str, file: str) -> Table:
    """One file measured under paper."""
    return paper.measure(answers(system).files[file])
