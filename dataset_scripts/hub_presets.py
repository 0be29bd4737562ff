"""Named corpora that stand on the Hub as files `load_dataset` opens: `librispeech: hub` is a block written here.

LibriSpeech's columns are from its card, Dolly's from copies of its card, alpaca_gpt4's are the usual Alpaca columns.
None was run against the Hub itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .sources import base

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "librispeech": {
        "dataset": "openslr/librispeech_asr",
        "config": "all",
        "splits": {
            "train": ["train.clean.100", "train.clean.360", "train.other.500"],
            "validation": ["validation.clean", "validation.other"],
            "test": ["test.clean", "test.other"],
        },
        "columns": {"speaker": "speaker_id"},
        "tasks": {"ASR": "text"},
        "lowercase": True,
        "speakers_of": "librivox",
    },
    "dolly": {
        "dataset": "databricks/databricks-dolly-15k",
        "columns": {"question": "instruction", "input": "context", "answer": "response"},
        "tasks": {"AQA": "answer"},
    },
    "alpaca_gpt4": {
        "dataset": "vicgalle/alpaca-gpt4",
        "columns": {"question": "instruction", "answer": "output"},
        "tasks": {"AQA": "answer"},
    },
}


def preset(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the block of a named corpus on the Hub.

    Args:
        name: of the corpus.
        changes: what the sources file says otherwise, such as `config`, `splits` or `unpack`.

    Raises:
        ValueError: there is none for this corpus.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset `hub` for it; there are {', '.join(PRESETS)}. A folder of that name is ./hub")
    source = base.load(name)
    stated: dict[str, Any] = {"title": source.title, "license": source.license, "homepage": source.homepage}
    stated |= {"shared": list(source.shared), "eval_share": source.eval_share}
    return {**stated, **PRESETS[name], **changes}
