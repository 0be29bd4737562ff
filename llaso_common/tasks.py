"""The twenty tasks of LLaSO: code, names, category, kind of answer and formats, said once.

The table follows the paper's Table 2 (arXiv 2508.15418). How rows of a task are built is said in
`dataset_scripts/task_forms.py`, how its answers are scored in `eval_suite/task_metrics.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MODALITIES = ("text_audio", "audio_text", "audio")
"""Modality formats: X(t,a) text instruction + audio; X(a,t) spoken instruction + text; X(a) audio alone."""
CATEGORIES = ("linguistic", "semantic", "paralinguistic")

AnswerKind = Literal["transcript", "phonemes", "closed", "label", "number", "slots", "pronunciation", "open"]
"""What an answer is: a transcript; IPA; one of the row's choices; a label whose choices the prompt does not give; a
number; text with `[type : value]` slots; scores of a pronunciation; free text for a judge."""


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        code: as rows name it, e.g. "SGC".
        name: in the paper's words.
        short_name: for tables.
        category: one of `CATEGORIES`.
        answer: what an answer is.
        formats: the modality formats that it can be posed in.
        numbers: bounds of its answers if they are, or may be, numbers.
    """

    code: str
    name: str
    short_name: str
    category: str
    answer: AnswerKind
    formats: tuple[str, ...] = ("text_audio", "audio")
    numbers: tuple[int, int] | None = None


_PARA = "paralinguistic"

TASKS: dict[str, Task] = {
    task.code: task
    for task in (
        Task("ASR", "automatic speech recognition", "speech recognition", "linguistic", "transcript"),
        Task("AQA", "audio question answering", "audio question answering", "semantic", "open", MODALITIES),
        Task("SGC", "speaker gender classification", "speaker gender", _PARA, "closed"),
        Task("AC", "accent classification", "accent", _PARA, "closed"),
        # Age groups; some rows ask for years instead.
        Task("AR", "age recognition", "age group", _PARA, "closed", numbers=(18, 80)),
        Task("EIE", "emotion intensity estimation", "emotion intensity", _PARA, "closed"),
        Task("ER", "emotion recognition", "emotion", _PARA, "closed"),
        # A synthetic voice that asks would give the answer away, or drown it.
        Task("SSD", "synthetic speech detection", "synthetic speech detection", _PARA, "closed", ("text_audio",)),
        Task("SV", "speaker identification", "speaker identification", _PARA, "closed"),
        Task("PSWL", "pronunciation scoring, word level", "pronunciation, word level", _PARA, "pronunciation"),
        Task("PSSL", "pronunciation scoring, sentence level", "pronunciation, sentence level", _PARA, "pronunciation"),
        Task("PR", "phoneme recognition", "phoneme recognition", _PARA, "phonemes", MODALITIES),
        Task("SCR", "speech command recognition", "speech command", _PARA, "label"),
        Task("IP", "intent prediction", "intent", _PARA, "label", MODALITIES),
        Task("EE", "entity extraction", "entity extraction", _PARA, "slots", MODALITIES),
        Task("VSC", "vocal sound classification", "vocal sound", _PARA, "closed"),
        Task("IC", "instrument classification", "instrument", _PARA, "closed"),
        Task("ISC", "instrument source classification", "instrument source", _PARA, "closed"),
        Task("PP", "pitch prediction", "pitch, MIDI", _PARA, "number", numbers=(0, 127)),
        Task("VC", "velocity classification", "note velocity", _PARA, "closed"),
    )
}
