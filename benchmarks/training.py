"""Measures what a training run costs, part by part: `make bench ARGS=training`.

    python -m benchmarks.training transforms checkpoints
    python -m benchmarks.training steps --size tiny

`transforms`: how many seconds of sound one core decodes, resamples and turns into a log-mel in a second.
`checkpoints`: the bytes of a checkpoint and of all weights at full size, counted from shapes. `steps`: seconds by
purpose, processor seconds and memory of a Stage-2 step without checkpointing, with `selective`, with all layers
computed again, and with layers compiled (`compute.compile`). Each measurement of `steps` is a fresh process, and they
take turns. `loading`, `padding` and `packing` run the sections of that name.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import runpy
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from benchmarks.measure import loss_of
from benchmarks.spread import spread
from benchmarks.subjects import SIZES, SUBJECTS, batch_of
from llaso.training.recipe.recipe import Checkpointing, load_recipe
from llaso.training.run.compilation import compile_layers
from llaso.training.run.model_setup import freeze_all_but, keep_frozen, report_parts, set_up_parts
from llaso.training.run.recomputation import checkpoint_layers
from llaso.training.run.step_timer import BACKWARD, ENCODER, LLM, OPTIMIZER, TOTAL, StepTimer
from llaso_common.audio import SAMPLE_RATE, read_audio
from modeling_llaso import LlasoForConditionalGeneration, preset

SUBJECT = "LLaSO trim"
WAYS: dict[str, tuple[Checkpointing, bool]] = {
    "as it is": (False, False),
    "selective": ("selective", False),
    "all layers again": (True, False),
    "compiled": (False, True),
}
"""Ways to take a step: what is computed again, and whether layers are compiled. The others are held to the first."""
FORMATS = {"FLAC": ("FLAC", "PCM_16"), "OGG Opus": ("OGG", "OPUS"), "MP3": ("MP3", "MPEG_LAYER_III")}
RATES = (SAMPLE_RATE, 44_100)
BYTES_OF_LEARNED, BYTES_WHOLE = 12, 4
"""Bytes of a checkpoint for a parameter that learns (weight and Adam's two moments), and of a weight in float32."""


# ---- Transforms ----


def clip(seconds: float, rate: int, form: tuple[str, str]) -> bytes:
    """Return a clip of noise under a tone, in a format and at a rate."""
    random = np.random.default_rng(0)
    times = np.arange(int(seconds * rate)) / rate
    samples = 0.3 * np.sin(2 * np.pi * 220 * times) + 0.02 * random.standard_normal(len(times))
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), rate, format=form[0], subtype=form[1])
    return file.getvalue()


def processor_seconds(work: Callable[[], object], rounds: int, repeats: int) -> list[float]:
    """Return the processor seconds of one call, in each of so many rounds of repeats."""
    work()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(repeats):
            work()
        found.append((time.process_time() - start) / repeats)
    return found


def transforms(seconds: float, rounds: int, repeats: int) -> list[str]:
    """Return the table's lines: seconds of sound that one core gets through in a second."""
    torch.set_num_threads(1)
    lines = ["| transform | seconds of sound a second and core |", "|---|---|"]
    for name, form in FORMATS.items():
        for rate in RATES:
            if form[1] == "OPUS" and rate not in (8_000, 12_000, 16_000, 24_000, 48_000):
                continue
            content = clip(seconds, rate, form)
            times = processor_seconds(lambda content=content: read_audio(content, SAMPLE_RATE), rounds, repeats)
            what = f"decode {name}" + ("" if rate == SAMPLE_RATE else f", resample {rate:,} Hz")
            lines.append(f"| {what} | {spread([seconds / one for one in times], ',.0f')} |")
    samples = read_audio(clip(seconds, SAMPLE_RATE, FORMATS["FLAC"]), SAMPLE_RATE)
    for mels in (80, 128):
        extract = WhisperFeatureExtractor(feature_size=mels)
        work = lambda extract=extract: extract(samples, sampling_rate=SAMPLE_RATE, padding="longest")  # noqa: E731
        times = processor_seconds(work, rounds, repeats)
        lines.append(f"| log-mel of {mels} | {spread([seconds / one for one in times], ',.0f')} |")
    return lines


# ---- Checkpoints ----


def checkpoints() -> list[str]:
    """Return the table's lines: bytes at full size, from shapes on the meta device."""
    lines = ["| recipe | learns | a checkpoint | with `watch.save_whole` |", "|---|---|---|---|"]
    for name in ("stage1_align", "stage2_instruct"):
        recipe = load_recipe(name)
        with torch.device("meta"):
            model = LlasoForConditionalGeneration(preset("llaso-base")).float()
            set_up_parts(model, recipe)
        parts = report_parts(model)
        learned = sum(part.trainable for part in parts)
        whole = BYTES_OF_LEARNED * learned + sum(part.weight_bytes for part in parts) - BYTES_WHOLE * learned
        lines.append(f"| {name} | {learned:,} | {BYTES_OF_LEARNED * learned / 1e9:.2f} GB | {whole / 1e9:.2f} GB |")
    return lines


# ---- Steps ----


@dataclass(frozen=True)
class StepCost:
    """The cost of one step.

    Attributes:
        first: seconds of the step before it, in which layers are compiled.
        seconds: by purpose, with their total.
        processor_seconds: of all threads together.
        peak_gib: the process's largest resident memory.
    """

    first: float
    seconds: dict[str, float]
    processor_seconds: float
    peak_gib: float


def step_cost(way: str, size_name: str, rows: int, threads: int) -> StepCost:
    """Measure the second of two Stage-2 steps, in this process."""
    checkpointing, is_compiled = WAYS[way]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    subject, size = SUBJECTS[SUBJECT], SIZES[size_name]
    model = subject.build(size)
    assert isinstance(model, LlasoForConditionalGeneration)
    frozen = freeze_all_but(model, ("projector", "llm"))
    model.train()
    checkpoint_layers(model, checkpointing)
    keep_frozen(frozen, model)
    if is_compiled:
        compile_layers(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    batch = batch_of(subject, model, size, rows, answers=True)
    timer = StepTimer(cuda=False)
    timer.watch(model.model.audio_tower, ENCODER)
    for _ in range(2):
        first = timer.take()[TOTAL]
        processor = time.process_time()
        with timer.measure(LLM):
            loss = loss_of(subject, model, batch)
        with timer.measure(BACKWARD):
            loss.backward()
        with timer.measure(OPTIMIZER):
            optimizer.step()
            optimizer.zero_grad()
    seconds = timer.take()
    seconds[LLM] -= seconds[ENCODER]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    return StepCost(first, seconds, time.process_time() - processor, peak)


def steps(size: str, rows: int, rounds: int, threads: int) -> list[str]:
    """Return the table's lines: what a step costs in each way; ratios are to the first way in the same round."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    found: dict[str, list[StepCost]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name in WAYS:
            with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                found[name].append(pool.submit(step_cost, name, size, rows, threads).result())
    purposes = (ENCODER, LLM, BACKWARD, OPTIMIZER, TOTAL)
    lines = [
        f"| layers | first step | {' | '.join(purposes)} (s) | processor time | peak GiB | memory |",
        "|" + "---|" * (len(purposes) + 5),
    ]
    for name, costs in found.items():
        base = found[next(iter(WAYS))]
        times = [one.processor_seconds / other.processor_seconds for one, other in zip(costs, base, strict=True)]
        memory = [one.peak_gib / other.peak_gib for one, other in zip(costs, base, strict=True)]
        shown = " | ".join(f"{median(one.seconds[purpose] for one in costs):.2f}" for purpose in purposes)
        peak = median(one.peak_gib for one in costs)
        first = median(one.first for one in costs)
        lines.append(
            f"| {name} | {first:.2f} | {shown} | {spread(times, '.2f')}× | {peak:.2f} | {spread(memory, '.2f')}× |"
        )
    return lines


def main() -> None:
    """Print the tables that were asked for."""
    parts = ("transforms", "checkpoints", "steps", "loading", "padding", "packing")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)} (default: all)")
    parser.add_argument("--size", choices=SIZES, default="medium", help="of the model; tiny tries the command out")
    parser.add_argument("--rows", type=int, default=8, help="of a step's batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a clip (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in parts]:
        parser.error(f"no part {', '.join(unknown)}; one of {', '.join(parts)}")
    for part in arguments.parts or parts:
        print(f"\n{part}\n", flush=True)
        if part == "transforms":
            print("\n".join(transforms(arguments.seconds, arguments.rounds, repeats=5)), flush=True)
        elif part == "checkpoints":
            print("\n".join(checkpoints()), flush=True)
        elif part == "steps":
            print("\n".join(steps(arguments.size, arguments.rows, arguments.rounds, arguments.threads)), flush=True)
        else:
            small = ["--short", "2000", "--spoken", "400", "--rounds", "1"] if arguments.size == "tiny" else []
            sys.argv[1:] = {"packing": ["--size", arguments.size], "loading": small, "padding": []}[part]
            runpy.run_module(f"benchmarks.{part}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
