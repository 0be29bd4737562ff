"""Asks a model every row of a corpus and writes the predictions folder that scoring reads.

Rows are ordered by length and cut into batches once, by content alone; a batch is the unit of work, of recording
and of recovery. Killed at any moment and started again, with any number of processes, the command asks only for what
is missing and writes the bytes that an undisturbed run would have written; only the timings differ.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from llaso_common.atomic_write import write_atomically
from llaso_common.audio import read_audio

from .answer_records import GENERATION, Records, Reply, write_predictions
from .backends import AnswerBackend, CallableBackend, EndpointBackend, GenerationSettings, Request, TransformersBackend
from .corpus import EvalCorpus, Question, digest
from .endpoint import ChatEndpoint
from .speed import SPEED, summarize_speed

logger = logging.getLogger(__name__)

SAME_FAILURES = 64
"""The run stops if this many first rows all fail for the same reason: the set-up is then at fault."""


def generate(
    model: str | Path | Callable[[Sequence[Request]], Sequence[str]] | AnswerBackend,
    data: str | Path,
    out: str | Path,
    *,
    split: str = "test",
    config: str | None = None,
    limit: int | None = None,
    endpoint: str | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    samples: int = 1,
    wordings: int = 1,
    seed: int = 0,
    system: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    retry_errors: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Answer every row of `data` and write the predictions folder `out`.

    Args:
        model: a checkpoint folder or Hub id for `AutoModelForMultimodalLM`; a function from a list of `Request`s to
            a list of texts; a `AnswerBackend`; or, with `endpoint`, the name of the served model.
        data: a corpus folder or Hub id in the row schema.
        out: where predictions go; holds the append-only records as well.
        split: which split of the data.
        config: which config of the data, e.g. a modality format; the default one by default.
        limit: answer only so many rows, picked by a digest of their id.
        endpoint: base address of an OpenAI-compatible chat server with audio input.
        batch_size: rows asked at once (requests in flight, for an endpoint). Halved if memory runs out.
        max_new_tokens: the longest answer, in tokens.
        temperature: 0 for greedy decoding.
        samples: answers to each row; more than one needs a temperature. See `EvalCorpus.asked`.
        wordings: instructions that each row is asked under, its own and others of its task.
        seed: of sampling.
        system: a system prompt in place of the rows' own.
        revision: of the model on the Hub, or a label for what an endpoint serves.
        dtype: of the weights, as stored by default.
        device: where the model runs; by default this process's accelerator, else the CPU.
        trust_remote_code: run model code that travels with the checkpoint.
        attn_implementation: the model's own choice by default.
        retry_errors: ask rows again that failed in an earlier run.
        overwrite: replace finished predictions of another model, settings or data; write to a folder that holds
            something else.
        progress: show a bar with the time left.

    Returns:
        `out`. In a process of rank 1 or more it may still be on its way to being complete.

    Raises:
        ValueError: data or model cannot be used, or the first rows all fail for one reason.
        ConnectionError: the endpoint cannot be reached.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if samples < 1 or wordings < 1:
        raise ValueError(f"samples is {samples} and wordings {wordings}; both must be at least 1")
    if samples > 1 and temperature <= 0:
        raise ValueError(f"{samples} samples of greedy decoding are all alike; give a temperature, e.g. 0.7")
    settings = GenerationSettings(max_new_tokens, temperature, seed, system)
    backend: AnswerBackend
    if endpoint is not None:
        backend = EndpointBackend(ChatEndpoint(endpoint, str(model)), settings, revision or "served")
    elif isinstance(model, (str, Path)):
        backend = TransformersBackend(
            model,
            settings,
            hub_revision=revision,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            attn_implementation=attn_implementation,
        )
    elif callable(model):
        backend = CallableBackend(model, settings)
    else:
        backend = model
    run = GenerationRun(
        backend, EvalCorpus(data, config, split, limit), Path(out), batch_size, progress, samples, wordings, overwrite
    )
    return run.complete(retry_errors)


class GenerationRun:
    """One backend, one corpus, one predictions folder; see `generate` for the arguments."""

    def __init__(
        self,
        backend: AnswerBackend,
        corpus: EvalCorpus,
        out: Path,
        batch_size: int = 16,
        progress: bool = True,
        samples: int = 1,
        wordings: int = 1,
        overwrite: bool = False,
    ):
        self.backend, self.corpus, self.out, self.progress = backend, corpus, out, progress
        if not corpus.rows:
            raise ValueError(f"{corpus.data}: split {corpus.split} holds no row")
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.batch_size, self.samples, self.wordings = batch_size, samples, wordings
        self.rows = corpus.asked(samples, wordings)
        self.records = Records(out, overwrite=overwrite)
        self.revision = backend.revision()
        made_by = [backend.name, self.revision, dataclasses.asdict(backend.settings)]
        self.keys = {row.id: digest(row.id, row.digest, made_by) for row in self.rows}
        ordered = sorted(self.rows, key=lambda row: (-row.duration, -len(row.instruction), row.id))
        self.batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
        self._failures: dict[str, int] = {}
        self._successes = 0
        if not overwrite:
            self.refuse_answers_of_another()

    def refuse_answers_of_another(self) -> None:
        """Raise ValueError if `out` holds finished predictions that this run would overwrite with others."""
        file = self.out / GENERATION
        if not file.exists():
            return
        was = json.loads(file.read_text(encoding="utf-8"))
        now: dict[str, Any] = {
            "model": self.backend.name,
            "revision": self.revision,
            "settings": dataclasses.asdict(self.backend.settings),
            "data": self._data(),
        }
        if all(was["data"][name] == now["data"][name] for name in ("path", "config", "split")):
            now["data"] = was["data"]  # more rows of it, or fewer, are no other data
        changed = [name for name, value in now.items() if was[name] != value]
        if changed:
            raise ValueError(
                f"{self.out} holds the answers of {was['model']} with another {' and '.join(changed)}; choose another "
                "folder, or replace them with --overwrite"
            )

    def _data(self) -> dict[str, Any]:
        return {
            "path": self.corpus.data,
            "config": self.corpus.config,
            "split": self.corpus.split,
            "limit": self.corpus.limit,
            "digest": digest([[row.id, row.digest] for row in self.corpus.rows]),
        }

    def complete(self, retry_errors: bool = False) -> Path:
        """Answer what is missing; write the predictions once nothing is."""
        done = self.records.read(keep_errors=not retry_errors)
        mine = [
            batch
            for number, batch in enumerate(self.batches)
            if number % self.world == self.rank and any(self.keys[row.id] not in done for row in batch)
        ]
        self._wait_until_all_have_read()
        try:
            self._answer_all(mine)
        finally:
            self.records.close()
        if self.rank == 0:
            self._write(self._wait_for_the_others())
        return self.out

    def _wait_until_all_have_read(self) -> None:
        """Wait until all processes have read the same records, so that all divide the work alike."""
        if self.world > 1:
            import torch
            from accelerate import PartialState

            PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()

    def _answer_all(self, batches: list[list[Question]]) -> None:
        rows = sum(len(batch) for batch in batches)
        if not rows:
            return
        self.backend.load()
        self.records.machine = self.backend.machine() | {"batch_size": self.batch_size, "processes": self.world}
        hidden = not self.progress or self.rank != 0
        with tqdm(total=rows, desc="generate", unit="row", disable=hidden, file=sys.stderr) as bar:
            started, warm_up = time.perf_counter(), True
            for batch, prepared in self._prepared(batches):
                asked = time.perf_counter()
                answers = self._answer_batch(prepared)
                now = time.perf_counter()
                shared = {
                    "seconds": (now - started) / len(batch),
                    "warm_up": warm_up,
                    "peak_memory": self.backend.peak_memory(),
                }
                unknown = {"latency": now - asked, "first_token": None, "tokens": None}
                timed = {
                    row_id: one._replace(time=unknown | (one.time or {}) | shared) for row_id, one in answers.items()
                }
                self.records.append([(self.keys[row.id], row.id, timed[row.id]) for row in batch])
                started, warm_up = now, False
                bar.update(len(batch))
                self._stop_if_hopeless(answers)

    def _prepared(self, batches: list[list[Question]]) -> Iterator[tuple[list[Question], PreparedBatch]]:
        """Yield each batch with its inputs, which a second thread makes while the batch before is being answered."""
        with ThreadPoolExecutor(max_workers=1) as ahead:
            coming: Future[PreparedBatch] = ahead.submit(self._prepare, batches[0])
            for batch, following in zip(batches, [*batches[1:], None], strict=True):
                prepared = coming.result()
                if following is not None:
                    coming = ahead.submit(self._prepare, following)
                yield batch, prepared

    def _prepare(self, batch: list[Question]) -> PreparedBatch:
        """Decode the clips; a row whose audio is unreadable or silent is set aside with the reason."""
        requests, failed = [], {}
        rate = self.backend.sampling_rate()
        for row in batch:
            try:
                audio = tuple(
                    read_audio(clip, rate, name=f"clip {number}")
                    for number, clip in enumerate(self.corpus.clips(row.index))
                )
                wanted = sum(part["type"] == "audio" for message in row.messages for part in message["content"])
                if wanted != len(audio):
                    raise ValueError(f"the messages name {wanted} clip(s), the row holds {len(audio)}")
            except (ValueError, OSError) as error:
                failed[row.id] = Reply("", str(error))
                continue
            requests.append(Request(row, audio, _with_system(row.messages, self.backend.settings.system)))
        try:
            return PreparedBatch(requests, failed, self.backend.prepare(requests) if requests else None)
        except Exception as error:  # a processor may raise anything; rows are then tried in smaller batches
            return PreparedBatch(requests, failed, None, error)

    def _answer_batch(self, batch: PreparedBatch) -> dict[str, Reply]:
        """Return answers by row id: a batch that fails is halved until the row at fault is alone."""
        answers = dict(batch.failed)
        if not batch.requests:
            return answers
        try:
            if batch.error is not None:
                raise batch.error
            given = self.backend.answer(batch.inputs)
            assert len(given) == len(batch.requests)
            return answers | {
                request.row.id: answer._replace(prediction=_storable(answer.prediction))
                for request, answer in zip(batch.requests, given, strict=True)
            }
        except Exception as error:  # a model may raise anything; `_reason` lets through what no smaller batch mends
            reason = _reason(error)
            out_of_memory = _is_out_of_memory(error)
        batch.inputs = batch.error = None  # inputs and traceback would hold device memory during the next attempt
        if out_of_memory:
            _free_memory()
        if len(batch.requests) == 1:
            return answers | {batch.requests[0].row.id: Reply("", reason)}
        logger.info("a batch of %d failed (%s); trying its halves", len(batch.requests), reason)
        middle = len(batch.requests) // 2
        for half in (batch.requests[:middle], batch.requests[middle:]):
            try:
                prepared = PreparedBatch(half, {}, self.backend.prepare(half))
            except Exception as error:  # as in `_prepare`
                prepared = PreparedBatch(half, {}, None, error)
            answers |= self._answer_batch(prepared)
        return answers

    def _stop_if_hopeless(self, answers: dict[str, Reply]) -> None:
        for answer in answers.values():
            if answer.error is None:
                self._successes += 1
            else:
                self._failures[answer.error] = self._failures.get(answer.error, 0) + 1
        if not self._successes and len(self._failures) == 1:
            ((reason, count),) = self._failures.items()
            if count >= SAME_FAILURES:
                raise ValueError(
                    f"the first {count} rows all failed: {reason}. Remove the cause and run the same command with "
                    "--retry-errors"
                )

    def _wait_for_the_others(self) -> dict[str, Reply]:
        """Return all answers, once every process has recorded its share."""
        answers = self.records.read()
        while missing := sum(key not in answers for key in self.keys.values()):
            assert self.world > 1, f"{missing} rows were never answered"
            time.sleep(1.0)
            answers = self.records.read()
        return answers

    def _write(self, recorded: dict[str, Reply]) -> None:
        answers = [recorded[self.keys[row.id]] for row in self.rows]
        errors = sum(answer.error is not None for answer in answers)
        if errors:
            logger.warning("%d of %d rows could not be answered; their records say why", errors, len(answers))
        generation = {
            "schema": 1,
            "model": self.backend.name,
            "revision": self.revision,
            "settings": dataclasses.asdict(self.backend.settings),
            "data": self._data(),
            "samples": self.samples,
            "wordings": self.wordings,
            "rows": len(answers),
            "errors": errors,
        } | ({"tasks": self.corpus.own_tasks} if self.corpus.own_tasks else {})
        write_predictions(self.out, self.rows, answers, generation)
        times = {
            row.id: answer.time
            for row, answer in zip(self.rows, answers, strict=True)
            if answer.time is not None and answer.error is None
        }
        if times:
            durations = {row.id: row.duration for row in self.rows}
            speed = summarize_speed(times, durations, self.records.runs())
            write_atomically(self.out / SPEED, json.dumps(speed, indent=1) + "\n")


@dataclasses.dataclass
class PreparedBatch:
    """Requests with what the backend made of them, and the rows that fell out before."""

    requests: list[Request]
    failed: dict[str, Reply]
    inputs: Any
    error: Exception | None = None


def _with_system(messages: tuple[dict[str, Any], ...], system: str | None) -> tuple[dict[str, Any], ...]:
    if system is None:
        return messages
    others = tuple(message for message in messages if message["role"] != "system")
    return ({"role": "system", "content": [{"type": "text", "text": system}]}, *others)


def _reason(error: Exception) -> str:
    """Return a failure in one line; raise it again if every other batch would fail of it too."""
    if isinstance(error, (ConnectionError, ImportError)):
        raise error
    if type(error).__name__ == "AcceleratorError":  # the device is lost for this process
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _is_out_of_memory(error: Exception) -> bool:
    return (
        type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and "not enough memory" in str(error).lower())
    )


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _storable(text: str) -> str:
    """Return text that UTF-8 can hold: lone surrogates, which a server's JSON may carry, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
