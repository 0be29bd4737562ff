"""The folder of an export: the names of its files, and `export.json`, which says what they were made of."""

from __future__ import annotations

import json
from pathlib import Path

from llaso_common import __version__

RECORD_FILE = "export.json"
DESCRIPTION_FILES = {"onnx": "llaso_onnx.json", "executorch": "llaso_executorch.json"}
"""Say how the parts of an export fit together, by its kind."""
TOKENIZER_FILE, TEMPLATE_FILE, MEL_FILTERS_FILE = "tokenizer.json", "chat_template.jinja", "mel_filters.npy"


def write_record(folder: Path, model: str, weights: str) -> None:
    """Write what an export was made of: the model as it was named, the type of weights or files, and this version."""
    record = {"model": model, "type": weights, "llaso": __version__}
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def refuse_other_folder(out: str | Path) -> None:
    """Refuse to overwrite a folder that holds something else than an export.

    Raises:
        ValueError: the folder is not empty, and export.json is missing.
    """
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD_FILE).is_file():
        raise ValueError(f"{folder} holds no export ({RECORD_FILE} is missing), so --overwrite does not replace it")


def kind_of_export(folder: str | Path) -> str:
    """Return `onnx`, `executorch` or `gguf`: what an export's files are for."""
    kinds = [kind for kind, file in DESCRIPTION_FILES.items() if Path(folder, file).is_file()]
    return kinds[0] if kinds else "gguf"


def exported_model(folder: str | Path) -> str:
    """The model that an export was made of, as it was named then.

    Raises:
        ValueError: the folder holds no record, or one that names no model.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: there is no such folder; name what `llaso export` wrote")
    record = Path(folder, RECORD_FILE)
    try:
        model = json.loads(record.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{record}: it does not say which model was exported ({type(error).__name__}); name it with --model"
        ) from error
    return str(model)
