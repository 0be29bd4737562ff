"""Configuration of a LLaSO model: a Whisper encoder, a projector, a causal language model, and how audio is padded.

`count_audio_tokens` is the one formula from mel frames to audio tokens. This file is copied into checkpoints, so it
imports no other package of this project.
"""

import warnings
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, WhisperConfig

from .compatibility_llaso import TRIED_TRANSFORMERS

AUDIO_PADDINGS = ("full", "trim")
LONGEST_TAIL = 30
"""Seconds of silence behind a recording at most: a window's worth."""
POOLINGS = ("average", "concatenate")
ALIGNMENT_KEYS = {"token_ids", "blank_id", "merges", "scale"}

WHISPER_LARGE_V3: dict[str, Any] = {
    "vocab_size": 51866,
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_layers": 32,
    "decoder_attention_heads": 20,
    "decoder_ffn_dim": 5120,
}
LLAMA_3_2_3B: dict[str, Any] = {
    "vocab_size": 128261,  # 128,256 and the five tokens LLaSO adds
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "tie_word_embeddings": True,
}

if TYPE_CHECKING:
    SubConfig = Any  # the type after `__post_init__`
else:
    SubConfig = dict | PreTrainedConfig | None  # the types that the constructor takes

Count = TypeVar("Count")
"""An `int`, a NumPy array or a tensor of integers."""


def count_audio_tokens(frames: Count, stride: int = 1) -> Count:
    """Count the audio tokens of one window of mel frames.

    The encoder's second convolution halves the frames, rounding up; the projector pools `stride` encoder vectors into
    one token, rounding up, so that the last frames are never dropped.

    Args:
        frames: number of mel frames (10 ms each); one number, or an array or tensor of them.
        stride: number of encoder vectors (20 ms each) pooled into one token.

    Returns:
        The number of tokens, in the type of `frames`.
    """
    vectors: Any = (frames + 1) // 2  # type: ignore[operator]
    return (vectors + stride - 1) // stride


def is_tail(value: Any) -> bool:
    """Return whether a value is a number of seconds of silence that may follow a recording."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST_TAIL


def check_padding(audio_padding: str, audio_tail: float = 0.0) -> None:
    """Check how audio is padded.

    Args:
        audio_padding: `"full"` or `"trim"`.
        audio_tail: seconds of silence that follow each recording in `"trim"`.

    Raises:
        ValueError: there is no such padding, or no such tail.
    """
    if audio_padding not in AUDIO_PADDINGS:
        raise ValueError(f"audio_padding is {audio_padding!r}; choose one of {AUDIO_PADDINGS}")
    if not is_tail(audio_tail):
        raise ValueError(f"audio_tail is {audio_tail!r}; it is a number of seconds from 0 to {LONGEST_TAIL}")
    if audio_tail and audio_padding == "full":
        raise ValueError(
            f"audio_tail is {audio_tail:g}, but with audio_padding='full' silence fills the window anyway; set "
            "audio_tail to 0, or audio_padding to 'trim'"
        )


def check_alignment(alignment: Any, vocab_size: int) -> None:
    """Check how audio was aligned with text by CTC; see `LlasoConfig`.

    Args:
        alignment: the configuration's `ctc_alignment`.
        vocab_size: of the language model.

    Raises:
        ValueError: a key is missing or unknown, or its value is of no use.
    """
    remedy = "set ctc_alignment to null in config.json to use the model without it"
    if not isinstance(alignment, dict) or alignment.keys() != ALIGNMENT_KEYS:
        found = sorted(alignment) if isinstance(alignment, dict) else repr(alignment)
        raise ValueError(f"ctc_alignment must have the keys {sorted(ALIGNMENT_KEYS)}, but it is {found}; {remedy}")
    ids, blank, merges, scale = (alignment[key] for key in ("token_ids", "blank_id", "merges", "scale"))
    whole = isinstance(ids, list) and all(type(token) is int for token in ids)
    if not whole or len(ids) < 2 or ids != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= vocab_size:
        raise ValueError(
            f"ctc_alignment: token_ids must be two or more ascending token ids from 0 to {vocab_size - 1}; {remedy}"
        )
    if blank not in ids:
        raise ValueError(f"ctc_alignment: blank_id is {blank!r}, which is not among its token_ids; {remedy}")
    if merges is not None and (type(merges) is not int or merges < 0):
        raise ValueError(f"ctc_alignment: merges is {merges!r}; it must be null or a whole number from 0; {remedy}")
    if type(scale) not in (int, float) or not 0 < scale < float("inf"):
        raise ValueError(f"ctc_alignment: scale is {scale!r}; it must be a number above 0; {remedy}")


def warn_of_other_padding(saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Warn, once for model and processor, if a checkpoint is loaded with other padding than its own.

    Args:
        saved: the checkpoint's settings.
        given: what the caller wants changed in them.
    """
    trained, chosen = saved.get("audio_padding", AUDIO_PADDINGS[0]), given.get("audio_padding")
    if chosen is not None and chosen != trained:
        warnings.warn(
            f"the checkpoint was trained with audio_padding={trained!r} and is loaded with {chosen!r}. The encoder's "
            "vectors differ between the two, most of all at the end of a clip, so answers get worse. Leave "
            "audio_padding out, or train the model on with it",
            UserWarning,
            stacklevel=1,  # one place for all callers, so that Python shows it once
        )
    tail, chosen = saved.get("audio_tail", 0.0), given.get("audio_tail")
    if is_tail(chosen) and chosen != tail:  # another value is refused
        warnings.warn(
            f"the checkpoint was trained with audio_tail={tail!r} and is loaded with {chosen!r}, so it hears other "
            "ends of recordings than it learned from. Leave audio_tail out, or train the model on with it",
            UserWarning,
            stacklevel=1,
        )


@strict
class LlasoConfig(PreTrainedConfig):
    r"""Configuration of a LLaSO model. The defaults are LLaSO-Base: Whisper-large-v3 and Llama-3.2-3B-Instruct, 3.8 B.

    Args:
        audio_config (`dict` or `WhisperConfig`): the encoder. Any Whisper size; its decoder's numbers are not used.
        text_config (`dict` or `PreTrainedConfig`): the language model. Any causal LM of transformers.
        audio_token_id (`int`): the placeholder that audio embeddings replace. If it is `vocab_size` or more, it has
            no embedding row and no logit; if it is less, its logit is masked. Either way it is never generated.
        projector_hidden_act (`str`): activation between the projector's two linear layers.
        projector_stride (`int`): encoder vectors pooled into one audio token; 1 pools nothing, as released.
        projector_pooling (`str`): `"average"` or `"concatenate"`, how `projector_stride` vectors become one.
        projector_norm (`bool`): whether a normalization (RMSNorm with a learned weight) follows the projector, so that
            its vectors start as loud as the LLM's embeddings; the released model has none.
        audio_padding (`str`): `"full"` encodes whole windows of silence-padded audio, as released; `"trim"` encodes
            and attends to the real frames only. Processor and model must agree.
        ctc_alignment (`dict`, *optional*): how the projected audio reads as text without the language model, as a
            training wrote it that aligns the two by CTC: `token_ids`, the tokens that a vector may stand for;
            `blank_id`, the one of them that stands for nothing new; `merges`, how many of the tokenizer's merges make
            the pieces in which text is aligned (None: whole tokens); `scale`, the factor of a vector's product with
            an embedding.
        tie_word_embeddings (`bool`): whether the head shares the input embeddings; by default as in `text_config`.
        tried_transformers (`str`): the versions of transformers this code was tried with. It is
            written for people who read `config.json`, and never read back.

    Raises:
        ValueError: on a value outside the choices above.

    Example:

    ```python
    >>> from modeling_llaso import LlasoConfig, LlasoForConditionalGeneration

    >>> configuration = LlasoConfig(audio_padding="trim")
    >>> model = LlasoForConditionalGeneration(configuration)
    ```"""

    model_type = "llaso"
    sub_configs = {"audio_config": WhisperConfig, "text_config": AutoConfig}  # type: ignore[assignment]
    _auto_class = "AutoConfig"

    audio_config: SubConfig = None
    text_config: SubConfig = None
    audio_token_id: int = 128261
    projector_hidden_act: str = "gelu"
    projector_stride: int = 1
    projector_pooling: str = "average"
    projector_norm: bool = False
    audio_padding: str = "full"
    ctc_alignment: Any = None  # a dict, which is checked in words that say what to do
    tie_word_embeddings: bool | None = None
    tried_transformers: str = TRIED_TRANSFORMERS

    def __post_init__(self, **kwargs):
        # Built here: what transformers builds by itself has changed from version to version.
        if not isinstance(self.audio_config, PreTrainedConfig):
            self.audio_config = WhisperConfig(**_fields(self.audio_config, WHISPER_LARGE_V3))
        if not isinstance(self.text_config, PreTrainedConfig):
            fields = {"model_type": "llama", **_fields(self.text_config, LLAMA_3_2_3B)}
            self.text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        self.tried_transformers = TRIED_TRANSFORMERS  # of this code, not of the code that saved the file
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        check_padding(self.audio_padding)
        if self.ctc_alignment is not None:
            check_alignment(self.ctc_alignment, self.text_config.vocab_size)
        if self.projector_pooling not in POOLINGS:
            raise ValueError(f"projector_pooling is {self.projector_pooling!r}; choose one of {POOLINGS}")
        if self.projector_stride < 1:
            raise ValueError(f"projector_stride is {self.projector_stride}; it counts encoder vectors, so 1 or more")
        if self.projector_stride > (vectors := self.audio_config.max_source_positions):
            raise ValueError(f"projector_stride is {self.projector_stride}, but a window has only {vectors} vectors")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Make a configuration of saved settings and changes to them; warn if `audio_padding` is among these."""
        warn_of_other_padding(config_dict, kwargs)
        return super().from_dict(config_dict, **kwargs)

    @property
    def max_frames(self) -> int:
        """Mel frames of one full window: 3000 for Whisper's 30 s."""
        return 2 * self.audio_config.max_source_positions


def _fields(given: dict[str, Any] | None, default: dict[str, Any]) -> dict[str, Any]:
    return dict(default if given is None else given)


PRESETS: dict[str, dict[str, Any]] = {
    "llaso-base": {"audio_config": WHISPER_LARGE_V3, "text_config": LLAMA_3_2_3B, "audio_token_id": 128261},
}
"""Named models: keyword arguments of `LlasoConfig`."""


def preset(name: str) -> LlasoConfig:
    """Make the configuration of a named model.

    Args:
        name: a key of `PRESETS`, such as `"llaso-base"`.

    Raises:
        ValueError: no preset has this name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset is named {name!r}; there are: {', '.join(PRESETS)}")
    return LlasoConfig(**PRESETS[name])


__all__ = ["PRESETS", "LlasoConfig", "count_audio_tokens", "preset"]
