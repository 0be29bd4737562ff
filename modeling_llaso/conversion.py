"""Converts between the released format and ours, loads stage-1 projectors, and makes models of an encoder and an LLM.

Conversion renames tensors and changes nothing else, so a round trip is equal to the bit. A missing or unexpected
tensor is an error that names it.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from .configuration_llaso import LlasoConfig
from .loading import readable_weights
from .modeling_llaso import LlasoForConditionalGeneration
from .processing_llaso import LlasoProcessor, add_audio_tokens, turn_marks

logger = logging.getLogger(__name__)

RENAMED = (
    ("model.audio_tower.audio_tower.", "model.audio_tower."),
    ("model.mm_audio_aligner.projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_audio_aligner.projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.", "model.language_model."),
    ("lm_head.", "lm_head."),
)
"""Prefixes of tensor names, released and ours; the first that fits is taken."""

WHISPER_HEADS = {384: 6, 512: 8, 768: 12, 1024: 16, 1280: 20}
"""Attention heads of the published Whispers by their width; the shapes of tensors do not tell the heads."""

RELEASED_MAX_LENGTH = 2048
RELEASED_ENCODER_FOLDER = "whisper"
MAX_NEW_TOKENS = 256


def our_name(released: str) -> str:
    """Translate the name of a released tensor into ours."""
    for theirs, ours in RENAMED:
        if released.startswith(theirs):
            return ours + released.removeprefix(theirs)
    raise ValueError(f"no tensor of the released format is named {released!r}")


def released_name(ours: str) -> str:
    """Translate the name of one of our tensors into the released one."""
    for theirs, prefix in RENAMED:
        if ours.startswith(prefix):
            return theirs + ours.removeprefix(prefix)
    raise ValueError(f"no tensor of ours is named {ours!r}")


# ---- Reading and writing tensors ----


def read_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a checkpoint folder: safetensors or `.bin`, in one file or in shards.

    Raises:
        ValueError: no weights are there, a shard is missing, or a file cannot be read.
    """
    folder = Path(folder)
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        elif (folder / f"{stem}.{suffix}").is_file():
            names = [f"{stem}.{suffix}"]
        else:
            continue
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{folder}: the index names {', '.join(missing)}, which is not there")
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            tensors |= _read_file(folder / name)
        return tensors
    raise ValueError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there, nor an index of shards")


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    """Read the named tensors of one file.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    with readable_weights(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError) as error:  # of a zip archive that is cut off
            raise UnpicklingError(str(error)) from error
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        raise ValueError(f"{path}: it holds {type(tensors).__name__}, not tensors by their names")
    return dict(tensors)


def _check_names(found: Iterable[str], expected: Iterable[str], where: str | Path) -> None:
    found, expected = set(found), set(expected)
    if missing := sorted(expected - found):
        raise ValueError(f"{where}: {len(missing)} tensors are missing: {_few(missing)}")
    if unexpected := sorted(found - expected):
        raise ValueError(f"{where}: {len(unexpected)} tensors belong to no part of the model: {_few(unexpected)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _filled(
    config: LlasoConfig, tensors: Mapping[str, torch.Tensor], where: str | Path
) -> LlasoForConditionalGeneration:
    """Make a model of these tensors, without initialising or copying any.

    Raises:
        ValueError: a tensor is missing, unexpected or misshapen; the message names it and `where` it was read.
    """
    with torch.device("meta"):
        model = LlasoForConditionalGeneration(config)
    expected = set(model.state_dict())
    if config.tie_word_embeddings:
        head = tensors.get("lm_head.weight")
        embeddings = tensors.get("model.language_model.embed_tokens.weight")
        if head is not None and embeddings is not None and not torch.equal(head, embeddings):
            raise ValueError(f"{where}: the config ties the head to the embeddings, but the two tensors differ")
        expected.discard("lm_head.weight")
        tensors = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    _check_names(tensors, expected, where)
    for name, parameter in model.state_dict().items():
        if name in tensors and tensors[name].shape != parameter.shape:
            raise ValueError(
                f"{where}: {released_name(name)} has the shape {tuple(tensors[name].shape)}, and the configuration "
                f"asks for {tuple(parameter.shape)}"
            )
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    _fill_buffers(model)
    return model.eval()


def _fill_buffers(model: LlasoForConditionalGeneration) -> None:
    """Rebuild the language model's rotary buffers: no checkpoint holds them, and the meta device left them empty."""
    fresh = type(model.model.language_model.rotary_emb)(config=model.config.text_config)
    model.model.language_model.rotary_emb = fresh


# ---- The released format ----


def from_official(
    folder: str | Path, encoder: str | Path | None = None, *, audio_padding: str = "full"
) -> tuple[LlasoForConditionalGeneration, LlasoProcessor]:
    """Open a checkpoint in the released format.

    Args:
        folder: `config.json`, the tokenizer, and weights as safetensors or `.bin`, sharded or not.
        encoder: the encoder's folder or Hub id, for its configuration; its weights are in the checkpoint. By default
            the folder that the config names, if it is there; otherwise the configuration follows from the tensors'
            shapes.
        audio_padding: `"full"` computes what the released code computes.

    Raises:
        ValueError: tensors are missing, unexpected or misshapen, or their shapes are no published encoder's.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: there is no config.json")
    released = json.loads((folder / "config.json").read_text())
    if released.get("model_type") != "llava_llama":
        raise ValueError(f"{folder}: model_type is {released.get('model_type')!r}, not the released 'llava_llama'")
    tensors = {our_name(name): tensor for name, tensor in read_tensors(folder).items()}

    encoder_folder = _encoder_folder(folder, released, encoder)
    if encoder_folder is not None:
        audio_config = WhisperConfig.from_pretrained(encoder_folder)
        extractor = WhisperFeatureExtractor.from_pretrained(encoder_folder)
    else:
        audio_config = _encoder_from_shapes(tensors, folder)
        extractor = WhisperFeatureExtractor(feature_size=audio_config.num_mel_bins)

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.model_max_length = released["max_position_embeddings"]
    add_audio_tokens(tokenizer, rows_are_fixed=True)
    processor = LlasoProcessor(extractor, tokenizer, audio_padding=audio_padding)
    ours = {"model_type", "architectures", "_name_or_path", "transformers_version", "torch_dtype", "use_cache"}
    text_fields = {key: value for key, value in released.items() if not key.startswith("mm_") and key not in ours}
    for field in ("audio_projector_type", "use_mm_proj", "language", "task", "local_files_only"):
        text_fields.pop(field, None)
    config = LlasoConfig(
        audio_config=_fields(audio_config),
        text_config=LlamaConfig(**text_fields).to_dict(),
        audio_token_id=processor.audio_token_id,
        audio_padding=audio_padding,
        dtype=next(iter(tensors.values())).dtype,
    )
    model = _filled(config, tensors, folder)
    model.generation_config = _generation_config(processor, released)
    return model, processor


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a part's configuration without the folder it was read from, which means nothing elsewhere."""
    fields = config.to_dict()
    fields.pop("_name_or_path", None)
    return fields


def _encoder_folder(folder: Path, released: Mapping[str, Any], encoder: str | Path | None) -> str | Path | None:
    if encoder is not None:
        return encoder
    named = Path(released.get("mm_audio_tower") or RELEASED_ENCODER_FOLDER)
    for candidate in (folder / named, folder.parent / named, folder / named.name):
        if (candidate / "config.json").is_file():
            return candidate
    return None


def _encoder_from_shapes(tensors: Mapping[str, torch.Tensor], folder: Path) -> WhisperConfig:
    tower = {name: tensor for name, tensor in tensors.items() if name.startswith("model.audio_tower.")}
    _check_names(
        [name for name in tower if name.split(".")[2] in ("conv1", "embed_positions")],
        [f"model.audio_tower.{name}" for name in ("conv1.weight", "conv1.bias", "embed_positions.weight")],
        folder,
    )
    width, mels, _ = tower["model.audio_tower.conv1.weight"].shape
    if width not in WHISPER_HEADS:
        raise ValueError(
            f"{folder}: the encoder is {width} wide, which is no published Whisper, so its number of attention heads "
            "cannot be told from its tensors; name the encoder's folder with --encoder"
        )
    layers = 1 + max(int(m[1]) for name in tower if (m := re.match(r"model\.audio_tower\.layers\.(\d+)\.", name)))
    return WhisperConfig(
        d_model=width,
        num_mel_bins=mels,
        encoder_layers=layers,
        encoder_attention_heads=WHISPER_HEADS[width],
        encoder_ffn_dim=tower["model.audio_tower.layers.0.fc1.weight"].shape[0],
        max_source_positions=tower["model.audio_tower.embed_positions.weight"].shape[0],
        decoder_layers=layers,
        decoder_attention_heads=WHISPER_HEADS[width],
    )


def to_official(model: LlasoForConditionalGeneration, processor: LlasoProcessor, out: str | Path) -> Path:
    """Write a model in the released format, with the encoder's folder that the released code asks for.

    The alignment by CTC has no place in it; a warning says so.

    Raises:
        ValueError: the released format cannot express the model: another language model or size of its heads, a
            projector stride, a norm behind the projector or another activation in it, or `trim`.
    """
    config, text = model.config, model.config.text_config
    wrong = []
    if text.model_type != "llama":
        wrong.append(f"a {text.model_type} language model")
    if config.projector_stride != 1:
        wrong.append(f"projector_stride={config.projector_stride}")
    if config.projector_norm:
        wrong.append("projector_norm")
    if config.projector_hidden_act != "gelu":
        wrong.append(f"projector_hidden_act={config.projector_hidden_act!r}")
    if text.model_type == "llama" and text.head_dim != text.hidden_size // text.num_attention_heads:
        wrong.append(f"head_dim={text.head_dim}")
    if config.audio_padding != "full":
        wrong.append(f"audio_padding={config.audio_padding!r}")
    if wrong:
        raise ValueError(f"the released format cannot express {' or '.join(wrong)}")
    if config.ctc_alignment is not None:
        warnings.warn(
            "the released format has no place for ctc_alignment, so it is not written: the converted model cannot be "
            "decoded jointly with what its audio says",
            UserWarning,
            stacklevel=2,
        )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    tensors = {released_name(name): tensor for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_torch_state_dict(tensors, out)

    rope = dict(text.rope_parameters)
    fields = {
        key: value
        for key, value in text.to_dict().items()
        if key not in ("model_type", "rope_parameters", "dtype", "transformers_version", "head_dim")
    }
    fields |= {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "audio_projector_type": "mlp2x_gelu",
        "mm_audio_hidden_size": config.audio_config.d_model,
        "mm_audio_select_feature": "patch",
        "mm_audio_select_layer": -1,
        "mm_audio_tower": RELEASED_ENCODER_FOLDER,
        "use_mm_proj": True,
    }
    (out / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    model.generation_config.save_pretrained(out)

    encoder = out / RELEASED_ENCODER_FOLDER
    config.audio_config.save_pretrained(encoder)
    processor.feature_extractor.save_pretrained(encoder)
    tower = {f"encoder.{name}": tensor.contiguous() for name, tensor in model.model.audio_tower.state_dict().items()}
    save_file(tower, encoder / "model.safetensors", metadata={"format": "pt"})

    _without_placeholder(processor).save_pretrained(out)
    return out


def _without_placeholder(processor: LlasoProcessor) -> PreTrainedTokenizerFast:
    """Return the tokenizer as the released code has it, without the placeholder, which is always the last token."""
    state = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != processor.audio_token]
    tokenizer = processor.tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        model_max_length=RELEASED_MAX_LENGTH,
        padding_side="right",
    )


def load_projector(model: LlasoForConditionalGeneration, path: str | Path) -> None:
    """Load a stage-1 artefact of the released code, `mm_audio_aligner.bin`, onto a model.

    Raises:
        ValueError: the file is not there, cannot be read, is no such artefact, or is of another size.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    prefix = "model.multi_modal_projector."
    tensors = {our_name(_full_name(name)): tensor for name, tensor in _read_file(Path(path)).items()}
    projector = model.model.multi_modal_projector
    expected = {prefix + name: tensor for name, tensor in projector.state_dict().items()}
    _check_names(tensors, expected, path)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: {released_name(name)} has the shape {tuple(tensor.shape)}, and the model's projector "
                f"{tuple(expected[name].shape)}"
            )
    projector.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})


def _full_name(name: str) -> str:
    """Complete a tensor's name, before which training wrappers leave `base_model.` or nothing."""
    return "model.mm_audio_aligner." + name.split("mm_audio_aligner.")[-1]


# ---- A new model from two parts ----


def new_model(
    encoder: str | Path,
    llm: str | Path,
    *,
    audio_padding: str = "full",
    projector_stride: int = 1,
    projector_pooling: str = "average",
    projector_norm: bool = False,
    projector: str | Path | None = None,
    dtype: str = "auto",
    seed: int = 0,
    rows_are_fixed: bool = False,
) -> tuple[LlasoForConditionalGeneration, LlasoProcessor]:
    """Make an untrained LLaSO of a Whisper's encoder, a causal language model and a randomly drawn projector.

    Args:
        encoder: folder or Hub id of any Whisper.
        llm: folder or Hub id of a causal language model of the Llama, Qwen, Mistral or Gemma families.
        audio_padding, projector_stride, projector_pooling, projector_norm: see `LlasoConfig`. The norm starts at the
            root mean square of the LLM's embeddings.
        projector: a stage-1 artefact, `mm_audio_aligner.bin`, instead of a drawn projector.
        dtype: of the weights; `"auto"` keeps the language model's.
        seed: of the drawn projector.
        rows_are_fixed: see `add_audio_tokens`; as released, whatever the number of rows.

    Returns:
        The model and its processor. New rows of the embeddings are the mean of the old ones, as released.

    Raises:
        ValueError: a part is no Whisper or no language model of text, or its weights or the projector cannot be read.
    """
    whisper_config = AutoConfig.from_pretrained(encoder)
    if whisper_config.model_type != "whisper":
        raise ValueError(f"{encoder}: the encoder is a {whisper_config.model_type!r}, not a Whisper")
    if (llm_type := AutoConfig.from_pretrained(llm).model_type) in ("whisper", "llaso"):
        raise ValueError(f"{llm}: the LLM is a {llm_type!r}, not a language model of text")
    with readable_weights(llm):
        language_model = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype)
    known = len(AutoTokenizer.from_pretrained(llm))
    processor = new_processor(
        encoder,
        llm,
        audio_padding=audio_padding,
        projector_stride=projector_stride,
        rows_are_fixed=rows_are_fixed,
    )
    grow_embeddings(language_model, known, processor.audio_token_id)
    with readable_weights(encoder):
        whisper = WhisperModel.from_pretrained(encoder, dtype=language_model.dtype)
    config = LlasoConfig(
        audio_config=_fields(whisper_config),
        text_config=_fields(language_model.config.get_text_config()),
        audio_token_id=processor.audio_token_id,
        audio_padding=audio_padding,
        projector_stride=projector_stride,
        projector_pooling=projector_pooling,
        projector_norm=projector_norm,
        dtype=language_model.dtype,
    )
    with torch.device("meta"):
        model = LlasoForConditionalGeneration(config)
    model.model.audio_tower.load_state_dict(whisper.encoder.state_dict(), assign=True)
    model.model.language_model = language_model.base_model
    model.lm_head = language_model.get_output_embeddings()
    model.model.multi_modal_projector.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model._init_weights(model.model.multi_modal_projector)
    if projector_norm:
        rows = language_model.get_input_embeddings().state_dict()["weight"]
        loudness = rows.float().pow(2).mean().sqrt().item()
        torch.nn.init.constant_(model.model.multi_modal_projector.norm.weight, loudness)
    model.model.multi_modal_projector.to(language_model.dtype)
    model.tie_weights()
    model.generation_config = _generation_config(processor, language_model.generation_config.to_dict())
    if projector is not None:
        load_projector(model, projector)
    return model.eval(), processor


def new_processor(
    encoder: str | Path,
    llm: str | Path,
    *,
    audio_padding: str = "full",
    audio_tail: float = 0.0,
    projector_stride: int = 1,
    rows_are_fixed: bool = False,
) -> LlasoProcessor:
    """Make the processor of an untrained LLaSO: the LLM's tokenizer with audio tokens, and the Whisper's log-mel."""
    tokenizer = AutoTokenizer.from_pretrained(llm)
    add_audio_tokens(tokenizer, rows_are_fixed)
    extractor = WhisperFeatureExtractor.from_pretrained(encoder)
    return LlasoProcessor(
        extractor, tokenizer, audio_padding=audio_padding, audio_tail=audio_tail, projector_stride=projector_stride
    )


def grow_embeddings(language_model, known: int, rows: int) -> None:
    """Give the tokens from `known` up to `rows` an embedding, the mean of the known ones.

    Spare rows are used, and those that are left are cut off: a placeholder without a row has no logit in any program,
    while here alone the logit of one with a row is masked.

    Args:
        language_model: any causal LM of transformers; changed in place.
        known: number of tokens in its own tokenizer.
        rows: number of rows needed: the placeholder's id, since the placeholder needs none.
    """
    if rows != language_model.get_input_embeddings().weight.shape[0]:
        language_model.resize_token_embeddings(rows, mean_resizing=False)
    for layer in {language_model.get_input_embeddings(), language_model.get_output_embeddings()}:
        with torch.no_grad():
            layer.weight[known:rows] = layer.weight[:known].mean(0)


def _generation_config(processor: LlasoProcessor, source: Mapping[str, Any]) -> GenerationConfig:
    """Generate as the released code does, greedily and at most 256 new tokens; the end of a turn ends an answer."""
    ends = source.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    end_of_turn = processor.tokenizer.convert_tokens_to_ids(turn_marks(processor.tokenizer).assistant[1])
    if end_of_turn not in ends:
        ends = [*ends, end_of_turn]
    return GenerationConfig(
        bos_token_id=source.get("bos_token_id"),
        eos_token_id=ends,
        pad_token_id=processor.tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
    )
