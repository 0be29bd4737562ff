"""The schema of a row of LLaSO-Align, -Instruct and -Eval.

The build writes rows; training and evaluation read them. A row holds its whole conversation (`messages`), which goes
into a chat template as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from datasets import Audio, Features, List, Value

from .audio import SAMPLE_RATE
from .tasks import MODALITIES as MODALITIES

CORPORA = ("align", "instruct", "eval")
SPLITS = ("train", "validation", "test")

FEATURES = Features(
    {
        "id": Value("string"),  # unique in the corpus, stable over rebuilds
        "corpus": Value("string"),  # one of CORPORA
        "task": Value("string"),  # code of a task (llaso_common/tasks.py), e.g. "ASR"; TEXT_TASK without audio
        "category": Value("string"),  # linguistic | semantic | paralinguistic
        "modality": Value("string"),  # one of MODALITIES; "" without audio
        "source": Value("string"),  # the corpus it came from, e.g. "vctk"
        "split": Value("string"),  # one of SPLITS
        "messages": List(
            {
                "role": Value("string"),  # system | user | assistant
                # Parts in reading order. A text part has `text`; an audio part has text None and takes the
                # next item of `audio`.
                "content": List({"type": Value("string"), "text": Value("string")}),
            }
        ),
        "audio": List(Audio(sampling_rate=SAMPLE_RATE, decode=False)),  # {"bytes": FLAC, "path": name}
        "target": Value("string"),  # the reference answer, equal to the last assistant text
        "choices": List(Value("string")),  # closed sets only; else empty
        "template_id": Value("string"),  # which instruction, e.g. "SGC/07"
        "style": Value("string"),  # standardised | contextualised | stylistic | fine_grained; "" without
        "voice": Value("string"),  # synthetic voice, or "" for a recording
        "speaker": Value("string"),  # "<source>:<speaker>" of a recording, or ""
        "duration": Value("float64"),  # seconds, all clips of the row together
        "length": Value("int32"),  # tokens after audio expansion; 0 if no processor was named
        "license": Value("string"),  # SPDX id or the source's own name
        "sha256": Value("string"),  # of the clips' bytes, joined; "" without audio
    }
)

TEXT_TASK = "TEXT"
"""The task of rows without audio, which only `data.text_path` of a recipe takes. No corpus or benchmark has it."""
TASK_DEFINITION = "task_definition"
"""The further column of a corpus with tasks of its own: the definition of the row's task as JSON; null for the
paper's.

It is a column because rows are all that `load_dataset`, a stream, a filtered or concatenated table, a copy on the Hub
and a single shard have in common: Parquet's own metadata and files beside the shards are lost on the first of these
ways. Parquet stores the repeated text once a column chunk.
"""
FEATURES_WITH_OWN_TASKS = Features({**FEATURES, TASK_DEFINITION: Value("string")})


class Part(TypedDict):
    """One part of a message: text, or the place of the next clip."""

    type: str
    text: str | None


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: list[Part]


class Clip(TypedDict):
    """An encoded clip: its bytes, or the path of its file."""

    bytes: bytes | None
    path: str | None


class Row(TypedDict, total=False):
    """One row as a table gives it. Corpora of others may lack columns; see `FEATURES` for what each holds."""

    id: str
    corpus: str
    task: str
    category: str
    modality: str
    source: str
    split: str
    messages: list[Message]
    audio: list[Clip]
    target: str
    choices: list[str]
    template_id: str
    style: str
    voice: str
    speaker: str
    duration: float
    length: int
    license: str
    sha256: str


def clean_messages(row: Row) -> list[dict[str, Any]]:
    """Return a row's messages without the empty fields that a table's fixed columns leave.

    Raises:
        ValueError: there is none, or one of them or a part of one is null, or neither text nor audio.
    """
    messages = row["messages"]
    if not messages:
        raise ValueError("it has no messages")
    for message in messages:
        if message is None or message["content"] is None:
            raise ValueError("a message of it, or its content, is null")
        for part in message["content"]:
            if part is None or part["type"] not in ("audio", "text"):
                raise ValueError(f"a part of its messages is {part and part['type']}, neither text nor audio")
            if part["type"] == "text" and part["text"] is None:
                raise ValueError("a text of its messages is null")
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "audio"} if part["type"] == "audio" else {"type": "text", "text": part["text"]}
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def clip_bytes(clip: Clip | None) -> bytes:
    """Return a clip's encoded bytes, from the row or from the file that it names.

    Raises:
        ValueError: it has neither, or the file cannot be read.
    """
    if clip is not None and clip["bytes"] is not None:
        return clip["bytes"]
    if clip is None or not clip["path"]:
        raise ValueError("a clip cannot be read: it has neither bytes nor a path")
    try:
        return Path(clip["path"]).read_bytes()
    except OSError as error:
        raise ValueError(f"a clip cannot be read: {error}") from error


TRANSCRIPT_MARK = "Transcript:"
"""Begins an answer that follows the transcript of what is heard."""
ANSWER_MARK = "Answer:"
"""Stands between the transcript and the answer."""


def after_transcript(said: str, answer: str) -> str:
    """Write an answer after the transcript of what is heard."""
    return f"{TRANSCRIPT_MARK} {said}\n{ANSWER_MARK} {answer}"


def gives_answer(text: str, answer: str) -> bool:
    """Return whether a text is an answer, or one that `after_transcript` wrote."""
    return text == answer or (text.startswith(f"{TRANSCRIPT_MARK} ") and text.endswith(f"\n{ANSWER_MARK} {answer}"))
