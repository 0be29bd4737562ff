"""Saves and loads the parameters of a model that learn, with a digest of each part's frozen ones.

A checkpoint of these is small: the frozen parts are read again from the folders that the recipe names, and their
digests show whether they have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

from ..recipe.recipe import ModelChoice
from .model_parts import PARTS, part_of

WEIGHTS, FROZEN = "trainable.safetensors", "frozen.json"


def frozen_digests(model: LlasoForConditionalGeneration) -> dict[str, str]:
    """Digest the frozen parameters of each part: their names, types and values."""
    digests = {part: hashlib.sha256() for part in PARTS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest = digests[part_of(name)]
            digest.update(f"{name} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return {part: digest.hexdigest() for part, digest in digests.items()}


def frozen_sources(choice: ModelChoice) -> dict[str, str]:
    """Name the folder or repository from which each part of a recipe's model is read."""
    if choice.checkpoint is not None:
        return dict.fromkeys(PARTS, choice.checkpoint + (f" at {choice.revision}" if choice.revision else ""))
    return {"encoder": str(choice.encoder), "projector": "the recipe's seed", "llm": str(choice.llm)}


def save_trainable(
    model: LlasoForConditionalGeneration, folder: Path, digests: Mapping[str, str], sources: Mapping[str, str]
) -> None:
    """Write the parameters that learn, and what the frozen ones are."""
    folder.mkdir(parents=True, exist_ok=True)
    learned = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(learned, folder / WEIGHTS)
    frozen = {part: {"source": sources[part], "sha256": digests[part]} for part in PARTS}
    (folder / FROZEN).write_text(json.dumps(frozen, indent=1) + "\n", encoding="utf-8")


def load_trainable(model: LlasoForConditionalGeneration, folder: Path, digests: Mapping[str, str]) -> None:
    """Load the parameters that learn into a model whose frozen parts are in place.

    Raises:
        ValueError: a frozen part is not the one that the checkpoint was made with.
    """
    frozen = json.loads((folder / FROZEN).read_text(encoding="utf-8"))
    for part, expected in frozen.items():
        if digests[part] != expected["sha256"]:
            raise ValueError(
                f"{folder}: the frozen weights of the {part}, read from {expected['source']}, have changed since this "
                "run began; put them back as they were, or name another folder with --set out=…"
            )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    learned = load_file(folder / WEIGHTS)
    assert learned.keys() == parameters.keys(), learned.keys() ^ parameters.keys()
    with torch.no_grad():
        for name, tensor in learned.items():
            parameters[name].copy_(tensor)
