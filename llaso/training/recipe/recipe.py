"""The recipe of a training run: every setting, its default and its range.

`load_recipe` reads one from YAML, perhaps with a `base` and `key=value` overrides; `yaml_loader.py` does the reading.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from llaso_common.half_precision import computes_in_bf16

from .yaml_loader import Range, check_ranges, read_settings, read_yaml, to_plain

RECIPES = Path(__file__).parent / "recipes"
"""The package's own recipes; `llaso train stage1_align` finds them by name."""
RETIRED = {
    "data.streaming": (
        False,
        "every corpus is read while training, none is copied; take it out, and optimizer.max_steps if `epochs` is "
        "to set the length",
    )
}
"""Former settings, with the value that files of old runs have and what to do about another."""

UP_TO_30 = Range(lambda value: 0 <= value <= 30, "between 0 and 30")
UP_TO_50 = Range(lambda value: 0 <= value <= 50, "between 0 and 50")
HALF_TO_DOUBLE = Range(lambda value: 0.5 <= value <= 2, "between 0.5 and 2")
A_FRAME = Range(lambda value: value >= 0.01, "at least 0.01, which is a frame")
AT_LEAST_0 = Range(lambda value: value >= 0, "at least 0")
AT_LEAST_1 = Range(lambda value: value >= 1, "at least 1")
ABOVE_0 = Range(lambda value: value > 0, "above 0")
ABOVE_1 = Range(lambda value: value > 1, "above 1")
BELOW_1 = Range(lambda value: 0 <= value < 1, "at least 0 and below 1")
FRACTION = Range(lambda value: 0 <= value <= 1, "between 0 and 1")
SHARE = Range(lambda value: 0 < value <= 1, "above 0 and at most 1")

Part = Literal["encoder", "projector", "llm"]
Modality = Literal["text_audio", "audio_text", "audio"]
Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts"
]
Checkpointing = bool | Literal["selective"]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]


@dataclass(frozen=True)
class ModelChoice:
    """The networks to join, or the LLaSO checkpoint to start from."""

    encoder: str | None = None  # Whisper folder or Hub id
    llm: str | None = None  # causal LM folder or Hub id
    checkpoint: str | None = None  # LLaSO folder or Hub id; encoder and llm are not read then
    revision: str | None = None  # of the checkpoint, if it is read from the Hub
    audio_padding: Literal["full", "trim"] | None = None  # unset: the checkpoint's own; of a new model, full
    audio_tail: Annotated[float, UP_TO_30] | None = None  # seconds of silence behind a recording, in trim; unset: 0
    projector_stride: Annotated[int, AT_LEAST_1] | None = None  # encoder vectors (20 ms) per token; unset: as above
    projector_pooling: Literal["average", "concatenate"] | None = None  # unset: as above
    projector_norm: bool | None = None  # normalize its output to the scale of the LLM's embeddings; unset: as above


@dataclass(frozen=True)
class LoraChoice:
    """Low-rank adapters on the LLM's linear layers, merged when the model is exported; rank 0: no adapters."""

    rank: Annotated[int, AT_LEAST_0] = 0
    alpha: Annotated[int, AT_LEAST_1] = 32
    dropout: Annotated[float, BELOW_1] = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class EncoderLoraChoice(LoraChoice):
    """Low-rank adapters on the encoder's linear layers, merged when the model is exported; rank 0: no adapters."""

    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class DataChoice:
    """The rows to train on."""

    path: str  # corpus folder or Hub id
    config: str = "default"  # default (all formats), text_audio, audio_text or audio
    split: str = "train"
    validation_split: str = "validation"
    revision: str | None = None  # branch, tag or commit, if the corpus is read from the Hub
    tasks: tuple[str, ...] = ()  # only these; empty means all
    without_tasks: tuple[str, ...] = ()  # all but these
    without_modalities: tuple[Modality, ...] = ()  # no row of these formats
    speech_share: Annotated[float, SHARE] = 1.0  # of the seconds of speech, in whole speakers
    # recordings to transcribe are played at one of these, drawn anew in each epoch; 1 is their own
    speeds: tuple[Annotated[float, HALF_TO_DOUBLE], ...] = (1.0,)
    text_path: str | None = None  # a corpus of rows without audio, mixed in
    text_revision: str | None = None  # of that corpus, likewise
    text_share: Annotated[float, BELOW_1] = 0.1  # of the rows, if text_path is named
    max_length: Annotated[int, AT_LEAST_1] = 2048  # tokens of text; a longer row is cut, its audio never is
    bad_rows: Literal["stop", "skip"] = "stop"  # an unreadable row ends the run, or is left out and counted
    rows: Annotated[int, AT_LEAST_0] = 0  # what the corpus holds, for --dry-run if it is not on this disk
    seconds_per_row: Annotated[float, AT_LEAST_0] = 0.0  # likewise, the mean of its audio
    text_tokens_per_row: Annotated[int, AT_LEAST_0] = 0  # likewise, the mean of what is not audio

    @property
    def slowest_speed(self) -> float:
        """The smallest of `speeds`, or 1 if all are larger: a recording may keep its own; see `RowEncoder`."""
        return min(1.0, *self.speeds)


@dataclass(frozen=True)
class BatchChoice:
    """How rows are put into batches, and how many make a step.

    A step has `per_device` x `accumulation` rows on each device. If `rows` or `tokens` says what a step holds on all
    devices together, `accumulation` follows from it and is not read.
    """

    per_device: Annotated[int, AT_LEAST_1] | Literal["auto"] = 1  # rows of a micro-batch, at most; auto: what fits
    accumulation: Annotated[int, AT_LEAST_1] = 1  # micro-batches of one step, on each device
    rows: Annotated[int, AT_LEAST_0] = 0  # of one step, on all devices together
    tokens: Annotated[int, AT_LEAST_0] = 0  # of one step likewise, counted as `max_tokens` does
    group_by_length: bool = True  # neighbours in length share a micro-batch
    max_tokens: Annotated[int, AT_LEAST_0] = 0  # of a micro-batch, padding included, at most; 0 means no such limit
    packing: bool = False  # rows of a micro-batch end to end, without padding
    window: Annotated[int, AT_LEAST_1] = 64  # micro-batches sorted together; larger pads less and shuffles less

    def __post_init__(self) -> None:
        if self.rows > 0 and self.tokens > 0:
            raise ValueError("recipe: `batch.rows` and `batch.tokens` both say how large a step is; set one of them")
        if self.rows > 0 and self.max_tokens > 0:
            raise ValueError(
                "recipe: `batch.max_tokens` makes micro-batches of unequal numbers of rows, so that a step cannot "
                "have exactly `batch.rows`; set batch.tokens in its place, or batch.max_tokens=0"
            )
        if self.per_device == "auto" and not self.rows and not self.tokens:
            raise ValueError(
                "recipe: `batch.per_device` is auto, which depends on the device, so a step's size must not follow "
                "from it; set batch.rows or batch.tokens"
            )
        if self.per_device == "auto" and self.max_tokens > 0:
            raise ValueError(
                "recipe: `batch.per_device` auto measures how many tokens a micro-batch may have, so that "
                "`batch.max_tokens` would not be read; set batch.max_tokens=0, or batch.per_device to a number"
            )
        if self.tokens > 0 and not self.max_tokens and self.per_device != "auto":
            raise ValueError(
                "recipe: `batch.tokens` is filled by micro-batches of `batch.max_tokens`; set it to what fits on a "
                "device, or batch.per_device=auto"
            )

    @property
    def at_once(self) -> int:
        """Rows of a micro-batch, at most; 1 if they are still to be measured."""
        return self.per_device if isinstance(self.per_device, int) else 1

    def on(self, processes: int) -> BatchChoice:
        """Return the same batches for so many processes, with the accumulation that follows.

        Raises:
            ValueError: a step cannot be divided into equal shares.
        """
        if self.per_device == "auto" or not (self.rows or self.tokens):
            return self
        whole, name, part = self.rows, "rows", self.per_device
        if self.tokens:
            whole, name, part = self.tokens, "tokens", self.max_tokens
        accumulation, rest = divmod(whole, part * processes)
        if rest:
            setting = "per_device" if self.rows else "max_tokens"
            near = max((one for one in range(1, part + 1) if whole % (one * processes) == 0), default=0)
            remedy = f"set batch.{setting}={near}" if near else f"take a number of processes that divides {whole:,}"
            raise ValueError(
                f"recipe: a step of batch.{name}={whole:,} cannot be divided into micro-batches of {part:,} on "
                f"{processes} process{'es' if processes > 1 else ''}; {remedy}"
            )
        return dataclasses.replace(self, accumulation=accumulation, rows=0, tokens=0)


@dataclass(frozen=True)
class SpecAugmentChoice:
    """Stretches of the log-mel that are hidden while training (SpecAugment): a small corpus is memorized less."""

    time_masks_per_second: Annotated[float, UP_TO_50] = 0.0  # in the mean; 0 hides no stretch of time
    time_mask_seconds: Annotated[float, A_FRAME] = 0.2  # of the longest stretch of time
    mel_masks: Annotated[int, UP_TO_50] = 0  # bands of mel bins in each window
    mel_mask_share: Annotated[float, FRACTION] = 0.125  # of all mel bins, of the widest band

    @property
    def hides(self) -> bool:
        """Whether anything is hidden."""
        return self.time_masks_per_second > 0 or self.mel_masks > 0


@dataclass(frozen=True)
class PartOptimizerChoice:
    """Optimizer settings of one part; an unset one is that of the whole model."""

    learning_rate: Annotated[float, ABOVE_0] | None = None
    weight_decay: Annotated[float, AT_LEAST_0] | None = None
    start: Annotated[float, BELOW_1] = 0.0  # share of the steps before it begins to learn; it is frozen until then


@dataclass(frozen=True)
class OptimizerChoice:
    """Length of the training, learning rate and loss."""

    learning_rate: Annotated[float, ABOVE_0]
    epochs: Annotated[float, ABOVE_0] = 1.0
    max_steps: Annotated[int, AT_LEAST_0] = 0  # 0: `epochs` sets the length
    warmup_ratio: Annotated[float, BELOW_1] = 0.0
    schedule: Schedule = "cosine"  # of transformers' Trainer
    weight_decay: Annotated[float, AT_LEAST_0] = 0.0
    projector: PartOptimizerChoice = field(default_factory=PartOptimizerChoice)
    llm: PartOptimizerChoice = field(default_factory=PartOptimizerChoice)
    encoder: PartOptimizerChoice = field(default_factory=PartOptimizerChoice)
    beta1: Annotated[float, BELOW_1] = 0.9  # of AdamW
    beta2: Annotated[float, BELOW_1] = 0.999
    clip: Annotated[float, AT_LEAST_0] = 1.0  # of the gradient's norm; 0 clips nothing
    normalization: Literal["token", "paper"] = "token"
    distill_weight: Annotated[float, FRACTION] = 0.0  # share of the text LLM's answers in the loss
    distill_temperature: Annotated[float, ABOVE_0] = 1.0
    ctc_weight: Annotated[float, FRACTION] = 0.0  # share of aligning the projected audio with the transcript by CTC
    # CTC aligns with the pieces of words that the tokenizer's first so many merges make; unset: with its tokens
    ctc_merges: Annotated[int, AT_LEAST_0] | None = None


@dataclass(frozen=True)
class ComputeChoice:
    """Precision, memory and data loading."""

    precision: Literal["auto", "bf16", "fp32"] = "bf16"  # auto: bf16 if this machine computes in it, otherwise fp32
    frozen_weights: Literal["auto", "bf16", "fp32"] = "fp32"  # auto: as `precision`; trainable weights are always fp32
    gradient_checkpointing: Checkpointing = False  # compute layers again in the backward pass; see recomputation.py
    share_prefix: bool = False  # what all rows of a micro-batch begin with, the system prompt, runs once
    answer_only_logits: bool = True  # the LLM's head runs on answer tokens alone
    attention: Attention | None = None  # transformers' choice by default
    compile: bool | Literal["auto"] = False  # run the layers of encoder and LLM through torch.compile; auto: if it can
    encoder_cache_gb: Annotated[float, AT_LEAST_0] = 0.0  # disk for the frozen encoder's output; 0: none kept
    encoder_cache: str | None = None  # its folder; `encoder-cache` beside `out` by default
    loss_chunk: Annotated[int, AT_LEAST_1] = 1024  # answer tokens whose logits are made together
    workers: Annotated[int, AT_LEAST_0] = 0  # processes that read and featurize
    memory_gb: Annotated[float, AT_LEAST_0] = 0.0  # limit for per_device=auto on a CPU; 0: four fifths of free memory


@dataclass(frozen=True)
class WatchChoice:
    """What a run logs, saves and evaluates, and what stops it."""

    log_every: Annotated[int, AT_LEAST_1] = 10  # steps
    show_seconds: bool = False  # add the seconds by purpose to progress lines; `history.jsonl` always has them
    save_every: Annotated[int, AT_LEAST_1] = 500  # steps
    save_whole: bool = False  # write frozen weights into every checkpoint, too; sharded runs always do
    save_beside: bool = True  # write checkpoints in a thread beside the training; sharded runs never do
    keep: Annotated[int, AT_LEAST_1] = 2  # checkpoints
    evaluate_every: Annotated[int, AT_LEAST_0] = 0  # steps; 0 means only at the end
    evaluate_rows: Annotated[int, AT_LEAST_0] = 64  # held-out ASR rows transcribed each time
    final_rows: Annotated[int, AT_LEAST_0] = 512  # and after the last step
    gate_wer: Annotated[float, AT_LEAST_0] | None = None  # the word error rate must be below this
    max_loss_jump: Annotated[float, ABOVE_1] = 10.0  # times the recent median loss; above it the run stops
    reporters: tuple[str, ...] = ("auto",)  # of transformers' Trainer; auto: trackio if installed


@dataclass(frozen=True)
class Recipe:
    """One training run; each section is explained at its class."""

    model: ModelChoice
    data: DataChoice
    optimizer: OptimizerChoice
    out: str
    train: tuple[Part, ...] = ("projector",)
    encoder_last_layers: Annotated[int, AT_LEAST_0] = 0  # only the last so many of its layers learn; 0: all
    lora: LoraChoice = field(default_factory=LoraChoice)
    encoder_lora: EncoderLoraChoice = field(default_factory=EncoderLoraChoice)
    batch: BatchChoice = field(default_factory=BatchChoice)
    spec_augment: SpecAugmentChoice = field(default_factory=SpecAugmentChoice)
    compute: ComputeChoice = field(default_factory=ComputeChoice)
    watch: WatchChoice = field(default_factory=WatchChoice)
    seed: int = 42

    def __post_init__(self) -> None:
        """Raise a ValueError, with the remedy, for settings that cannot be trained."""
        check_ranges(self, "recipe")
        if not self.data.speeds:
            raise ValueError("recipe: `data.speeds` is empty; [1.0] plays recordings as they are")
        if not self.train:
            raise ValueError("recipe: `train` names no part; choose among encoder, projector, llm")
        if self.model.checkpoint is None and not (self.model.encoder and self.model.llm):
            raise ValueError("recipe: name `model.encoder` and `model.llm`, or `model.checkpoint`")
        if self.compute.encoder_cache_gb > 0 and "encoder" in self.train:
            raise ValueError(
                "recipe: `compute.encoder_cache_gb` keeps the output of a frozen encoder, but `train` names the "
                "encoder; set compute.encoder_cache_gb=0"
            )
        if self.compute.encoder_cache_gb > 0 and self.spec_augment.hides:
            raise ValueError(
                "recipe: `compute.encoder_cache_gb` keeps the encoder's output for recordings as they are, but "
                "`spec_augment` hides other parts of them in each step; set compute.encoder_cache_gb=0, or "
                "spec_augment.time_masks_per_second=0 and spec_augment.mel_masks=0"
            )
        if self.compute.encoder_cache_gb > 0 and set(self.data.speeds) != {1.0}:
            raise ValueError(
                "recipe: `compute.encoder_cache_gb` keeps the encoder's output for recordings as they are, but "
                "`data.speeds` plays them at others; set compute.encoder_cache_gb=0, or data.speeds=[1.0]"
            )
        if self.compute.frozen_weights == "bf16" and self.compute.precision == "fp32":
            raise ValueError(
                "recipe: `compute.frozen_weights` is bf16, but `compute.precision` is fp32, which would multiply fp32 "
                "by bf16; set compute.frozen_weights=fp32 as well"
            )
        for part in ("projector", "llm", "encoder"):
            if getattr(self.optimizer, part) != PartOptimizerChoice() and part not in self.train:
                raise ValueError(
                    f"recipe: `optimizer.{part}` has values of its own, but `train` does not name {part}; add {part} "
                    "to `train`, or set them to null, and `start` to 0"
                )
        if all(getattr(self.optimizer, part).start > 0 for part in self.train):
            raise ValueError(
                f"recipe: until optimizer.{self.train[0]}.start nothing would learn; set it to 0 for one of the parts "
                "that `train` names"
            )
        for part, setting, value in (
            ("llm", "lora.rank", self.lora.rank),
            ("encoder", "encoder_lora.rank", self.encoder_lora.rank),
            ("encoder", "encoder_last_layers", self.encoder_last_layers),
        ):
            if value > 0 and part not in self.train:
                raise ValueError(
                    f"recipe: `{setting}` says how the {part} learns, but `train` does not name {part}; add {part} to "
                    f"`train`, or set {setting}=0"
                )
        if self.encoder_lora.rank > 0 and self.encoder_last_layers > 0:
            raise ValueError(
                "recipe: `encoder_lora.rank` adapts every layer of the encoder, but `encoder_last_layers` lets the "
                "last ones learn alone; set one of them to 0"
            )
        if self.optimizer.ctc_merges is not None and self.optimizer.ctc_weight == 0:
            raise ValueError(
                "recipe: `optimizer.ctc_merges` splits what CTC aligns, but nothing is aligned; set "
                "optimizer.ctc_weight above 0, or optimizer.ctc_merges=null"
            )
        if self.optimizer.ctc_weight > 0 and self.batch.packing:
            raise ValueError(
                "recipe: `optimizer.ctc_weight` aligns each row separately, which packed batches do not support; set "
                "batch.packing=false"
            )
        if self.compute.share_prefix and self.batch.packing:
            raise ValueError(
                "recipe: `compute.share_prefix` needs padded batches; set it to false, or batch.packing=false"
            )
        if self.compute.share_prefix and self.compute.attention not in (None, "eager", "sdpa"):
            raise ValueError(
                f"recipe: `compute.share_prefix` does not go with `compute.attention` {self.compute.attention}; set "
                "compute.attention to eager or sdpa, or compute.share_prefix=false"
            )
        if self.model.audio_tail and self.model.audio_padding == "full":
            raise ValueError(
                "recipe: `model.audio_tail` is for `model.audio_padding` trim, since silence fills whole windows "
                "anyway; set model.audio_tail=0, or model.audio_padding=trim"
            )
        if self.optimizer.ctc_weight == 1:
            self._check_without_llm()
        if self.compute.compile is True:
            self._check_compiled()

    def _check_compiled(self) -> None:
        """Raise a ValueError for settings that compiled layers do not go with."""
        if self.batch.packing:
            raise ValueError(
                "recipe: `compute.compile` does not go with `batch.packing`, which would compile a layer for every "
                "number of rows; set batch.packing=false"
            )
        if self.compute.gradient_checkpointing == "selective":
            raise ValueError(
                "recipe: `compute.compile` does not go with `compute.gradient_checkpointing` selective, which needs "
                "each operator by itself; set it to true or false"
            )

    def _check_without_llm(self) -> None:
        """Raise a ValueError for settings that need the LLM, which does not run if `optimizer.ctc_weight` is 1."""
        not_run = "recipe: with optimizer.ctc_weight=1 the LLM does not run, but"
        if "llm" in self.train:
            raise ValueError(f"{not_run} `train` names llm; choose among encoder and projector")
        if self.optimizer.distill_weight > 0:
            raise ValueError(
                f"{not_run} `optimizer.distill_weight` compares its answers; set optimizer.distill_weight=0"
            )
        if self.data.text_path is not None:
            raise ValueError(f"{not_run} `data.text_path` names rows for it alone; set data.text_path=null")

    @property
    def encoder_cache_folder(self) -> Path | None:
        """The folder of the frozen encoder's output, or None if it is not kept."""
        if self.compute.encoder_cache_gb <= 0:
            return None
        return Path(self.compute.encoder_cache or Path(self.out).parent / "encoder-cache")

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as plain values, ready for YAML or JSON."""
        return to_plain(dataclasses.asdict(self))


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        recipe: a YAML file, the name of one of the package's own (`stage1_align`), a mapping of the same shape, or
            a `Recipe`.
        overrides: `"batch.per_device=4"` strings, or the same as a mapping of dotted names.

    Returns:
        The checked `Recipe`, with the precision of this machine in the place of `auto`.

    Raises:
        ValueError: an unknown key (with the nearest valid one), a value of the wrong kind, or settings that exclude
            each other.
        FileNotFoundError: no such recipe.
    """
    if isinstance(recipe, str | Path):
        path = find_recipe(recipe)
        return _on_this_machine(read_settings(Recipe, read_yaml(path, find_recipe), overrides, path.name, RETIRED))
    tree = recipe.to_dict() if isinstance(recipe, Recipe) else recipe
    return _on_this_machine(read_settings(Recipe, tree, overrides, "recipe", RETIRED))


def _on_this_machine(recipe: Recipe) -> Recipe:
    """Replace `auto` in a recipe's precisions."""
    compute = recipe.compute
    precision = compute.precision if compute.precision != "auto" else "bf16" if computes_in_bf16() else "fp32"
    frozen = compute.frozen_weights if compute.frozen_weights != "auto" else precision
    return replace(recipe, compute=replace(compute, precision=precision, frozen_weights=frozen))


def find_recipe(name: str | Path) -> Path:
    """Find a recipe by its path, or by its name among the package's own.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(name)
    for candidate in (path, RECIPES / path.name, RECIPES / f"{path.name}.yaml"):
        if candidate.is_file():
            return candidate
    own = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(f"no recipe {name}: give a YAML file, or one of {own}")
