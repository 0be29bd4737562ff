"""GGUF files: every key, tensor and template against the checkpoint, and what is refused, all without llama.cpp."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import Environment
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'llaso[export]'")

from gguf import GGUFReader
from gguf.quants import dequantize
from support.tiny_families import FAMILIES, family_llaso
from support.tiny_llaso import tone

from llaso.cli import main
from llaso.exporting.gguf_files import export_gguf
from llaso.exporting.gguf_vocabulary import gguf_vocabulary
from llaso.exporting.llama_cpp_check import ClipComparison
from llaso.exporting.llama_cpp_template import llama_cpp_template

MARKER = "<__media_abcDEF123__>"


def read(path: Path) -> tuple[dict, dict[str, np.ndarray], dict[str, str]]:
    """A file's keys, its tensors in float32 as PyTorch orders them, and how each is stored."""
    reader = GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    return keys, tensors, {t.name: t.tensor_type.name for t in reader.tensors}


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    """A family's model with its f32 files."""
    model, processor = family_llaso(request.param)
    folder = tmp_path_factory.mktemp(request.param) / "gguf"
    export_gguf(model, processor, folder, "f32", name="the/model")
    return request.param, model, processor, folder


def test_transformers_reads_the_language_model_back(exported):
    """transformers has its own reader of GGUF: what it makes of the file computes what our language model computes."""
    _, model, _, folder = exported
    back = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype="float32").eval()
    ids = torch.randint(0, model.config.text_config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.lm_head(model.model.language_model(input_ids=ids).last_hidden_state)
        theirs = back(input_ids=ids).logits
    if "rope_freqs.weight" not in {tensor.name for tensor in GGUFReader(folder / "model.gguf").tensors}:
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    else:  # transformers does not read these factors; at the first place nothing is rotated
        torch.testing.assert_close(theirs[:, 0], ours[:, 0], atol=1e-4, rtol=1e-4)


def test_keys_of_the_text_file(exported):
    family, model, processor, folder = exported
    keys, tensors, _ = read(folder / "model.gguf")
    text = model.config.text_config
    arch = {"qwen2": "qwen2", "qwen3": "qwen3"}.get(family, "llama")
    head = {"qwen2": 16, "qwen3": 128}.get(family, 32)
    expected = {
        "general.architecture": arch, "general.type": "model", "general.file_type": 0,
        f"{arch}.context_length": 4096, f"{arch}.embedding_length": 64, f"{arch}.block_count": 2,
        f"{arch}.feed_forward_length": 96, f"{arch}.attention.head_count": 4, f"{arch}.attention.head_count_kv": 2,
        f"{arch}.attention.key_length": head, f"{arch}.attention.value_length": head,
        f"{arch}.rope.dimension_count": head, f"{arch}.vocab_size": text.vocab_size,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": family in ("llama3", "mistral"),
        "tokenizer.ggml.pre": {"llama3": "llama-bpe", "smollm2": "smollm", "mistral": "tekken"}.get(family, "qwen2"),
    }  # fmt: skip
    assert {name: keys.get(name) for name in expected} == expected
    assert keys[f"{arch}.rope.freq_base"] == text.rope_parameters["rope_theta"]
    assert keys[f"{arch}.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    tokenizer = processor.tokenizer
    assert keys["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(text.vocab_size))
    assert processor.audio_token not in keys["tokenizer.ggml.tokens"]
    kinds = zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True)
    control = {token for token, kind in kinds if kind == 3}
    assert control == {token.content for token in tokenizer.added_tokens_decoder.values()} - {processor.audio_token}
    ends = {keys.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")} - {None}
    assert ends == set(model.generation_config.eos_token_id)
    assert ("output.weight" in tensors) == (family == "mistral")


def test_every_tensor_of_the_mmproj_file(exported):
    _, model, processor, folder = exported
    keys, tensors, kinds = read(folder / "mmproj.gguf")
    expected = {
        "general.architecture": "clip", "general.type": "mmproj", "clip.has_audio_encoder": True,
        "clip.projector_type": "glma", "clip.audio.projection_dim": 64, "clip.audio.embedding_length": 64,
        "clip.audio.feed_forward_length": 96, "clip.audio.block_count": 2, "clip.audio.attention.head_count": 2,
        "clip.audio.num_mel_bins": 80, "clip.audio.projector.stack_factor": 50,
        "general.quantization_version": 2,
    }  # fmt: skip
    assert {name: keys.get(name) for name in expected} == expected
    assert keys["clip.audio.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    tower, projector = model.model.audio_tower, model.model.multi_modal_projector
    layer_names = {
        "ln1": "self_attn_layer_norm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_out": "self_attn.out_proj", "ln2": "final_layer_norm",
        "ffn_up": "fc1", "ffn_down": "fc2",
    }  # fmt: skip
    wanted = {
        "a.conv1d.1.weight": tower.conv1.weight.half(), "a.conv1d.1.bias": tower.conv1.bias[:, None],
        "a.conv1d.2.weight": tower.conv2.weight.half(), "a.conv1d.2.bias": tower.conv2.bias[:, None],
        "a.position_embd.weight": tower.embed_positions.weight,
        "mm.a.norm_pre.weight": tower.layer_norm.weight, "mm.a.norm_pre.bias": tower.layer_norm.bias,
        "mm.a.mlp.1.weight": torch.cat([projector.linear_1.weight / 50] * 50, dim=1),
        "mm.a.mlp.1.bias": projector.linear_1.bias,
        "mm.a.mlp.2.weight": projector.linear_2.weight, "mm.a.mlp.2.bias": projector.linear_2.bias,
    }  # fmt: skip
    for number, layer in enumerate(tower.layers):
        for theirs, ours in layer_names.items():
            for field, tensor in layer.get_submodule(ours).named_parameters():
                wanted[f"a.blk.{number}.{theirs}.{field}"] = tensor
    ids = processor.tokenizer.convert_tokens_to_ids(["<audio_start>", "<audio_end>"])
    wanted["v.boi"], wanted["v.eoi"] = model.get_input_embeddings().weight[ids]
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensors[name].shape == tuple(tensor.shape), name
        np.testing.assert_allclose(tensors[name], tensor.detach().float().numpy(), atol=1e-7, err_msg=name)
    assert {name for name, kind in kinds.items() if kind == "F16"} == {"a.conv1d.1.weight", "a.conv1d.2.weight"}


@pytest.mark.parametrize("pooling", ["average", "concatenate"])
def test_stacking_and_two_linear_layers_are_the_projector(pooling, tmp_path):
    """What llama.cpp computes with the mmproj file's tensors is what our projector computes."""
    model, processor = family_llaso("smollm2", projector_pooling=pooling, projector_stride=20)
    export_gguf(model, processor, tmp_path / "gguf", "f32")
    _, file, _ = read(tmp_path / "gguf" / "mmproj.gguf")
    vectors = torch.randn(1, 1500, 64, generator=torch.Generator().manual_seed(0))
    stacked = vectors.reshape(75, 20 * 64)
    first = stacked @ torch.from_numpy(file["mm.a.mlp.1.weight"]).T + torch.from_numpy(file["mm.a.mlp.1.bias"])
    hidden = torch.nn.functional.gelu(first)
    theirs = hidden @ torch.from_numpy(file["mm.a.mlp.2.weight"]).T + torch.from_numpy(file["mm.a.mlp.2.bias"])
    with torch.no_grad():
        torch.testing.assert_close(theirs, model.model.project(vectors), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weights", ["f16", "q8_0"])
def test_smaller_types_are_as_close_as_they_can_be(weights, tmp_path):
    model, processor = family_llaso("llama3")
    for kind in (weights, "f32"):
        export_gguf(model, processor, tmp_path / kind, kind)
    for name in ("model.gguf", "mmproj.gguf"):
        _, exact, _ = read(tmp_path / "f32" / name)
        keys, close, kinds = read(tmp_path / weights / name)
        kept = "F16" if name == "mmproj.gguf" else weights.upper()
        assert keys["general.file_type"] == {"F16": 1, "Q8_0": 7}[kept]
        for tensor, values in exact.items():
            single = values.ndim < 2 or tensor in ("a.position_embd.weight", "a.conv1d.1.bias", "a.conv1d.2.bias")
            assert kinds[tensor] == ("F32" if single else "F16" if tensor.startswith("a.conv1d") else kept), tensor
            step = {"F32": 0, "F16": 2**-11, "Q8_0": 1 / 127}[kinds[tensor]] * np.abs(values).max()
            assert np.abs(close[tensor] - values).max() <= step, tensor


def glued(message: dict) -> dict:
    """A message as llama.cpp's server hands it to the template: one text, with a marker for each audio."""
    content = message["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] if part["type"] == "text" else MARKER for part in content)
    return {**message, "content": content}


TEXT, AUDIO = {"type": "text", "text": " What is said? "}, {"type": "audio"}
CONVERSATIONS = {
    "text then audio": [{"role": "user", "content": [TEXT, AUDIO]}],
    "audio then text": [{"role": "user", "content": [AUDIO, TEXT]}],
    "audio alone": [{"role": "user", "content": [AUDIO]}],
    "two audios": [{"role": "user", "content": [TEXT, AUDIO, AUDIO]}],
    "text between audios": [{"role": "user", "content": [AUDIO, TEXT, AUDIO]}],
    "text alone": [{"role": "user", "content": "Hello <b>there</b>."}],
    "half a marker typed": [{"role": "user", "content": "x <__media y"}],
    "turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [TEXT, AUDIO]},
        {"role": "assistant", "content": "A word."},
        {"role": "user", "content": "Which?"},
    ],
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_the_template_renders_to_the_processors_prompt(case, exported):
    _, _, processor, folder = exported
    conversation = CONVERSATIONS[case]
    clips = sum(part == AUDIO for message in conversation for part in message["content"])
    inputs = processor.apply_chat_template(
        conversation, audio=[tone(0.2)] * clips or None, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    start, end = processor.tokenizer.convert_tokens_to_ids(["<audio_start>", "<audio_end>"])
    ours, inside = [], False
    for number in inputs["input_ids"][0].tolist():
        ours += [-1] if number == start else [] if inside else [number]
        inside = number == start or (inside and number != end)
    template = read(folder / "model.gguf")[0]["tokenizer.chat_template"]
    rendered = (
        Environment()
        .from_string(template)
        .render(messages=[glued(message) for message in conversation], add_generation_prompt=True)
    )
    first, *rest = rendered.split(MARKER)
    theirs = processor.tokenizer(first)["input_ids"]
    for text in rest:
        theirs += [-1, *processor.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert theirs == ours


# ---- What is refused ----

LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama3", {"audio_padding": "trim"}, 'audio_padding="trim".*model.audio_padding: full'),
        ("llama3", {"projector_stride": 7}, "does not divide the 1500"),
        ("llama3", {"projector_hidden_act": "gelu_new"}, "exact GELU"),
        ("llama3", {"projector_norm": True}, "projector_norm"),
        ("llama3", {"text": {"attention_bias": True}}, "attention_bias"),
        ("llama3", {"text": {"rope_parameters": LINEAR_ROPE}}, "'linear'"),
        ("llama3", {"text": {"hidden_act": "gelu"}}, "hidden_act='gelu'"),
        ("mistral", {"text": {"sliding_window": 128}}, '"sliding_window": null'),
        ("qwen2", {"text": {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}}, "sliding"),
    ],
)  # fmt: skip
def test_models_that_llama_cpp_computes_differently_are_refused(family, settings, message, tmp_path):
    model, processor = family_llaso(family, **settings)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        export_gguf(model, processor, tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()


def test_other_families_encoders_and_log_mels_are_refused(tmp_path):
    model, processor = family_llaso("llama3")
    model.config.text_config.model_type = "gemma2"
    with pytest.raises(ValueError, match="'gemma2'; the export was tried with llama, mistral, qwen2, qwen3"):
        export_gguf(model, processor, tmp_path / "gguf")
    model, processor = family_llaso("llama3")
    model.config.audio_config.scale_embedding = True
    with pytest.raises(ValueError, match="scale_embedding=True"):
        export_gguf(model, processor, tmp_path / "gguf")
    model, processor = family_llaso("llama3")
    processor.feature_extractor.n_fft = 512
    with pytest.raises(ValueError, match=r"n_fft=512 \(400\)"):
        export_gguf(model, processor, tmp_path / "gguf")


def test_adapters_and_quantized_weights_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    model, processor = family_llaso("llama3")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"]), model.model.language_model)
    with pytest.raises(ValueError, match="adapters.*merge them"):
        export_gguf(model, processor, tmp_path / "gguf")
    model, processor = family_llaso("llama3")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ValueError, match="quantized already"):
        export_gguf(model, processor, tmp_path / "gguf")


def test_templates_of_ones_own_are_refused():
    _, processor = family_llaso("llama3")
    processor.chat_template = "{{ messages }}"
    with pytest.raises(ValueError, match="template of its own"):
        llama_cpp_template(processor)


def altered(processor, change) -> None:
    """Give a processor a tokenizer whose file was changed."""
    tokenizer = processor.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token,
    )  # fmt: skip


def split_otherwise(state: dict) -> None:
    state["pre_tokenizer"]["pretokenizers"][0] = {"type": "Whitespace"}


def prefix_space(state: dict) -> None:
    state["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def lower_case(state: dict) -> None:
    state["normalizer"] = {"type": "Lowercase"}


def strip_blanks(state: dict) -> None:
    state["added_tokens"][0]["rstrip"] = True


def byte_fallback(state: dict) -> None:
    state["model"]["byte_fallback"] = True


def unreachable_word(state: dict) -> None:
    """A word that no merge makes: it is a token only if merges are ignored."""
    state["model"]["ignore_merges"] = False
    state["model"]["merges"] = state["model"]["merges"][:-20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (split_otherwise, "splits text by Whitespace and ByteLevel"),
        (prefix_space, "knows no pre-tokenizer"),
        (lower_case, "after Lowercase"),
        (strip_blanks, "takes blanks beside it"),
        (byte_fallback, "SentencePiece-like"),
        (unreachable_word, "llama.cpp does the opposite"),
    ],
)
def test_tokenizers_without_a_known_mapping_are_refused(change, message):
    _, processor = family_llaso("llama3")
    altered(processor, change)
    with pytest.raises(ValueError, match=message):
        gguf_vocabulary(processor, processor.audio_token_id, [0])


def test_merges_that_reach_every_word_need_no_flag():
    """Mistral's tokenizer does not ignore merges, and llama.cpp's does: the tokens are the same."""
    _, processor = family_llaso("mistral")
    assert json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]["ignore_merges"] is False
    assert gguf_vocabulary(processor, processor.audio_token_id, [0]).pre == "tekken"


def test_too_many_ends_and_too_few_rows_are_refused():
    _, processor = family_llaso("llama3")
    end_of_turn = processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    others = [number for number in range(4) if number != end_of_turn][:3]
    kept = gguf_vocabulary(processor, processor.audio_token_id, [*others[:2], end_of_turn])
    assert kept.ends == [end_of_turn, *others[:2]]
    with pytest.raises(ValueError, match="4 tokens end an answer, the end of a turn and those in generation_config"):
        gguf_vocabulary(processor, processor.audio_token_id, others)
    with pytest.raises(ValueError, match="do not fit each other"):
        gguf_vocabulary(processor, processor.audio_token_id - 1, [0])


def test_numbers_beyond_half_precision_are_refused_and_nothing_is_written(tmp_path):
    model, processor = family_llaso("smollm2")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match="mm.a.mlp.2.weight.*use --type f32"):
        export_gguf(model, processor, tmp_path / "gguf", "f16")
    assert not list(tmp_path.iterdir())
    export_gguf(model, processor, tmp_path / "gguf", "f32")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        export_gguf(model, processor, tmp_path / "other", "f32")


@pytest.mark.parametrize("weights", ["f16", "f32"])
def test_for_convolutions_beyond_half_precision_no_other_type_is_named(weights, tmp_path):
    model, processor = family_llaso("smollm2")
    with torch.no_grad():
        model.model.audio_tower.conv2.weight[0, 0, 0] = 1e5
    with pytest.raises(ValueError, match="a.conv1d.2.weight.*llama.cpp computes this layer; the model cannot"):
        export_gguf(model, processor, tmp_path / "gguf", weights)


def test_a_placeholder_with_a_row_is_suppressed(tmp_path):
    model, processor = family_llaso("qwen2", spare_rows=40)
    export_gguf(model, processor, tmp_path / "gguf", "f32")
    keys, _, _ = read(tmp_path / "gguf" / "model.gguf")
    placeholder = processor.audio_token_id
    assert keys["tokenizer.ggml.suppress_tokens"] == [placeholder]
    assert keys["tokenizer.ggml.tokens"][placeholder] == "<audio>"
    assert set(keys["tokenizer.ggml.token_type"][placeholder + 1 :]) == {5}  # unused


def test_a_template_of_an_older_checkpoint_is_known():
    """It neither writes the begin of text nor refuses a typed placeholder."""
    _, processor = family_llaso("llama3")
    wanted = llama_cpp_template(processor)
    assert "begin_of_text" not in wanted and "refuse_typed" not in wanted
    template = re.sub(r"\{%- macro refuse_typed.*?endmacro -%\}\n", "", processor.chat_template, flags=re.DOTALL)
    processor.chat_template = re.sub(r" *\{\{- (refuse_typed\(.*\)|'<\|begin_of_text\|>') -\}\}\n", "", template)
    assert len(processor.chat_template.splitlines()) == len(template.splitlines()) - 3
    assert llama_cpp_template(processor) == wanted


# ---- The command ----


def test_the_command_writes_and_loses_nothing(tmp_path, capsys):
    model, processor = family_llaso("smollm2")
    checkpoint, out = tmp_path / "model", tmp_path / "gguf"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    command = ["export", "gguf", str(checkpoint), str(out)]
    assert main(command) == 0
    assert "model.gguf: " in capsys.readouterr().out
    assert json.loads((out / "export.json").read_text())["model"] == str(checkpoint)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    assert main([*command, "--overwrite", "--type", "q8_0"]) == 0
    assert read(out / "model.gguf")[0]["general.file_type"] == 7
    assert main(["export", "gguf", str(checkpoint), str(checkpoint), "--overwrite"]) == 2
    assert "holds no export" in capsys.readouterr().err and (checkpoint / "config.json").is_file()


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (
            ClipComparison((5, 5), [1, 2], [1, 2], (True, True), [0.0, 0.25]),
            "5 prompt tokens; 2 equal answer tokens; log-probabilities within 0.2500",
        ),
        (
            ClipComparison((5, 6), [1], [1], (True, True), [0.5]),
            "DIFFERENT prompt lengths, 5 and 6; 1 equal answer token; log-probabilities within 0.5000",
        ),
        (
            ClipComparison((5, 5), [1], [1], (True, False), [0.5]),
            "5 prompt tokens; 1 equal answer token; only one of them ended by itself; log-probabilities within 0.5000",
        ),
        (
            ClipComparison((5, 5), [], [3], (True, True), []),
            "5 prompt tokens; DIFFERENT ids, [] and [3]; no log-probabilities to compare",
        ),
    ],
)
def test_a_comparison_says_what_differs(one, said):
    assert one.described() == said
    assert one.equal is ("DIFFERENT" not in said and "only one" not in said)


def test_a_check_without_files_or_record_says_what_is_missing(tmp_path, capsys):
    assert main(["export", "check", str(tmp_path), "clip.wav"]) == 2
    assert "name it with --model" in capsys.readouterr().err
