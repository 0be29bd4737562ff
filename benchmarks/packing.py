"""Measures micro-batches of unequal rows, padded and packed, in one run: `python -m benchmarks.packing`.

The rows have the lengths of `benchmarks.padding`; each way of batching takes all of them forward and backward, as
Stage 2 does in `trim`. The ways take turns, round after round; every figure is a ratio within a round, with its
spread. FLOPs and the memory of tensors are counted in a pass of their own, operator by operator.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.padding import TOKENS_PER_SECOND, realistic_seconds
from benchmarks.subjects import IGNORED, SIZES, Size, llaso
from llaso.training.rows.batch_plan import BatchRule
from llaso.training.rows.collator import Example, pack, pad
from llaso.training.run.model_setup import freeze_all_but, keep_frozen
from llaso.training.run.operator_counter import OperatorCounter
from llaso.training.run.packed_forward import use_packing
from llaso_common.audio import MEL_FRAMES_PER_SECOND
from modeling_llaso.configuration_llaso import count_audio_tokens
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

TEXT = (60, 140)
"""Tokens of a row that are not audio, at least and below."""
ANSWER_SHARE = 0.4


@dataclass(frozen=True)
class Way:
    """How rows become micro-batches.

    Attributes:
        by_length: rows of similar length share a micro-batch.
        packed: rows lie end to end.
        by_tokens: a packed micro-batch is a number of tokens instead of a number of rows.
        one_mask: attention runs over the whole packed sequence with a mask, instead of row by row.
    """

    by_length: bool = False
    packed: bool = False
    by_tokens: bool = False
    one_mask: bool = False


REFERENCE = "padded, at random"
WAYS = {
    REFERENCE: Way(),
    "padded, by length": Way(by_length=True),
    "packed, at random": Way(packed=True),
    "packed, by tokens": Way(packed=True, by_tokens=True),
    "packed, one mask": Way(packed=True, one_mask=True),
}


def random_rows(model: LlasoForConditionalGeneration, size: Size, count: int, scale: float) -> list[Example]:
    """Make rows of random tokens and sound, 60 % as long as sentences and the rest as short as commands.

    Args:
        model: reads them.
        size: of the model.
        count: rows.
        scale: of the seconds, so that a small machine is done sooner.
    """
    random = np.random.default_rng(0)
    frames = (realistic_seconds(random, count) * scale * MEL_FRAMES_PER_SECOND).astype(int)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in random.permutation(count):
        mels = model.config.audio_config.num_mel_bins
        window = torch.randn(mels, int(frames[number]), generator=draw)
        text = int(random.integers(*TEXT))
        words = torch.randint(10, 250, (text,), generator=draw)
        places = torch.full((count_audio_tokens(window.shape[1]),), model.config.audio_token_id)
        ids = torch.cat([words[: text // 2], places, words[text // 2 :]])
        labels = ids.clone()
        labels[: -round(ANSWER_SHARE * text)] = IGNORED
        rows.append(Example(str(number), "ASR", ids, labels, [window]))
    return rows


def batches_of(rows: Sequence[Example], way: Way, at_once: int) -> list[dict[str, Any]]:
    """Lay rows into micro-batches of `at_once` rows, or of as many tokens as those have in the mean."""
    lengths = np.array([len(row.input_ids) for row in rows])
    tokens = round(at_once * float(lengths.mean()))
    rule = BatchRule(
        per_device=len(rows) if way.by_tokens else at_once,
        max_tokens=tokens if way.by_tokens else 0,
        packing=way.packed,
    )
    lay = pack if way.packed else pad
    order = np.argsort(lengths, kind="stable") if way.by_length else np.arange(len(lengths))
    return [lay([rows[place] for place in order[places]], 0) for places in rule.cut(lengths[order])]


def step(model: LlasoForConditionalGeneration, batch: dict[str, Any]) -> float:
    """Take one micro-batch forward and backward, with logits of answer tokens alone; return the sum of losses."""
    targets = batch["shift_labels"]
    is_answer = targets != IGNORED
    inputs = {name: part for name, part in batch.items() if name not in ("ids", "tasks", "shift_labels")}
    logits = model(**inputs, logits_to_keep=is_answer, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.float(), targets[is_answer], reduction="sum")
    loss.backward()
    return loss.item()


def attend_with_one_mask(model: LlasoForConditionalGeneration, one_mask: bool) -> None:
    """Choose between transformers' sdpa with a mask and sdpa row by row."""
    for part in (model.model.audio_tower, model.model.language_model):
        part.set_attn_implementation("sdpa" if one_mask else "sdpa_by_row")


def compare(
    size: str = "medium", rows: int = 32, at_once: int = 8, rounds: int = 3, scale: float = 0.5
) -> dict[str, dict[str, Any]]:
    """Measure every way of batching on the same rows.

    Args:
        size: of the model, a key of `SIZES`.
        rows: that every way takes forward and backward.
        at_once: rows of a micro-batch.
        rounds: how often.
        scale: of the rows' seconds.

    Returns:
        For each way: `padding`, the share of tokens that carry nothing; `loss`, `seconds` by the clock and
        `processor_seconds` of every round; `speed` and `processor_speed`, how many times as fast as `REFERENCE` by
        either, as median, least and most; `flops`; and `peak_bytes`, of the tensors of the largest micro-batch without
        weights and gradients.
    """
    torch.manual_seed(0)
    model = llaso("trim")(SIZES[size])
    assert isinstance(model, LlasoForConditionalGeneration)
    frozen = freeze_all_but(model, ["projector", "llm"])
    use_packing(model)
    model.train()
    keep_frozen(frozen, model)
    made = random_rows(model, SIZES[size], rows, scale)
    batches = {name: batches_of(made, way, at_once) for name, way in WAYS.items()}
    real = sum(len(row.input_ids) for row in made)
    found: dict[str, dict[str, Any]] = {}
    for name, way in WAYS.items():  # warms up, too
        attend_with_one_mask(model, way.one_mask)
        computed = sum(batch["input_ids"].numel() for batch in batches[name])
        flops, peak = count(model, batches[name])
        found[name] = {"padding": 1 - real / computed, "flops": flops, "peak_bytes": peak, "loss": []}
        found[name] |= {"seconds": [], "processor_seconds": []}
    for number in range(rounds):
        for name in WAYS if number % 2 == 0 else reversed(WAYS):
            attend_with_one_mask(model, WAYS[name].one_mask)
            start, start_processor = time.perf_counter(), time.process_time()
            loss = sum(step(model, batch) for batch in batches[name])
            found[name]["seconds"].append(time.perf_counter() - start)
            found[name]["processor_seconds"].append(time.process_time() - start_processor)
            found[name]["loss"].append(loss)
            model.zero_grad()
    for of_way in found.values():
        for ratio, measure in (("speed", "seconds"), ("processor_speed", "processor_seconds")):
            each = [one / other for one, other in zip(found[REFERENCE][measure], of_way[measure], strict=True)]
            of_way[ratio] = [median(each), min(each), max(each)]
    return found


def count(model: LlasoForConditionalGeneration, batches: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Count the FLOPs of micro-batches, and the bytes of tensors alive at once in the largest of them."""
    flops, peak = 0, 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    for batch in batches:
        counter = OperatorCounter(model)
        with counter.on("step"):
            step(model, batch)
        flops, peak = flops + counter.flops.total(), max(peak, counter.peak.total())
    model.zero_grad()
    return flops, peak


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    reference = found[REFERENCE]
    lines = [
        "| micro-batches | padding | seconds | as fast | by processor time | FLOPs | memory of tensors |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, of_way in found.items():
        speeds = [
            f"{middle:.2f}× ({least:.2f}–{most:.2f})"
            for middle, least, most in (of_way["speed"], of_way["processor_speed"])
        ]
        lines.append(
            f"| {name} | {of_way['padding']:.1%} | {median(of_way['seconds']):.2f} | "
            f"{speeds[0]} | {speeds[1]} | {of_way['flops'] / reference['flops']:.2f}× | "
            f"{of_way['peak_bytes'] / reference['peak_bytes']:.2f}× |"
        )
    return lines


def main() -> None:
    """Print the table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="medium", help="tiny tries the command out")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=8, help="rows of a micro-batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=0.5, help="of the rows' seconds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = compare(arguments.size, arguments.rows, arguments.at_once, arguments.rounds, arguments.scale)
    tokens = f"{TOKENS_PER_SECOND} tokens a second of sound"
    print(f"{arguments.rows} rows, {tokens}, {torch.get_num_threads()} threads, {arguments.rounds} rounds\n")
    print("\n".join(table(found)))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
