"""Fetches the real pretrained parts of a model: a Whisper and a chat model, from folders or from the Hub."""

from __future__ import annotations

from pathlib import Path

from llaso.progress import Report
from llaso_common.hub_errors import plain_errors

ENCODER, LLM = "openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The default parts, of 72.6 M and 134.5 M parameters; the command may name folders or other ids instead."""
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""Files that are fetched; other forms of the same weights are left on the Hub."""


def fetch(encoder: str, llm: str, report: Report) -> dict[str, str]:
    """Fetch both parts, or see that they are there.

    Args:
        encoder: folder or Hub id of a Whisper.
        llm: folder or Hub id of a causal language model.
        report: takes progress lines.

    Returns:
        By part, its folder, or its revision on the Hub.

    Raises:
        ValueError: neither a folder here nor a repository of the Hub, or a model of another kind.
        PermissionError: the Hub does not give it to this token.
        ConnectionError: the Hub cannot be reached.
    """
    found = {}
    for part, name in (("encoder", encoder), ("llm", llm)):
        found[part] = _fetched(part, name, report)
        _check_kind(part, name)
    return found


def _fetched(part: str, name: str, report: Report) -> str:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{part}: {name} has no config.json, so no model is in it; name a folder that `save_pretrained` wrote"
            )
        report(f"{part}: the folder {name}")
        return str(folder.absolute())
    remedy = f"Name a folder with the model: `make real ENCODER=DIR LLM=DIR`, or `llaso real --{part} DIR`"
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"{part}: there is no folder {name}. {remedy}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    report(f"{part}: {name} from the Hub, unless it was fetched before")
    try:
        with plain_errors(name):
            revision = Path(snapshot_download(name, allow_patterns=list(WANTED))).name
    except PermissionError as error:
        raise PermissionError(f"{part}: {error}. {remedy}") from error
    except (ConnectionError, LocalEntryNotFoundError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConnectionError(
            f"{part}: {name} is not on this machine, and the Hub does not answer ({first}). {remedy}"
        ) from error
    return f"{name}@{revision}"


def _check_kind(part: str, name: str) -> None:
    """Refuse an encoder that is no Whisper, and an LLM that is one or whose words Stage 1 cannot split."""
    from transformers import AutoConfig, AutoTokenizer

    from llaso.alignment.short_pieces import ShortPieces

    place = Path(name).expanduser() if Path(name).expanduser().is_dir() else name
    kind = AutoConfig.from_pretrained(place).model_type
    if (kind == "whisper") != (part == "encoder"):
        wanted = "a Whisper" if part == "encoder" else "a causal language model"
        raise ValueError(f"{part}: {name} is a {kind} model; {wanted} is wanted. Are the two the wrong way round?")
    if part == "llm":
        try:
            ShortPieces(AutoTokenizer.from_pretrained(place), merges=0)
        except ValueError as error:
            raise ValueError(
                f"llm: {name} has no tokenizer of byte-pair encoding (BPE), whose pieces of words Stage 1 aligns; "
                "name another LLM, or run the stages yourself, the first with `llaso train small_stage1 --set "
                "optimizer.ctc_merges=null …`"
            ) from error
