"""The twenty tasks of LLaSO: what each asks for, how it is answered, and in which formats it can be posed.

The table follows the paper's Table 2 (arXiv 2508.15418); instruction texts lie in `instructions/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

CLOSED, OPEN, NUMBER = "closed", "open", "number"

AUDIO_INPUT = MappingProxyType({"text_audio": 0.8, "audio": 0.2})
"""How often a task about a recording takes each format: mostly a written instruction, else a spoken one."""
TEXT_INPUT = MappingProxyType({"text_audio": 0.7, "audio_text": 0.15, "audio": 0.15})
"""The same for tasks that can also be asked of text (spoken instruction, written input)."""
QUESTION = MappingProxyType({"text_audio": 1.0, "audio_text": 1.0, "audio": 1.0})
WRITTEN = MappingProxyType({"text_audio": 1.0})
"""A synthetic voice asking would give the answer away, or drown it."""


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        code: its short name, e.g. "SGC".
        name: its name in words.
        category: linguistic, semantic or paralinguistic.
        answer: CLOSED (one of the row's choices), OPEN (free text) or NUMBER.
        formats: weight of each modality format; those an item cannot take are left out when one is drawn.
        low, high: bounds of a number.
        granularities: variants with labels or prompts of their own.
    """

    code: str
    name: str
    category: str
    answer: str
    formats: Mapping[str, float] = field(default_factory=lambda: AUDIO_INPUT)
    low: int = 0
    high: int = 0
    granularities: tuple[str, ...] = ()


TASKS: dict[str, Task] = {
    task.code: task
    for task in (
        Task("ASR", "automatic speech recognition", "linguistic", OPEN),
        Task("AQA", "audio question answering", "semantic", OPEN, QUESTION),
        Task("SGC", "speaker gender classification", "paralinguistic", CLOSED),
        Task("AC", "accent classification", "paralinguistic", CLOSED, granularities=("coarse", "fine")),
        Task(
            "AR",
            "age recognition",
            "paralinguistic",
            CLOSED,
            low=18,
            high=80,
            granularities=("coarse", "fine", "number"),
        ),
        Task(
            "EIE", "emotion intensity estimation", "paralinguistic", CLOSED, granularities=("intensity", "sentiment")
        ),
        Task("ER", "emotion recognition", "paralinguistic", CLOSED),
        Task("SSD", "synthetic speech detection", "paralinguistic", CLOSED, WRITTEN),
        Task("SV", "speaker identification", "paralinguistic", CLOSED),
        Task("PSWL", "pronunciation scoring, word level", "paralinguistic", OPEN),
        Task("PSSL", "pronunciation scoring, sentence level", "paralinguistic", OPEN),
        Task("PR", "phoneme recognition", "paralinguistic", OPEN, TEXT_INPUT),
        Task("SCR", "speech command recognition", "paralinguistic", OPEN),
        Task("IP", "intent prediction", "paralinguistic", OPEN, TEXT_INPUT),
        Task("EE", "entity extraction", "paralinguistic", OPEN, TEXT_INPUT),
        Task("VSC", "vocal sound classification", "paralinguistic", CLOSED),
        Task("IC", "instrument classification", "paralinguistic", CLOSED),
        Task("ISC", "instrument source classification", "paralinguistic", CLOSED),
        Task("PP", "pitch prediction", "paralinguistic", NUMBER, low=0, high=127),
        Task("VC", "velocity classification", "paralinguistic", CLOSED),
    )
}
