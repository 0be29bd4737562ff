"""Saves and loads trainable weights, marks and finds complete checkpoints, and removes old and broken ones.

A checkpoint is complete when its marker, written last, is there and its files have the sizes that the marker states.
Older ones are deleted only after that. So a run killed at any moment finds its newest complete checkpoint, a full disk
costs at most the checkpoint being written, and one that lost part of a file is passed over for the one before.

A checkpoint holds the trainable weights, the optimizer, the schedule and the random states. The frozen parts are read
again from the folders that the recipe names, and digests show whether they have changed. With `watch.save_whole`, and
in sharded runs, it holds the whole model, which `from_pretrained` then loads like any other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from llaso_common.atomic_write import write_atomically
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

from ..recipe.recipe import ModelChoice
from .model_setup import PARTS, part_of

logger = logging.getLogger(__name__)

MARKER = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")
WEIGHTS, FROZEN = "trainable.safetensors", "frozen.json"


def complete_checkpoints(out: Path) -> list[tuple[int, Path]]:
    """Return step and folder of every complete checkpoint, oldest first."""
    return sorted((step, folder) for step, folder in _all_checkpoints(out) if not defect_of(folder))


def last_checkpoint(out: Path, main_process: bool) -> tuple[int, Path | None]:
    """Return step and folder of the newest complete checkpoint, or (0, None); the main process removes broken ones."""
    if main_process:
        remove_broken_checkpoints(out)
    checkpoints = complete_checkpoints(out)
    return checkpoints[-1] if checkpoints else (0, None)


def defect_of(folder: Path) -> str:
    """Say what is wrong with a checkpoint; empty if it is complete."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["bytes"]
    except FileNotFoundError:
        return "it was not written to its end"
    except (ValueError, LookupError, TypeError):
        return f"its {MARKER} is damaged"
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            return f"{name} has {found:,} of {size:,} bytes"
        if name.endswith(".safetensors"):
            try:
                with safe_open(folder / name, "pt"):
                    pass
            except SafetensorError as error:
                return f"{name} is damaged ({error})"
    return ""


def remove_broken_checkpoints(out: Path) -> None:
    """Delete checkpoints that a kill left half-written; rename damaged ones, so that they can be looked at."""
    for _, folder in _all_checkpoints(out):
        lacks = defect_of(folder)
        if lacks and (folder / MARKER).exists():
            aside = folder.with_name(f"damaged-{folder.name}")
            logger.warning("skipping %s: %s; renamed to %s", folder, lacks, aside.name)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        elif lacks:
            logger.warning("removing %s: %s", folder, lacks)
            shutil.rmtree(folder)


def mark_complete(folder: Path, step: int, keep: int) -> None:
    """Mark a checkpoint as complete once the disk itself holds it, then delete all but the newest `keep`.

    A folder about to be deleted loses its marker first, so that a kill in between leaves no false checkpoint.
    """
    sizes = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            sizes[str(file.relative_to(folder))] = os.fstat(opened.fileno()).st_size
    write_atomically(folder / MARKER, json.dumps({"step": step, "bytes": sizes}) + "\n", durable=True)
    for _, old in complete_checkpoints(folder.parent)[:-keep]:
        (old / MARKER).unlink()
        shutil.rmtree(old)


def discard_all(out: Path) -> None:
    """Delete the checkpoints of a run whose finished model has been written."""
    for _, folder in complete_checkpoints(out):
        (folder / MARKER).unlink()
        shutil.rmtree(folder)


def _all_checkpoints(out: Path) -> list[tuple[int, Path]]:
    return [(int(match[1]), path) for path in out.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))]


# ---- Trainable weights ----


def frozen_digests(model: LlasoForConditionalGeneration, learned: Collection[str]) -> dict[str, str]:
    """Digest the frozen parameters of each part: their names, types and values.

    Args:
        model: the model.
        learned: names of the parameters that learn. One that learns later does not require gradients for a while.
    """
    digests = {part: hashlib.sha256() for part in PARTS}
    for name, parameter in model.named_parameters():
        if name not in learned:
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
    learned: dict[str, torch.Tensor], folder: Path, digests: Mapping[str, str], sources: Mapping[str, str]
) -> None:
    """Write the parameters that learn, by name, and what the frozen ones are."""
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
