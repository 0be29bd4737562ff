"""GGUF files of a model: the language model with its tokenizer, and the encoder with the projector (mmproj).

llama.cpp knows no LLaSO, but its projector type `glma` computes what ours computes: LayerNorm, `stack_factor` vectors
joined to one, two linear layers with GELU between, one vector before the audio and one after. What it cannot compute
is refused before a file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.quants import quant_shape_to_byte_shape, quantize
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llaso_common.output_folder import replaced_folder
from modeling_llaso.loading import end_ids
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import AUDIO_TAGS, LlasoProcessor

from .export_folder import write_record
from .gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from .llama_cpp_template import llama_cpp_template
from .network_parts import head_dim
from .refusals import (
    refuse_disagreement,
    refuse_sliding_windows,
    refuse_unfinished_weights,
    refuse_untried_language_model,
)

TEXT_FILE, MMPROJ_FILE = "model.gguf", "mmproj.gguf"
ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""Language models by their type in transformers, and the name of their architecture in llama.cpp."""
WEIGHT_TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
WINDOW_SECONDS, N_FFT, HOP, RATE, VECTORS = 30, 400, 160, 16_000, 1500
"""Whisper's numbers, which are constants in llama.cpp."""
CONVOLUTIONS = ("a.conv1d.1.weight", "a.conv1d.2.weight")
"""Tensors in half precision in files of every type."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file.

    Attributes:
        name: as llama.cpp knows it.
        kind: how its numbers are stored.
        shape: as PyTorch orders it; a GGUF file has it reversed.
        values: makes its numbers in float32, when they are written.
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    values: Callable[[], torch.Tensor]

    def stored(self) -> np.ndarray:
        """Its numbers as they are stored.

        Raises:
            ValueError: they are not finite, or too large for half precision.
        """
        values = self.values().detach().to("cpu", torch.float32).contiguous().numpy()
        limit = np.finfo(np.float32 if self.kind == GGMLQuantizationType.F32 else np.float16).max
        if not (np.abs(values) <= limit).all():
            if not np.isfinite(values).all():
                why = "the checkpoint holds values that are not finite there; its training may have diverged"
            elif self.name in CONVOLUTIONS:
                why = (
                    "its values are too large for half precision, in which llama.cpp computes this layer; the model "
                    "cannot be exported"
                )
            else:
                why = "its values are too large for half precision; use --type f32"
            raise ValueError(f"{self.name}: {why}")
        return quantize(values, self.kind)


def export_gguf(
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    out: str | Path,
    weights: str = "f16",
    name: str = "LLaSO",
) -> list[Path]:
    """Write a model as two GGUF files.

    Args:
        model: with its weights as trained, neither quantized nor with adapters beside them.
        processor: the model's.
        out: a folder; what is there is replaced once both files are written.
        weights: a key of `WEIGHT_TYPES`. With `"q8_0"` the encoder and the projector stay in half precision.
        name: the model's, for the record beside the files.

    Returns:
        The text file and the mmproj file.

    Raises:
        ValueError: llama.cpp cannot compute this model, or no mapping of its tokenizer is known.
    """
    refuse_inexpressible(model, processor)
    vocabulary = gguf_vocabulary(processor, model.config.text_config.vocab_size, end_ids(model))
    template = llama_cpp_template(processor)
    out = Path(out)
    with replaced_folder(out) as folder:
        _write_text_file(folder / TEXT_FILE, model, vocabulary, template, weights)
        _write_mmproj_file(folder / MMPROJ_FILE, model, processor, "f16" if weights == "q8_0" else weights)
        write_record(folder, name, weights)
    return [out / TEXT_FILE, out / MMPROJ_FILE]


def refuse_inexpressible(model: LlasoForConditionalGeneration, processor: LlasoProcessor) -> None:
    """Refuse a model that llama.cpp's `glma` projector or its language models do not compute.

    Raises:
        ValueError: saying what cannot be computed, and what to do about it.
    """
    config, audio, extractor = model.config, model.config.audio_config, processor.feature_extractor
    text: Any = config.text_config
    refuse_unfinished_weights(model)
    if config.audio_padding != "full":
        raise ValueError(
            'the model was made with audio_padding="trim", and llama.cpp encodes whole windows of 30 s only, so it '
            "would answer differently. Train it with model.audio_padding: full, or serve it with `llaso serve`"
        )
    refuse_disagreement(model, processor)
    if VECTORS % config.projector_stride:
        raise ValueError(
            f"projector_stride is {config.projector_stride}, which does not divide the {VECTORS} vectors of a window; "
            "llama.cpp would lose the last of them. Train with a stride that divides it, such as 4, 5 or 6"
        )
    if config.projector_norm:
        raise ValueError(
            "the model has a norm behind its projector (projector_norm), which llama.cpp does not compute"
        )
    if config.projector_hidden_act != "gelu":
        raise ValueError(
            f"projector_hidden_act is {config.projector_hidden_act!r}; llama.cpp's projector computes the exact GELU, "
            "'gelu', only"
        )
    if audio.activation_function != "gelu" or audio.scale_embedding or audio.max_source_positions != VECTORS:
        raise ValueError(
            f"the encoder has activation_function={audio.activation_function!r}, scale_embedding="
            f"{audio.scale_embedding} and max_source_positions={audio.max_source_positions}; llama.cpp computes "
            f"'gelu', False and {VECTORS}, as in every published Whisper"
        )
    found = {name: getattr(extractor, name) for name in ("sampling_rate", "n_fft", "hop_length", "chunk_length")}
    wanted = {"sampling_rate": RATE, "n_fft": N_FFT, "hop_length": HOP, "chunk_length": WINDOW_SECONDS}
    if wrong := [f"{name}={found[name]} ({wanted[name]})" for name in wanted if found[name] != wanted[name]]:
        raise ValueError(
            f"the log-mel has {', '.join(wrong)}; in brackets is what llama.cpp computes, and nothing else"
        )
    _refuse_language_model(text)


def _refuse_language_model(text: Any) -> None:
    """Refuse a language model outside the families that were tried.

    Raises:
        ValueError: naming the field that does not fit.
    """
    llama = ARCHITECTURES.get(text.model_type) == "LLAMA"
    refuse_untried_language_model(text, ARCHITECTURES, ("default", "llama3") if llama else ("default",))
    refuse_sliding_windows(text)
    fields = text.to_dict()
    # Qwen2 has biases at query, key and value by itself; the others have this field.
    wrong = [name for name in ("attention_bias", "mlp_bias") if fields.get(name)]
    if text.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        wrong.append("partial_rotary_factor")
    if fields["hidden_act"] != "silu":
        wrong.append(f"hidden_act={fields['hidden_act']!r}")
    if wrong:
        raise ValueError(f"the language model has {', '.join(wrong)}, with which the export was not tried")


# ---- The text file ----


def _write_text_file(
    path: Path, model: LlasoForConditionalGeneration, vocabulary: GgufVocabulary, template: str, weights: str
) -> None:
    text: Any = model.config.text_config
    architecture = MODEL_ARCH[ARCHITECTURES[text.model_type]]
    kind, file_type = WEIGHT_TYPES[weights]
    writer = GGUFWriter(path, architecture.name.lower())
    writer.add_type(GGUFType.MODEL)
    writer.add_name("LLaSO")
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    head = head_dim(text)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(text.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_vocab_size(text.vocab_size)
    _add_vocabulary(writer, vocabulary)
    writer.add_chat_template(template)
    _write_tensors(writer, list(_text_tensors(model, architecture, kind)))


def _add_vocabulary(writer: GGUFWriter, vocabulary: GgufVocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.begin is not None)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if vocabulary.begin is not None:
        writer.add_bos_token_id(vocabulary.begin)
    keys = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, number in zip(keys[: len(vocabulary.ends)], vocabulary.ends, strict=True):
        add(number)
    if vocabulary.suppressed:
        writer.add_array("tokenizer.ggml.suppress_tokens", vocabulary.suppressed)


def _text_tensors(
    model: LlasoForConditionalGeneration, architecture: MODEL_ARCH, kind: GGMLQuantizationType
) -> Iterator[GgufTensor]:
    text: Any = model.config.text_config
    names = get_tensor_name_map(architecture, text.num_hidden_layers)
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    for name, tensor in model.model.language_model.state_dict().items():
        layer, _, field = f"model.{name}".rpartition(".")
        part = layer.rsplit(".", 1)[-1]
        paired = architecture == MODEL_ARCH.LLAMA and part in heads
        values = partial(_paired, tensor, heads[part]) if paired else None
        yield _tensor(f"{_known_name(names, layer)}.{field}", tensor, kind, values)
    if not model.config.tie_word_embeddings:
        yield _tensor(f"{_known_name(names, 'lm_head')}.weight", model.lm_head.weight, kind)
    if text.rope_parameters.get("rope_type", "default") == "llama3":
        yield _tensor("rope_freqs.weight", _rope_factors(text), GGMLQuantizationType.F32)


def _paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head, halves → pairs: llama.cpp rotates neighbours for a Llama, transformers halves."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def _rope_factors(text: Any) -> torch.Tensor:
    """The numbers by which llama.cpp divides the rotary frequencies of Llama 3."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](text, torch.device("cpu"))
    head = head_dim(text)
    plain = text.rope_parameters["rope_theta"] ** -(torch.arange(0, head, 2, dtype=torch.float32) / head)
    return plain / scaled


# ---- The mmproj file ----


def _write_mmproj_file(
    path: Path, model: LlasoForConditionalGeneration, processor: LlasoProcessor, weights: str
) -> None:
    audio: Any = model.config.audio_config
    kind, file_type = WEIGHT_TYPES[weights]
    writer = GGUFWriter(path, "clip")
    writer.add_type(GGUFType.MMPROJ)
    writer.add_name("LLaSO")
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_clip_has_audio_encoder(True)
    writer.add_clip_projector_type("glma")
    writer.add_audio_projection_dim(model.config.text_config.hidden_size)
    writer.add_audio_embedding_length(audio.d_model)
    writer.add_audio_feed_forward_length(audio.encoder_ffn_dim)
    writer.add_audio_block_count(audio.encoder_layers)
    writer.add_audio_head_count(audio.encoder_attention_heads)
    writer.add_audio_num_mel_bins(audio.num_mel_bins)
    writer.add_audio_attention_layernorm_eps(model.model.audio_tower.layer_norm.eps)
    writer.add_audio_stack_factor(model.config.projector_stride)
    _write_tensors(writer, list(_mmproj_tensors(model, processor, kind)))


def _mmproj_tensors(
    model: LlasoForConditionalGeneration, processor: LlasoProcessor, kind: GGMLQuantizationType
) -> Iterator[GgufTensor]:
    names = get_tensor_name_map(MODEL_ARCH.MMPROJ, model.config.audio_config.encoder_layers)
    for name, tensor in model.model.audio_tower.state_dict().items():
        layer, _, field = name.rpartition(".")
        if layer in ("conv1", "conv2"):
            # llama.cpp convolves in half precision, and adds the bias to rows of channels.
            to = f"a.conv1d.{layer[-1]}.{field}"
            yield (
                _tensor(to, tensor, GGMLQuantizationType.F16)
                if field == "weight"
                else _tensor(to, tensor[:, None], GGMLQuantizationType.F32)
            )
        elif layer == "layer_norm":
            yield _tensor(f"mm.a.norm_pre.{field}", tensor, kind)
        else:
            positions = layer == "embed_positions"
            to = f"{_known_name(names, f'audio_tower.{layer}')}.{field}"
            yield _tensor(to, tensor, GGMLQuantizationType.F32 if positions else kind)
    projector = model.model.multi_modal_projector
    stride, first = projector.stride, projector.linear_1.weight
    if projector.pooling == "average":
        # The mean of `stride` vectors is a linear layer over all of them in a row.
        shape = torch.empty(len(first), stride * first.shape[1], device="meta")
        yield _tensor("mm.a.mlp.1.weight", shape, kind, lambda: first.float().div(stride).tile(1, stride))
    else:
        yield _tensor("mm.a.mlp.1.weight", first, kind)
    yield _tensor("mm.a.mlp.1.bias", projector.linear_1.bias, kind)
    yield _tensor("mm.a.mlp.2.weight", projector.linear_2.weight, kind)
    yield _tensor("mm.a.mlp.2.bias", projector.linear_2.bias, kind)
    _, _, start, end = processor.tokenizer.convert_tokens_to_ids(list(AUDIO_TAGS))
    embeddings: Any = model.get_input_embeddings()
    yield _tensor("v.boi", embeddings.weight[start], kind)
    yield _tensor("v.eoi", embeddings.weight[end], kind)


# ---- Both files ----


def _tensor(
    name: str, like: torch.Tensor, kind: GGMLQuantizationType, values: Callable[[], torch.Tensor] | None = None
) -> GgufTensor:
    """Describe a tensor shaped `like` another, which is its values as well if none are given.

    Vectors are kept in single precision, and rows that do not fill whole blocks of a quantized type in half.
    """
    if like.ndim < 2:
        kind = GGMLQuantizationType.F32
    elif kind == GGMLQuantizationType.Q8_0 and like.shape[-1] % 32:
        kind = GGMLQuantizationType.F16
    return GgufTensor(name, kind, tuple(like.shape), values or (lambda: like))


def _known_name(names: Any, ours: str) -> str:
    name = names.get_name(ours)
    if name is None:
        raise ValueError(f"llama.cpp has no tensor for {ours}, with which the export was not tried")
    return name


def _write_tensors(writer: GGUFWriter, tensors: list[GgufTensor]) -> None:
    """Write a file's keys, then its tensors one at a time, so that one of them is in memory twice at most."""
    for tensor in tensors:
        # The writer takes the shape in bytes of what is quantized, and works out the rest.
        dtype = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(tensor.kind, np.uint8)
        stored = quant_shape_to_byte_shape(tensor.shape, tensor.kind) if dtype is np.uint8 else tensor.shape
        size = int(np.prod(stored)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(tensor.name, stored, np.dtype(dtype), size, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for tensor in tensors:
            writer.write_tensor_data(tensor.stored())
    finally:
        writer.close()
