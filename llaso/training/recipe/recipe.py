"""A recipe: everything one training run is told, as a YAML file reads it and as the code does.

Comes in: a YAML file, perhaps with a `base:` that it differs from, and `key=value` overrides. Goes out: a checked,
frozen `Recipe`. A key that does not exist is refused with the nearest one that does.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

RECIPES = Path(__file__).parent / "recipes"
"""Where the package's own recipes lie; `llaso train stage1_align` finds them by name."""

Part = Literal["encoder", "projector", "llm"]
Modality = Literal["text_audio", "audio_text", "audio"]
Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts"
]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]


@dataclass(frozen=True)
class ModelChoice:
    """Which networks are joined, or which LLaSO checkpoint goes on training."""

    encoder: str | None = None  # Whisper folder or Hub id
    llm: str | None = None  # causal LM folder or Hub id
    checkpoint: str | None = None  # LLaSO folder or Hub id; encoder and llm are then not read
    revision: str | None = None  # of the checkpoint, where it lies on the Hub
    audio_padding: Literal["full", "trim"] | None = None  # unset: the checkpoint's own; of a new model, full
    projector_stride: int | None = None  # encoder vectors (20 ms each) that become one token; unset likewise, or 1
    projector_pooling: Literal["average", "concatenate"] | None = None  # how they do; unset likewise, or average


@dataclass(frozen=True)
class LoraChoice:
    """Low-rank adapters on the LLM; rank 0 trains its full weights. Merged when the model is exported."""

    rank: int = 0
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DataChoice:
    """Which rows are learned from."""

    path: str  # corpus folder or Hub id
    config: str = "default"  # default (all formats), text_audio, audio_text or audio
    split: str = "train"
    validation_split: str = "validation"
    revision: str | None = None
    tasks: tuple[str, ...] = ()  # only these; empty means all
    without_tasks: tuple[str, ...] = ()  # all but these
    without_modalities: tuple[Modality, ...] = ()  # no row of these formats
    streaming: bool = False  # read while training, never the whole corpus at once; needs optimizer.max_steps
    text_path: str | None = None  # a corpus of rows without audio, mixed in
    text_share: float = 0.1  # of the rows, where text_path is named
    max_length: int = 2048  # tokens of text; a longer row is cut, its audio never is
    bad_rows: Literal["stop", "skip"] = "stop"  # an unreadable row ends the run, or is left out and counted
    rows: int = 0  # what the corpus holds, for --dry-run where it is not at hand
    seconds_per_row: float = 0.0  # likewise, the mean of its audio
    text_tokens_per_row: int = 0  # likewise, the mean of what is not audio


@dataclass(frozen=True)
class BatchChoice:
    """How rows come together."""

    per_device: int = 1  # rows of a micro-batch, at most
    accumulation: int = 1  # micro-batches of one step, on each device
    group_by_length: bool = True  # neighbours in length share a micro-batch
    max_tokens: int = 0  # rows x longest row of a micro-batch, at most; 0 means no such limit
    window: int = 64  # micro-batches sorted together; larger pads less and shuffles less


@dataclass(frozen=True)
class OptimizerChoice:
    """How far, and how fast."""

    learning_rate: float
    epochs: float = 1.0
    max_steps: int = 0  # ends sooner (or, streaming, at all); 0 means epochs decide
    warmup_ratio: float = 0.0
    schedule: Schedule = "cosine"  # of transformers' Trainer
    weight_decay: float = 0.0
    clip: float = 1.0  # of the gradient's norm; 0 clips nothing
    normalization: Literal["token", "paper"] = "token"
    distill_weight: float = 0.0  # of the text LLM's answers to transcribed rows; the rest is the label's
    distill_temperature: float = 1.0


@dataclass(frozen=True)
class ComputeChoice:
    """What the arithmetic runs on."""

    precision: Literal["bf16", "fp32"] = "bf16"
    frozen_weights: Literal["bf16", "fp32"] = "fp32"  # how what does not learn is held; what learns is always fp32
    gradient_checkpointing: bool = False
    answer_only_logits: bool = True  # the LLM's head runs on answer tokens alone
    attention: Attention | None = None  # transformers' choice by default
    encoder_cache_gb: float = 0.0  # disk for the frozen encoder's output; 0 computes it anew each time
    encoder_cache: str | None = None  # its folder; `encoder-cache` beside `out` by default
    workers: int = 0  # processes that read and featurize


@dataclass(frozen=True)
class WatchChoice:
    """What is seen of the run, and what stops it."""

    log_every: int = 10  # steps
    save_every: int = 500  # steps
    keep: int = 2  # checkpoints
    evaluate_every: int = 0  # steps; 0 means only at the end
    evaluate_rows: int = 64  # held-out ASR rows transcribed each time
    final_rows: int = 512  # and after the last step
    gate_wer: float | None = None  # the word error rate to come under
    max_loss_jump: float = 10.0  # times the recent median loss; above it the run stops
    reporters: tuple[str, ...] = ("auto",)  # of transformers' Trainer; auto: trackio where installed


Range = tuple[Callable[[float], bool], str]
AT_LEAST_0: Range = (lambda value: value >= 0, "at least 0")
AT_LEAST_1: Range = (lambda value: value >= 1, "at least 1")
ABOVE_0: Range = (lambda value: value > 0, "above 0")
BELOW_1: Range = (lambda value: 0 <= value < 1, "at least 0 and below 1")
RANGES: dict[str, Range] = {
    "model.projector_stride": AT_LEAST_1,
    "data.text_share": BELOW_1,
    "data.max_length": AT_LEAST_1,
    "data.rows": AT_LEAST_0,
    "data.seconds_per_row": AT_LEAST_0,
    "data.text_tokens_per_row": AT_LEAST_0,
    "optimizer.learning_rate": ABOVE_0,
    "optimizer.epochs": ABOVE_0,
    "optimizer.max_steps": AT_LEAST_0,
    "optimizer.warmup_ratio": BELOW_1,
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.clip": AT_LEAST_0,
    "optimizer.distill_weight": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "optimizer.distill_temperature": ABOVE_0,
    "lora.rank": AT_LEAST_0,
    "lora.alpha": AT_LEAST_1,
    "lora.dropout": BELOW_1,
    "batch.per_device": AT_LEAST_1,
    "batch.accumulation": AT_LEAST_1,
    "batch.max_tokens": AT_LEAST_0,
    "batch.window": AT_LEAST_1,
    "compute.encoder_cache_gb": AT_LEAST_0,
    "compute.workers": AT_LEAST_0,
    "watch.log_every": AT_LEAST_1,
    "watch.save_every": AT_LEAST_1,
    "watch.keep": AT_LEAST_1,
    "watch.evaluate_every": AT_LEAST_0,
    "watch.evaluate_rows": AT_LEAST_0,
    "watch.final_rows": AT_LEAST_0,
    "watch.gate_wer": AT_LEAST_0,
    "watch.max_loss_jump": (lambda value: value > 1, "above 1"),
}
"""What every number of a recipe may be; the seed may be any."""


@dataclass(frozen=True)
class Recipe:
    """One training run; each section is explained at its class."""

    model: ModelChoice
    data: DataChoice
    optimizer: OptimizerChoice
    out: str
    train: tuple[Part, ...] = ("projector",)
    lora: LoraChoice = field(default_factory=LoraChoice)
    batch: BatchChoice = field(default_factory=BatchChoice)
    compute: ComputeChoice = field(default_factory=ComputeChoice)
    watch: WatchChoice = field(default_factory=WatchChoice)
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, with the remedy."""
        if not self.train:
            raise ValueError("recipe: `train` names no part; choose among encoder, projector, llm")
        if self.model.checkpoint is None and not (self.model.encoder and self.model.llm):
            raise ValueError("recipe: name `model.encoder` and `model.llm`, or `model.checkpoint`")
        if self.data.streaming and self.optimizer.max_steps <= 0:
            raise ValueError("recipe: a streamed corpus has no known end; set `optimizer.max_steps`")
        if self.compute.encoder_cache_gb > 0 and "encoder" in self.train:
            raise ValueError(
                "recipe: `compute.encoder_cache_gb` keeps the output of a frozen encoder, but `train` names the "
                "encoder; set compute.encoder_cache_gb=0"
            )
        if self.compute.frozen_weights == "bf16" and self.compute.precision == "fp32":
            raise ValueError(
                "recipe: `compute.frozen_weights` is bf16, but `compute.precision` is fp32, which would multiply fp32 "
                "by bf16; set compute.frozen_weights=fp32 as well"
            )
        if self.lora.rank > 0 and "llm" not in self.train:
            raise ValueError("recipe: `lora.rank` adapts the LLM, but `train` does not name llm")
        for name, (fits, words) in RANGES.items():
            value = operator.attrgetter(name)(self)
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise ValueError(f"recipe: `{name}` is {value}, but must be {words}")

    @property
    def encoder_cache_folder(self) -> Path | None:
        """Where the frozen encoder's output is kept, or None."""
        if self.compute.encoder_cache_gb <= 0:
            return None
        return Path(self.compute.encoder_cache or Path(self.out).parent / "encoder-cache")

    def to_dict(self) -> dict[str, Any]:
        """Every setting as plain values, ready for YAML or JSON."""
        return _plain(dataclasses.asdict(self))


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        recipe: a YAML file, the name of one of the package's own (`stage1_align`), a mapping of the same shape, or
            a `Recipe`.
        overrides: `"batch.per_device=4"` strings, or the same as a mapping of dotted names.

    Returns:
        The checked `Recipe`.

    Raises:
        ValueError: an unknown key (with the nearest valid one), a value of the wrong kind, or settings that exclude
            each other.
        FileNotFoundError: no such recipe.
    """
    if isinstance(recipe, Recipe):
        tree, where = recipe.to_dict(), "recipe"
    elif isinstance(recipe, Mapping):
        tree, where = _plain(recipe), "recipe"
    else:
        path = find_recipe(recipe)
        tree, where = _read_yaml(path), path.name
    for name, value in _override_items(overrides):
        _set(tree, name, value)
    return _build(Recipe, tree, where, "")


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe named by path, or by name among the package's own."""
    path = Path(name)
    for candidate in (path, RECIPES / path.name, RECIPES / f"{path.name}.yaml"):
        if candidate.is_file():
            return candidate
    own = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(f"no recipe {name}: give a YAML file, or one of {own}")


def valid_names(kind: type = Recipe, prefix: str = "") -> list[str]:
    """Every dotted name that a recipe may set, e.g. `batch.per_device`."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names += valid_names(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


class _EveryKeyOnce(yaml.SafeLoader):
    """YAML in which a key that comes twice is an error; plain YAML would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` comes twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's own keys laid over those of its `base`."""
    if path.resolve() in seen:
        raise ValueError(f"{path.name}: its `base` leads back to itself")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _EveryKeyOnce)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a recipe is a mapping of sections, this is {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    parent = path.parent / base
    parent = parent if parent.is_file() else find_recipe(base)
    return _merge(_read_yaml(parent, (*seen, path.resolve())), tree)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and (value is None or isinstance(value, Mapping)):
            merged[key] = _merge(old, value or {})
        else:
            merged[key] = value
    return merged


def _override_items(overrides: Iterable[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    items = []
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: write it as key=value, e.g. batch.per_device=4")
        try:
            items.append((name.strip(), yaml.safe_load(value) if value.strip() else None))
        except yaml.YAMLError as error:
            raise ValueError(f"--set {text}: `{value}` is no YAML value: {' '.join(str(error).split())}") from error
    return items


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    """Put a value at a dotted name, refusing names that no recipe has."""
    if name not in valid_names():
        raise ValueError(f"--set {name}: {_unknown(name, valid_names())}")
    *sections, last = name.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ValueError(f"--set {name}: the recipe has {tree!r} for `{section}`, a section with keys of its own")
    tree[last] = value


def _unknown(name: str, valid: list[str]) -> str:
    """ "No such key", with the valid name that is most likely meant."""
    last = name.rpartition(".")[2]
    close = [v for v in valid if v.rpartition(".")[2] == last] or difflib.get_close_matches(name, valid, 1, 0.0)
    return f"no setting `{name}`; the nearest is `{close[0]}`"


def _build(kind: Any, tree: Any, where: str, prefix: str) -> Any:
    """A dataclass from a mapping, every value checked against its type."""
    tree = {} if tree is None else tree  # a section whose keys are all left out
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: `{prefix.rstrip('.')}` is a section with keys of its own, not {tree!r}")
    hints = typing.get_type_hints(kind)
    valid = valid_names()
    for key in tree:
        if key not in hints:
            raise ValueError(f"{where}: {_unknown(f'{prefix}{key}', valid)}")
    values = {key: _value(hints[key], value, where, f"{prefix}{key}") for key, value in tree.items()}
    for spec in dataclasses.fields(kind):
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and spec.name not in values:
            raise ValueError(f"{where}: `{prefix}{spec.name}` is missing")
    return kind(**values)


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    """One value as its type says; YAML 1.1 reads `1e-3` as text, so numbers in text are taken too."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, f"{name}.")
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(next(choice for choice in choices if choice is not types.NoneType), value, where, name)
    if origin is Literal:
        if value in choices:
            return value
        close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1, 0.0)
        raise ValueError(f"{where}: `{name}` is {value!r}; one of {', '.join(map(str, choices))}, perhaps {close[0]}?")
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ValueError(f"{where}: `{name}` is a list, not {value!r}")
        return tuple(_value(choices[0], item, where, name) for item in items)
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"{where}: `{name}` is true or false, not {value!r}")
    if hint is int or hint is float:
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or (hint is int and not number.is_integer()):
            raise ValueError(f"{where}: `{name}` is a{'n integer' if hint is int else ' number'}, not {value!r}")
        return hint(number)
    if not isinstance(value, str):
        raise ValueError(f"{where}: `{name}` is text, not {value!r}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
