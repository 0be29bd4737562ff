"""Measures steps of full-size LLaSO-Base (random weights) on one GPU: time, tokens a second, memory, peak share.

    python -m benchmarks.training_gpu --out runs/training-gpu.json
    python -m benchmarks.training_gpu --rows 8 --spread 0.75 --packing --attention flash_attention_2

Both stages, `full` and `trim` padding, bf16 autocast, answer-only logits, the recipes' micro-batches or `--rows` of
one's own. The rows are synthetic: clips of `--seconds`, a prompt and an answer; `--packing` measures rows end to end
beside padded ones, which `--spread` makes unequal. `--size tiny --device cpu` tries the
command without a GPU. Arithmetic is counted operator by operator in one row's forward and backward pass; what gradient
checkpointing computes again is left out, so that the share of the peak is that of useful work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.flop_counter import FlopCounterMode

from llaso.training.recipe.recipe import Recipe, load_recipe
from llaso.training.rows.collator import IGNORED, Example, pack, pad
from llaso.training.run.chips import chip_name, peak_of
from llaso.training.run.compilation import compile_layers
from llaso.training.run.model_setup import freeze_all_but, hold_frozen_in, keep_frozen
from llaso.training.run.packed_forward import use_packing
from llaso_common.audio import MEL_FRAMES_PER_SECOND
from modeling_llaso import LlasoConfig, LlasoForConditionalGeneration, count_audio_tokens, preset
from modeling_llaso.compatibility_llaso import checkpoint_activations

PROMPT_TOKENS, ANSWER_TOKENS = 96, 40
TINY = {
    "audio_config": {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 64,
        "num_mel_bins": 16,
        "vocab_size": 64,
        "pad_token_id": 0,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "audio_token_id": 512,
}


def rows_of(config: LlasoConfig, count: int, seconds: float, spread: float) -> list[Example]:
    """Make rows of one clip, a prompt and an answer.

    Args:
        config: of the model that reads them.
        count: rows.
        seconds: of a clip, in the mean.
        spread: clips are `1 - spread` to `1 + spread` times as long, evenly; 0 makes them equal.
    """
    random = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        share = 1 + spread * (2 * number / (count - 1) - 1) if count > 1 else 1.0
        frames = config.max_frames if config.audio_padding == "full" else int(share * seconds * MEL_FRAMES_PER_SECOND)
        text = torch.randint(0, config.text_config.vocab_size, (PROMPT_TOKENS + ANSWER_TOKENS,), generator=random)
        audio = torch.full((count_audio_tokens(frames, config.projector_stride),), config.audio_token_id)
        ids = torch.cat([text[:PROMPT_TOKENS], audio, text[PROMPT_TOKENS:]])
        labels = ids.clone()
        labels[:-ANSWER_TOKENS] = IGNORED
        window = torch.randn(config.audio_config.num_mel_bins, frames, generator=random)
        rows.append(Example(str(number), "ASR", ids, labels, [window]))
    return rows


def useful_flops(model: LlasoForConditionalGeneration, rows: list[Example], device: str) -> float:
    """Count the FLOPs of each row's own forward and backward pass, operator by operator."""
    chosen = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the FLOP counter does not handle grouped queries in sdpa
    found: dict[int, int] = {}
    for row in rows:
        if len(row.input_ids) not in found:
            with FlopCounterMode(display=False) as counter:
                step(model, pad([row], 0), device).backward()
            found[len(row.input_ids)] = counter.get_total_flops()
            model.zero_grad()
    model.set_attn_implementation(chosen)
    return sum(found[len(row.input_ids)] for row in rows)


def step(model: LlasoForConditionalGeneration, batch: dict[str, Any], device: str) -> torch.Tensor:
    """Return the loss of a micro-batch in bf16, from the answers' logits alone, as the trainer asks for it."""
    inputs = send_to_device({name: batch[name] for name in batch if name not in ("ids", "tasks")}, device)
    targets = inputs.pop("shift_labels")
    is_answer = targets != IGNORED
    with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16):
        logits = model(**inputs, logits_to_keep=is_answer, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float(), targets[is_answer])


def measure(recipe: Recipe, padding: str, packing: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure whole optimizer steps of one stage, `arguments.accumulation` micro-batches each."""
    config = preset("llaso-base") if arguments.size == "llaso-base" else LlasoConfig(**TINY)
    config.audio_padding = padding
    device = arguments.device
    torch.manual_seed(0)
    with torch.device(device):
        model = LlasoForConditionalGeneration(config)
    if arguments.attention:
        model.set_attn_implementation(arguments.attention)
    frozen = freeze_all_but(model, recipe.train)
    if recipe.compute.frozen_weights == "bf16":
        hold_frozen_in(model, torch.bfloat16)
    model.train()
    keep_frozen(frozen, model)
    rows = arguments.rows or recipe.batch.at_once
    made = rows_of(config, rows, arguments.seconds, arguments.spread)
    flops = arguments.accumulation * useful_flops(model, made, device)
    if packing:
        use_packing(model)
    batch = send_to_device((pack if packing else pad)(made, 0), device)
    if recipe.compute.gradient_checkpointing:
        checkpoint_activations(model)
        keep_frozen(frozen, model)
    if arguments.compile:
        compile_layers(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.optimizer.learning_rate, fused=True)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for done in range(arguments.warmup + arguments.steps):
        start = time.perf_counter()
        for _ in range(arguments.accumulation):
            loss = step(model, batch, device)
            (loss / arguments.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        if done >= arguments.warmup:
            times.append(time.perf_counter() - start)
    tokens = sum(len(row.input_ids) for row in made) * arguments.accumulation
    seconds = statistics.median(times)
    name = chip_name(device)
    chip = peak_of(name)
    return {
        "stage": recipe.train,
        "padding": padding,
        "packing": packing,
        "device": name,
        "rows": rows * arguments.accumulation,
        "rows_at_once": rows,
        "row_tokens": tokens / (rows * arguments.accumulation),
        "step_seconds": seconds,
        "step_seconds_spread": [min(times), max(times)],
        "tokens_per_second": tokens / seconds,
        "audio_seconds_per_second": rows * arguments.accumulation * arguments.seconds / seconds,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "tflops": flops / seconds / 1e12,
        "share_of_peak": flops / seconds / chip[1] if chip else None,
        "loss": float(loss.detach()),
    }


def main() -> None:
    """Measure both stages with both paddings, perhaps packed as well; print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("llaso-base", "tiny"), default="llaso-base")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=8.0, help="of audio in a row (default: %(default)s)")
    parser.add_argument("--spread", type=float, default=0.0, help="of the clips around --seconds, as a share of it")
    parser.add_argument("--packing", action="store_true", help="measure rows end to end beside padded ones")
    parser.add_argument("--compile", action="store_true", help="compile the layers; not with --packing")
    parser.add_argument("--rows", type=int, help="of a micro-batch (default: the recipe's)")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--attention", help="sdpa, flash_attention_2, eager; transformers' choice by default")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    if arguments.compile and arguments.packing:
        parser.error("--compile does not go with --packing")
    results = []
    print("| stage | padding | rows | rows at once | tokens a row | step s | rows/s | tokens/s | peak GiB | of peak |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    ways = itertools.product(
        ("stage1_align", "stage2_instruct"), ("full", "trim"), (False, True) if arguments.packing else (False,)
    )
    for recipe, padding, packing in ways:
        result = measure(load_recipe(recipe), padding, packing, arguments)
        results.append(result)
        memory, share = result["peak_memory_gib"], result["share_of_peak"]
        print(
            f"| {recipe} | {padding} | {'packed' if packing else 'padded'} | {result['rows_at_once']} | "
            f"{result['row_tokens']:.0f} | "
            f"{result['step_seconds']:.3f} | {result['rows'] / result['step_seconds']:.1f} | "
            f"{result['tokens_per_second']:,.0f} | {'–' if memory is None else f'{memory:.1f}'} | "
            f"{'–' if share is None else f'{share:.1%}'} |",
            flush=True,
        )
        if arguments.device.startswith("cuda"):
            torch.cuda.empty_cache()
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
