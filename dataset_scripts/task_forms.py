"""How rows of each task are built: in which formats and variants. Instruction texts lie in `instructions/`."""

from __future__ import annotations

from collections.abc import Mapping

from llaso_common.tasks import TASKS

_ABOUT_A_RECORDING = {"text_audio": 0.8, "audio": 0.2}
_ABOUT_A_TEXT = {"text_audio": 0.7, "audio_text": 0.15, "audio": 0.15}
_EVEN = {"text_audio": 1.0, "audio_text": 1.0, "audio": 1.0}


def format_weights(code: str) -> dict[str, float]:
    """Return how often a task takes each of its formats: mostly a written instruction, else a spoken one.

    Formats that an item cannot take are left out when one is drawn.
    """
    if code == "AQA":
        return dict(_EVEN)
    formats = TASKS[code].formats
    weights = _ABOUT_A_TEXT if "audio_text" in formats else _ABOUT_A_RECORDING
    return {name: weights[name] for name in formats}


GRANULARITIES: Mapping[str, tuple[str, ...]] = {
    "AC": ("coarse", "fine"),
    "AR": ("coarse", "fine", "number"),
    "EIE": ("intensity", "sentiment"),
}
"""Variants of a task with labels or prompts of their own."""
