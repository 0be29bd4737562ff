"""Measures one model at one task, in a fresh process, so that its peak memory is its own.

A fresh process has warmed up on one row before the clock starts.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from benchmarks.subjects import SIZES, SUBJECTS, Size, Subject, batch_of

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Measurement:
    """Holds the measurements of one run.

    Args:
        seconds: of the task, by the clock.
        processor_seconds: of all threads together; other work on the machine disturbs these less.
        peak_gib: the process's largest resident memory, libraries and all.
        tokens: of a row that goes into the language model.
    """

    seconds: float
    processor_seconds: float
    peak_gib: float
    tokens: int


def loss_of(subject: Subject, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return a peer's own loss, ours from the answers' logits, or the released code's from all logits, shifted."""
    if subject.peer:
        return model(**batch, use_cache=False).loss
    if not subject.every_logit:
        shift_labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        answers = shift_labels != -100
        targets = {"shift_labels": shift_labels[answers], "logits_to_keep": answers}
        return model(**batch, **targets, use_cache=False).loss
    inputs = {name: part for name, part in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1].contiguous()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())


def training_step(subject: Subject, model: PreTrainedModel, stage: int) -> Callable[[Batch], None]:
    """Run forward, backward and an AdamW step; stage 1 trains the projector, stage 2 the language model as well."""
    model.train().requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if stage == 2:
        model.model.language_model.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(batch: Batch) -> None:
        loss_of(subject, model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def generation(subject: Subject, model: PreTrainedModel, new_tokens: int) -> Callable[[Batch], None]:
    """Generate greedily, from mel to the last token."""
    model.eval()
    settings = {"logits_to_keep": 0} if subject.every_logit else {}

    def generate(batch: Batch) -> None:
        out = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False, **settings)
        assert out.shape[1] == batch["input_ids"].shape[1] + new_tokens

    return generate


@dataclass(frozen=True)
class Workload:
    """A task to measure: a function of a model and a batch.

    Args:
        prepare: the model made ready, as a function of a batch.
        answers: whether the batch has answers to learn.
        one_row: whether the batch is one row.
    """

    prepare: Callable[[Subject, PreTrainedModel, Size], Callable[[Batch], None]]
    answers: bool = False
    one_row: bool = False


TASKS = {
    "stage-1 step": Workload(lambda subject, model, size: training_step(subject, model, 1), answers=True),
    "stage-2 step": Workload(lambda subject, model, size: training_step(subject, model, 2), answers=True),
    "first token": Workload(lambda subject, model, size: generation(subject, model, 1), one_row=True),
    "generation": Workload(lambda subject, model, size: generation(subject, model, size.new_tokens)),
}


def prepared(subject_name: str, task_name: str, size_name: str) -> tuple[Callable[[Batch], None], Batch]:
    """Warm a model up on one row; return it as a function of a batch, and the batch."""
    torch.manual_seed(0)
    subject, task, size = SUBJECTS[subject_name], TASKS[task_name], SIZES[size_name]
    model = subject.build(size)
    work = task.prepare(subject, model, size)
    work(batch_of(subject, model, size, 1, task.answers))
    return work, batch_of(subject, model, size, 1 if task.one_row else size.rows, task.answers)


def run(subject_name: str, task_name: str, size_name: str, threads: int) -> Measurement:
    """Measure in this process."""
    torch.set_num_threads(threads)
    work, batch = prepared(subject_name, task_name, size_name)
    start, start_processor = time.perf_counter(), time.process_time()
    work(batch)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - start_processor
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return Measurement(seconds, processor_seconds, peak_kib / 2**20, batch["input_ids"].shape[1])


def run_apart(subject_name: str, task_name: str, size_name: str, threads: int) -> Measurement:
    """Measure in a process of its own, forked from one that has only imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(run, subject_name, task_name, size_name, threads).result()
