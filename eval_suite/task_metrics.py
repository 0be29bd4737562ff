"""The 20 tasks of LLaSO as the evaluation sees them: what kind of answer each asks for.

`TASKS` is the whole table; a new task is one line of it. Which metric ranks a kind of answer stands in `metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["transcript", "phonemes", "closed", "label", "number", "slots", "pronunciation", "open"]
"""What an answer is: a transcript; IPA; one of the row's choices; a label whose choices the prompt does not give; a
number; text with `[type : value]` slots; scores of a pronunciation; free text for a judge."""

MODALITIES = ("text_audio", "audio_text", "audio")
CATEGORIES = ("linguistic", "semantic", "paralinguistic")


@dataclass(frozen=True)
class Scale:
    """Bounds of a task's numbers.

    `low`..`high` is the scale a missing number is charged on: it counts max(reference - low, high - reference).
    A number outside `usable` is not an answer at all.
    """

    low: float
    high: float
    usable: tuple[float, float]


@dataclass(frozen=True)
class Task:
    """One task: its code in the rows, its name, its category and how its answers are read."""

    code: str
    name: str
    category: str
    kind: Kind
    scale: Scale | None = None


_SCORE = Scale(0, 10, (0, 10))

TASKS: dict[str, Task] = {
    task.code: task
    for task in (
        Task("ASR", "speech recognition", "linguistic", "transcript"),
        Task("AQA", "audio question answering", "semantic", "open"),
        Task("SGC", "speaker gender", "paralinguistic", "closed"),
        Task("AC", "accent", "paralinguistic", "closed"),
        Task("AR", "age group", "paralinguistic", "closed"),
        # VocalSound's exact ages: rows of AR without choices. The paper keeps them apart from the age groups.
        Task("AR_years", "age in years", "paralinguistic", "number", Scale(18, 80, (0, 120))),
        Task("EIE", "emotion intensity", "paralinguistic", "closed"),
        Task("ER", "emotion", "paralinguistic", "closed"),
        Task("SSD", "synthetic speech detection", "paralinguistic", "closed"),
        Task("SV", "speaker identification", "paralinguistic", "closed"),
        Task("PSWL", "pronunciation, word level", "paralinguistic", "pronunciation", _SCORE),
        Task("PSSL", "pronunciation, sentence level", "paralinguistic", "pronunciation", _SCORE),
        Task("PR", "phoneme recognition", "paralinguistic", "phonemes"),
        Task("SCR", "speech command", "paralinguistic", "label"),
        Task("IP", "intent", "paralinguistic", "label"),
        Task("EE", "entity extraction", "paralinguistic", "slots"),
        Task("VSC", "vocal sound", "paralinguistic", "closed"),
        Task("IC", "instrument", "paralinguistic", "closed"),
        Task("ISC", "instrument source", "paralinguistic", "closed"),
        Task("PP", "pitch, MIDI", "paralinguistic", "number", Scale(0, 127, (0, 127))),
        Task("VC", "note velocity", "paralinguistic", "closed"),
    )
}

PANEL_TASKS = tuple(code for code in TASKS if code != "AR_years")
"""The 20 tasks the paper averages; ages in years are reported apart."""
