"""LLaSO's tasks for inspect-ai: `inspect eval llaso/asr -T data=CORPUS --model MODEL`.

One task a task code, in lower case. Rows come from a corpus in the row schema, a folder or a Hub data set; the scores
are those of `llaso eval score` under strict, computed by the same code over all rows together. Found by inspect
through the entry point of this package.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Content,
    ContentAudio,
    ContentText,
    GenerateConfig,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import TaskState, generate

from eval_suite.corpus import EvalCorpus, Question, digest, encode_wav
from eval_suite.readers import task_of
from eval_suite.task_metrics import TASKS
from llaso_common.atomic_write import write_atomically
from llaso_common.audio import SAMPLE_RATE, read_audio

from .answers import facts_of, scored_row, strict_metrics

MAX_TOKENS = 256
MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def _clip_file(encoded: bytes) -> str:
    """Return the path of a clip as WAV, which inspect sends to models, in the cache of data sets."""
    from datasets import config

    path = Path(config.HF_DATASETS_CACHE) / "llaso" / "clips" / f"{digest(encoded.hex())[:32]}.wav"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, encode_wav(read_audio(encoded, name=path.name), SAMPLE_RATE))
    return str(path)


def _sample(corpus: EvalCorpus, question: Question) -> Sample:
    clips = iter(corpus.clips(question.index))
    messages: list[ChatMessage] = []
    for message in question.messages:
        content: list[Content] = [
            ContentAudio(audio=_clip_file(next(clips)), format="wav")
            if part["type"] == "audio"
            else ContentText(text=part["text"])
            for part in message["content"]
        ]
        messages.append(MESSAGES[message["role"]](content=content))
    return Sample(input=messages, target=question.reference, id=question.id, metadata=facts_of(question))


@metric
def strict_scores() -> Metric:
    """Return the metrics of a task over all its rows; one that is undefined is left out."""

    def compute(scores: list[SampleScore]) -> Value:
        answers = [(one.sample_metadata or {}, (one.score.metadata or {})["answer"]) for one in scores]
        (values,) = strict_metrics(answers).values()
        return {name: value for name, value in values.items() if math.isfinite(value)} | {"rows": len(scores)}

    return compute


@scorer(metrics=[strict_scores()])
def strict() -> Scorer:
    """Return a scorer that gives the outcome of each answer and the value parsed from it."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        reading = scored_row(state.metadata, answer).reading
        return Score(value=reading.outcome, answer=str(reading.parsed), metadata={"answer": answer})

    return score


def _register(code: str) -> None:
    @task(name=code.lower())
    def llaso_task(data: str, config: str | None = None, split: str = "test", **generation: Any) -> Task:
        corpus = EvalCorpus(data, config, split)
        asked = [row for row in corpus.rows if task_of(row.task, row.choices) == code]
        if not asked:
            raise ValueError(f"{data}: no row of task {code} (config {config or 'default'}, split {split})")
        return Task(
            dataset=MemoryDataset([_sample(corpus, row) for row in asked], name=data),
            solver=generate(),
            scorer=strict(),
            config=GenerateConfig(**{"temperature": 0.0, "max_tokens": MAX_TOKENS} | generation),
        )


for _code in TASKS:
    _register(_code)
