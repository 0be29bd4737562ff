"""Handles versions of transformers: which were tried, which are refused, and names that changed between them.

All other code runs on every version that is not refused. This file is copied into checkpoints and imports nothing
heavy, so that `import modeling_llaso` can check the version first.
"""

import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LOWEST_TRIED = "5.16.1"
NEWEST_TRIED = "5.24.0"
TRIED_TRANSFORMERS = f">={LOWEST_TRIED},<={NEWEST_TRIED}"
"""Versions that `make test-versions` tests, in pip's notation; every saved config has them as `tried_transformers`."""


def release(text: str) -> tuple[int, ...]:
    """Return the numbers a version begins with: `"5.24.0.dev0"` → `(5, 24, 0)`."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in found.group().split(".")) if found else ()


def check_transformers(installed: str | None = None) -> None:
    """Refuse a transformers that is known not to work; warn once of one that was never tried.

    Args:
        installed: a version; the installed one by default.

    Raises:
        ImportError: it is older than the oldest that works; the message says what to install.
    """
    if installed is None:
        installed = installed_transformers()
    if installed is None:
        return  # importing transformers says what is missing
    remedy = f"pip install 'transformers{TRIED_TRANSFORMERS}'"
    if release(installed) < release(LOWEST_TRIED):
        raise ImportError(
            f"LLaSO does not run on transformers {installed}: it was tried with {LOWEST_TRIED} to {NEWEST_TRIED}. "
            f"Run: {remedy}"
        )
    if release(installed) > release(NEWEST_TRIED):
        warnings.warn(
            f"LLaSO was tried with transformers {LOWEST_TRIED} to {NEWEST_TRIED}, not with {installed}. If it fails, "
            f"run: {remedy}",
            UserWarning,
            stacklevel=2,
        )


def installed_transformers() -> str | None:
    """Return the version of transformers that is installed, if one is."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return None


def since(*numbers: int) -> bool:
    """Return whether the installed transformers is of this version or a later one."""
    return release(installed_transformers() or NEWEST_TRIED) >= numbers


CACHE_SINCE_5_24 = "cache" if since(5, 24) else "past_key_values"
"""What transformers calls the keys and values kept between steps, in signatures and in outputs."""
CHECKPOINTING_SINCE_5_23 = "activation_checkpointing" if since(5, 23) else "gradient_checkpointing"
"""What computing activations again in the backward pass is called: in `TrainingArguments`, and in models' methods."""
CHUNKS_PREFILL_SINCE_5_23 = since(5, 23)
"""Whether `generate(prefill_chunk_size=…)` gives a left-padded prompt with audio the answers it has without chunks."""
SANITIZES_SINCE_5_23 = since(5, 23)
"""Whether processors can take control tokens typed by a user as plain text."""
LOADS_AUDIO_SINCE_5_23 = since(5, 23)
"""Whether transformers reads audio files, and its pipelines run, without librosa."""


def checkpoint_activations(model: Any) -> None:
    """Make a model compute its activations again in the backward pass, to keep fewer of them."""
    getattr(model, f"{CHECKPOINTING_SINCE_5_23}_enable")()


def given_cache(cache: Any, kwargs: dict[str, Any]) -> Any:
    """Return the cache that a caller gave, under the new name or, in `kwargs`, under the old one, which is removed.

    Raises:
        ValueError: it came under both, as it does before 5.24 if `generate` was given a `cache`.
    """
    old = kwargs.pop("past_key_values", None)
    if cache is not None and old is not None:
        if CACHE_SINCE_5_24 == "cache":
            raise ValueError("cache and past_key_values are two names of one thing; pass cache only")
        raise ValueError(
            "there are two caches, cache and past_key_values. Before transformers 5.24, generate() knows "
            "past_key_values only, and makes one beside a cache=…: pass the cache as past_key_values=…"
        )
    if old is None:
        return cache
    if CACHE_SINCE_5_24 == "cache":
        warnings.warn("`past_key_values` is deprecated; use `cache` instead", FutureWarning, stacklevel=3)
    return old


check_transformers()

__all__ = [
    "CACHE_SINCE_5_24",
    "CHECKPOINTING_SINCE_5_23",
    "CHUNKS_PREFILL_SINCE_5_23",
    "LOADS_AUDIO_SINCE_5_23",
    "SANITIZES_SINCE_5_23",
    "TRIED_TRANSFORMERS",
    "check_transformers",
    "checkpoint_activations",
    "given_cache",
]
