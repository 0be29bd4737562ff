"""`llaso eval text-skill`: what training on speech left of a language model's skill in text."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from llaso_common.atomic_write import write_atomically
from llaso_common.output_folder import refuse_existing_file

from .option_types import add_output_file, device


def add_text_skill(steps) -> None:
    """Add `text-skill` to the steps of `llaso eval`."""
    parser = steps.add_parser(
        "text-skill",
        help="ask a hundred short questions without audio: text skill before and after training",
        description="For each question, the model's likeliest of four answers is taken. Name the language model first "
        "and what was trained from it after it: every further model is tested against the first.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="LLaSO checkpoints or causal language models")
    parser.add_argument("--device", type=device, help="cpu, cuda, … (default: the GPU if there is one)")
    add_output_file(parser, "JSON file for every answer and its likelihood")
    parser.set_defaults(run=run_text_skill)


def run_text_skill(arguments: argparse.Namespace) -> None:
    """Run `llaso eval text-skill`."""
    from eval_suite import text_skill

    refuse_existing_file(arguments.out, arguments.overwrite)
    measured: list[list[text_skill.Chosen]] = []
    records: list[dict[str, Any]] = []
    print("| model | right | 95 % interval | against the first |\n|---|---|---|---|")
    for name in arguments.models:
        chosen = text_skill.measure(*open_for_text(name, arguments.device))
        made = text_skill.record(name, chosen)
        against = ""
        if measured:
            made["against_first"] = test = text_skill.compare(measured[0], chosen)
            against = f"{test['difference']:+.2f} ({test['lost']} lost, {test['gained']} gained, p {test['p']:.3g})"
        measured.append(chosen)
        records.append(made)
        print(f"| {name} | {made['accuracy']:.2f} | {made['low']:.2f} to {made['high']:.2f} | {against} |", flush=True)
    print(f"\n{records[0]['n']} questions with four answers each; chance is {text_skill.CHANCE:.2f}")
    if arguments.out is not None:
        write_atomically(arguments.out, json.dumps(records, indent=1, ensure_ascii=False))
        print(f"wrote {arguments.out}")


def open_for_text(name: str, device: str | None = None) -> tuple[Any, Any]:
    """Load a LLaSO checkpoint, or a causal language model with the prompt that LLaSO would give it.

    Args:
        name: a folder or a Hub id.
        device: by default the GPU if there is one.

    Raises:
        ValueError: there is no such model, or it is neither.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor

    from modeling_llaso.conversion import grow_embeddings
    from modeling_llaso.loading import load, readable_weights
    from modeling_llaso.processing_llaso import LlasoProcessor, add_audio_tokens

    local = Path(name).expanduser()
    where = str(local) if local.is_dir() else name
    try:
        kind = AutoConfig.from_pretrained(where).model_type
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: neither a model's folder here nor one that can be fetched ({first})") from error
    if kind == "llaso":
        loaded, its_processor = load(where, device)
        return _in_fp32_on_cpu(loaded), its_processor
    if kind == "whisper":
        raise ValueError(f"{name}: a whisper answers no questions; name a LLaSO checkpoint or a causal language model")
    with readable_weights(name):
        model: Any = AutoModelForCausalLM.from_pretrained(where, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(where)
    known = len(tokenizer)
    add_audio_tokens(tokenizer)
    processor = LlasoProcessor(WhisperFeatureExtractor(), tokenizer)
    grow_embeddings(model, known, processor.audio_token_id)  # the system prompt names the tags of audio
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return _in_fp32_on_cpu(model), processor


def _in_fp32_on_cpu(model: Any) -> Any:
    """Return the model in float32 if it is on a CPU, where half precision is slow and rounds close answers."""
    return model.float() if model.device.type == "cpu" else model
