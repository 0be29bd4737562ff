"""One measurement in a process of its own, so that its peak memory is its own: `python -m benchmarks.measure`.

Prints one JSON object: the seconds of every repeat after a warm-up, the peak memory, and the tokens of a row.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable

import torch

from .subjects import BATCH, NEW_TOKENS, SUBJECTS, batch_of


def training_step(name: str, stage: int) -> tuple[Callable[[], None], int]:
    """Forward, backward and an AdamW step; stage 1 trains the projector, stage 2 the language model with it."""
    subject = SUBJECTS[name]
    model = subject.build().train()
    base = model.model
    model.requires_grad_(False)
    base.multi_modal_projector.requires_grad_(True)
    if stage == 2:
        base.language_model.requires_grad_(True)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch = batch_of(subject, model, BATCH, answers=True)

    def step() -> None:
        model(**batch, use_cache=False).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step, batch["input_ids"].shape[1]


def generation(name: str, rows: int, new_tokens: int) -> tuple[Callable[[], None], int]:
    """Greedy generation from mel to the last token."""
    subject = SUBJECTS[name]
    model = subject.build().eval()
    batch = batch_of(subject, model, rows, answers=False)

    def generate() -> None:
        out = model.generate(**batch, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        assert out.shape[1] == batch["input_ids"].shape[1] + new_tokens

    return generate, batch["input_ids"].shape[1]


TASKS: dict[str, Callable[[str], tuple[Callable[[], None], int]]] = {
    "stage-1 step": lambda name: training_step(name, 1),
    "stage-2 step": lambda name: training_step(name, 2),
    "prefill": lambda name: generation(name, 1, 1),
    "generation": lambda name: generation(name, BATCH, NEW_TOKENS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", choices=SUBJECTS, required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    run, tokens = TASKS[arguments.task](arguments.subject)
    run()  # the first one also makes buffers and the optimiser's state
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "tokens": tokens}))


if __name__ == "__main__":
    main()
