"""Loads a LLaSO model and its processor from a checkpoint's folder or Hub id onto a device."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llaso_common.half_precision import in_fp32_if_faster

logger = logging.getLogger(__name__)


def checkpoint(name: str) -> str:
    """Decide whether a name is a checkpoint's folder or a Hub id.

    Returns:
        What `from_pretrained` takes.

    Raises:
        ValueError: the name is a folder's and no checkpoint is there.
    """
    path = Path(name)
    looks_local = path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_local and not (path.expanduser() / "config.json").is_file():
        raise ValueError(f"{name}: no checkpoint is there (config.json is missing)")
    return str(path.expanduser()) if looks_local else name


def refuse_other_models(name: str) -> None:
    """Refuse a checkpoint of another architecture before anything of it is loaded.

    Raises:
        ValueError: it is another model's, or there is none: no such folder, and no such model on the Hub.
    """
    from transformers import PreTrainedConfig

    try:
        fields, _ = PreTrainedConfig.get_config_dict(name)
    except OSError as error:
        raise ValueError(
            f"{name}: neither a folder here nor a model that can be fetched from the Hub ({_first_line(error)})"
        ) from error
    kind = fields.get("model_type")
    if kind == "llava_llama":
        raise ValueError(
            f"{name}: this checkpoint is in the released format; convert it first: "
            f"llaso convert --from-official {name} --out DIR"
        )
    if kind != "llaso":
        raise ValueError(
            f"{name}: this is a {kind or 'model without a model_type'}, not a LLaSO model; `llaso new` makes one from "
            "a Whisper and a language model"
        )


@contextmanager
def readable_weights(where: str | Path) -> Iterator[None]:
    """Turn what a cut-off or foreign weights file raises into a `ValueError` that names the checkpoint, `where`.

    Raises:
        PermissionError: a weights file may not be read, which safetensors reports as missing.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    if closed := next((file for file in Path(where).glob("*.safetensors") if not os.access(file, os.R_OK)), None):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(closed))
    try:
        yield
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{where}: the weights cannot be read ({_first_line(error)}). The file may be cut off or of another kind; "
            "fetch or copy it again"
        ) from error


def load_model(folder: str) -> Any:
    """Load the model of a checkpoint in the checkpoint's own precision.

    Args:
        folder: what `checkpoint` returns.

    Raises:
        ValueError: it is no LLaSO model, its weights cannot be read, or tensors are missing, which transformers would
            draw at random.
    """
    from transformers import AutoModelForMultimodalLM

    refuse_other_models(folder)
    with readable_weights(folder):
        model, loading = AutoModelForMultimodalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"{folder}: {len(missing)} tensors are missing from the checkpoint, {missing[0]} among them")
    return model


def load(name: str, device: str | None = None) -> tuple[Any, Any]:
    """Load a model and its processor, ready to answer.

    Weights stay as stored, but on a processor without bf16 instructions half precision becomes float32.

    Args:
        name: a folder or a Hub id.
        device: "cpu", "cuda", …; by default the GPU if there is one.

    Raises:
        ValueError: there is no such device, or no whole LLaSO checkpoint.
    """
    import torch
    from transformers import AutoProcessor

    folder = checkpoint(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {_first_line(error)}") from error
    refuse_other_models(folder)
    processor = AutoProcessor.from_pretrained(folder)
    model = load_model(folder)
    if processor.audio_padding != (trained := model.config.audio_padding):
        logger.warning(
            "%s: its processor pads audio as %s, and the model was trained with %s. The encoder's vectors differ "
            "between the two, most of all at the end of a clip, so answers get worse: set audio_padding to %s in "
            "processor_config.json, or train the model on with the other (docs/real.md)",
            name,
            processor.audio_padding,
            trained,
            trained,
        )
    return in_fp32_if_faster(model.to(device)), processor


def load_for_text(name: str, device: str | None = None) -> tuple[Any, Any]:
    """Load a LLaSO, or a causal language model with the prompt that LLaSO would give it, to ask it in text alone.

    On a CPU the weights become float32.

    Args:
        name: a folder or a Hub id.
        device: by default the GPU if there is one.

    Raises:
        ValueError: there is no such model, or it is neither.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor

    from .conversion import grow_embeddings
    from .processing_llaso import LlasoProcessor, add_audio_tokens

    local = Path(name).expanduser()
    where = str(local) if local.is_dir() else name
    try:
        kind = AutoConfig.from_pretrained(where).model_type
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: neither a model's folder here nor one that can be fetched ({_first_line(error)})"
        ) from error
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


def end_ids(model: Any) -> list[int]:
    """Return the ids of the tokens at which `generate` ends an answer."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _in_fp32_on_cpu(model: Any) -> Any:
    """Return the model in float32 if it is on a CPU, where half precision is slow and rounds close answers."""
    return model.float() if model.device.type == "cpu" else model


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
