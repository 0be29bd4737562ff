"""Checkpoints in and out: every released layout, round trips equal to the bit, new models, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from support.paths import shared_fixture
from support.tiny_llaso import FAMILIES, ask, question, save_parts, text_config, tiny_llaso, tiny_tokenizer, tone
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer

from llaso.cli import main
from modeling_llaso.configuration_llaso import LlasoConfig, preset
from modeling_llaso.conversion import from_official, load_projector, new_model, read_tensors, to_official
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import add_audio_tokens


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A tiny checkpoint in the released format, written by ourselves, so that this file needs no extra fixtures."""
    folder = tmp_path_factory.mktemp("released") / "checkpoint"
    model, processor = tiny_llaso("full")
    return to_official(model, processor, folder)


def with_weights(released: Path, out: Path, kind: str) -> Path:
    """The released checkpoint with its weights in another layout, without the encoder's folder."""
    shutil.copytree(released, out, ignore=shutil.ignore_patterns("*.safetensors", "whisper"))
    tensors = load_file(released / "model.safetensors")
    if kind == "safetensors":
        save_file(tensors, out / "model.safetensors")
    elif kind == "sharded safetensors":
        save_torch_state_dict(tensors, out, max_shard_size="10KB")
        assert (out / "model.safetensors.index.json").is_file()
    elif kind == "bin":  # the head is in the .bin, though it is tied
        torch.save({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, out / "pytorch_model.bin")
    else:
        halves = dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])
        for number, half in enumerate(halves):
            torch.save(half, out / f"pytorch_model-{number}.bin")
        names = {name: f"pytorch_model-{number}.bin" for number, half in enumerate(halves) for name in half}
        (out / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    return out


@pytest.mark.parametrize("kind", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
def test_every_weight_layout_of_the_released_format_round_trips(released, tmp_path, kind):
    folder = with_weights(released, tmp_path / "checkpoint", kind)
    model, processor = from_official(folder, released / "whisper")
    original = load_file(released / "model.safetensors")
    back = read_tensors(to_official(model, processor, tmp_path / "back"))
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)


def test_round_trip_through_the_command(released, tmp_path, capsys):
    assert main(["convert", "--from-official", str(released), "--out", str(tmp_path / "ours")]) == 0
    assert "parameters in" in capsys.readouterr().out
    assert (tmp_path / "ours" / "model.safetensors").is_file()
    assert (tmp_path / "ours" / "chat_template.jinja").is_file()
    generation = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert generation["max_new_tokens"] == 256 and not generation.get("do_sample")
    assert main(["convert", "--to-official", str(tmp_path / "ours"), "--out", str(tmp_path / "back")]) == 0
    before, after = load_file(released / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for name in ("config.json", "tokenizer.json", "whisper/preprocessor_config.json"):
        assert json.loads((released / name).read_text()) == json.loads((tmp_path / "back" / name).read_text()), name


def test_the_published_fixture_round_trips(tmp_path):
    """The released code's own files, with the encoder beside them, inside them, and nowhere but in the weights."""
    folder = shared_fixture("official_parity")
    original = load_file(folder / "checkpoint" / "model.safetensors")
    beside, processor = from_official(folder / "checkpoint")
    back = to_official(beside, processor, tmp_path / "back")
    tensors = read_tensors(back)
    assert tensors.keys() == original.keys()
    assert all(torch.equal(tensors[name], original[name]) for name in original)
    theirs = json.loads((folder / "checkpoint" / "config.json").read_text())
    ours = json.loads((back / "config.json").read_text())
    volatile = {"_name_or_path", "transformers_version", "language", "task", "local_files_only", "use_cache"}
    assert {key: ours.get(key) for key in theirs.keys() - volatile} == {
        key: theirs[key] for key in theirs.keys() - volatile
    }
    assert (
        json.loads((back / "tokenizer.json").read_text())["added_tokens"]
        == (json.loads((folder / "checkpoint" / "tokenizer.json").read_text())["added_tokens"])
    )

    bins = tmp_path / "bin"
    shutil.copytree(folder / "checkpoint", bins, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(folder / "checkpoint_bin" / "pytorch_model.bin", bins)
    shutil.copytree(folder / "whisper", bins / "whisper")
    from_bin, _ = from_official(bins)
    for name, tensor in beside.state_dict().items():
        assert torch.equal(from_bin.state_dict()[name], tensor), name

    shutil.rmtree(bins / "whisper")  # 64 wide: no published Whisper, so nothing tells its heads
    with pytest.raises(ValueError, match="64 wide.*--encoder"):
        from_official(bins)


def test_the_encoder_configuration_is_inferred_from_tensor_shapes(tmp_path):
    """Without the encoder's folder, the sizes come from the tensors and the heads from the published widths."""
    tiny = dict(d_model=384, num_mel_bins=80, encoder_layers=1, encoder_attention_heads=6, encoder_ffn_dim=64)
    model, processor = tiny_llaso("full")
    config = LlasoConfig(
        audio_config={**model.config.audio_config.to_dict(), **tiny},
        text_config=model.config.text_config.to_dict(),
        audio_token_id=model.config.audio_token_id,
    )
    folder = to_official(LlasoForConditionalGeneration(config), processor, tmp_path / "released")
    shutil.rmtree(folder / "whisper")
    read, processor = from_official(folder)
    for field, value in tiny.items():
        assert getattr(read.config.audio_config, field) == value, field
    assert processor.feature_extractor.feature_size == 80


def test_bad_checkpoints_are_named(released, tmp_path, capsys):
    def broken(change) -> Path:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(released, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    with pytest.raises(ValueError, match=r"broken: 1 tensors are missing: model.language_model.norm.weight"):
        from_official(broken(lambda tensors: tensors.pop("model.norm.weight")))
    with pytest.raises(ValueError, match=r"1 tensors belong to no part of the model: .*layers.7.extra"):
        from_official(broken(lambda tensors: tensors.update({"model.layers.7.extra": torch.zeros(1)})))
    with pytest.raises(ValueError, match=r"model.norm.weight has the shape \(3,\).*asks for \(24,\)"):
        from_official(broken(lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)})))
    with pytest.raises(ValueError, match="no tensor of the released format is named 'vision.weight'"):
        from_official(broken(lambda tensors: tensors.update({"vision.weight": torch.zeros(3)})))
    head = torch.zeros_like(load_file(released / "model.safetensors")["model.embed_tokens.weight"])
    with pytest.raises(ValueError, match="ties the head to the embeddings, but the two tensors differ"):
        from_official(broken(lambda tensors: tensors.update({"lm_head.weight": head})))

    folder = tmp_path / "broken"
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor pytorch_model.bin"):
        from_official(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match="the index names model-1.safetensors, which is not there"):
        from_official(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type is 'llama', not the released 'llava_llama'"):
        from_official(folder)
    assert main(["convert", "--from-official", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"llaso: error: {tmp_path}: there is no config.json\n"


def test_models_that_the_released_format_cannot_hold_are_refused(tmp_path):
    trimmed, processor = tiny_llaso("trim", projector_stride=2)
    with pytest.raises(ValueError, match="cannot express projector_stride=2 or audio_padding='trim'"):
        to_official(trimmed, processor, tmp_path)
    normed, processor = tiny_llaso("full", projector_norm=True)
    with pytest.raises(ValueError, match="cannot express projector_norm"):
        to_official(normed, processor, tmp_path)
    other, processor = tiny_llaso("full")
    other.config.projector_hidden_act, other.config.text_config.head_dim = "silu", 3
    with pytest.raises(ValueError, match="cannot express projector_hidden_act='silu' or head_dim=3"):
        to_official(other, processor, tmp_path)
    qwen, processor = tiny_llaso("full", family="qwen2")
    with pytest.raises(ValueError, match="a qwen2 language model"):
        to_official(qwen, processor, tmp_path)


def test_an_alignment_that_is_not_written_is_warned_of(tmp_path):
    model, processor = tiny_llaso(
        "full", ctc_alignment={"token_ids": [1, 2], "blank_id": 1, "merges": None, "scale": 1.0}
    )
    with pytest.warns(UserWarning, match="no place for ctc_alignment"):
        to_official(model, processor, tmp_path)


# ---- Stage-1 artefacts ----


def test_stage_1_artefacts_load_onto_a_model(tmp_path):
    model, _ = tiny_llaso("full")
    wanted = {
        name: torch.randn_like(tensor) for name, tensor in model.model.multi_modal_projector.state_dict().items()
    }
    artefact = {
        f"model.mm_audio_aligner.projector.{0 if 'linear_1' in name else 2}.{name.split('.')[1]}": tensor
        for name, tensor in wanted.items()
    }
    torch.save(artefact, tmp_path / "mm_audio_aligner.bin")
    load_projector(model, tmp_path / "mm_audio_aligner.bin")
    for name, tensor in model.model.multi_modal_projector.state_dict().items():
        assert torch.equal(tensor, wanted[name])

    torch.save({name: tensor[:1] for name, tensor in artefact.items()}, tmp_path / "small.bin")
    with pytest.raises(ValueError, match="small.bin: model.mm_audio_aligner.projector.* has the shape"):
        load_projector(model, tmp_path / "small.bin")
    artefact.pop("model.mm_audio_aligner.projector.2.bias")
    torch.save(artefact, tmp_path / "part.bin")
    with pytest.raises(ValueError, match="part.bin: 1 tensors are missing"):
        load_projector(model, tmp_path / "part.bin")
    with pytest.raises(ValueError, match="nowhere.bin: there is no such file"):
        load_projector(model, tmp_path / "nowhere.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the weights cannot be read"),
        (b"\x00\x17random bytes" * 50, "the weights cannot be read"),
        ("cut", "the weights cannot be read"),
        ("list", "it holds list, not tensors by their names"),
        ("names", "it holds dict, not tensors by their names"),
        ("foreign", "4 tensors are missing"),
    ],
    ids=["empty", "random", "cut off", "a list", "no tensors", "another model's"],
)
def test_a_projector_that_is_none_is_one_line(tmp_path, capsys, content, message):
    file = tmp_path / "mm_audio_aligner.bin"
    kinds = {"list": [1, 2], "names": {"projector": "name"}, "foreign": {"layer.weight": torch.zeros(2, 2)}}
    if content == "cut":
        torch.save({"mm_audio_aligner.projector.0.weight": torch.zeros(100, 100)}, file)
        file.write_bytes(file.read_bytes()[:5_000])
    elif isinstance(content, str):
        torch.save(kinds[content], file)
    else:
        file.write_bytes(content)
    encoder, llm = save_parts(tmp_path)
    arguments = ["new", "--encoder", str(encoder), "--llm", str(llm), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--projector", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"llaso: error: {file}: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


class Planted:
    """Unpickled, it would run code; `weights_only=True` refuses it."""

    def __reduce__(self):
        return (Path.touch, (Path("planted"),))


def test_pickles_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = tiny_llaso("full")
    torch.save({"mm_audio_aligner.projector.0.weight": Planted()}, "mm_audio_aligner.bin")
    with pytest.raises(Exception, match="[Ww]eights"):
        load_projector(model, "mm_audio_aligner.bin")
    assert not Path("planted").exists()


# ---- New models ----


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_from_any_family(tmp_path, family):
    encoder, llm = save_parts(tmp_path, family)
    model, processor = new_model(encoder, llm, audio_padding="trim")
    tokens = processor.tokenizer
    added = tokens.convert_ids_to_tokens(range(tokens.get_vocab()["<Audio>"], len(tokens)))
    assert added == ["<Audio>", "</Audio>", "<audio_start>", "<audio_end>", "<audio>"]
    assert processor.audio_token_id == len(tokens) - 1 == model.config.text_config.vocab_size

    # The language model's own answers are untouched, and its new rows are the mean of the old.
    plain = tokens("Hello there", return_tensors="pt")["input_ids"]
    alone = AutoModelForCausalLM.from_pretrained(llm)
    known = alone.config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(model(plain).logits[..., :known], alone(plain).logits, atol=1e-5, rtol=1e-5)
    rows = model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(rows[known:], rows[:known].mean(0).expand(len(rows) - known, -1))

    # It is saved, opened by its Auto classes, and answers.
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    opened = AutoModelForMultimodalLM.from_pretrained(tmp_path / "new")
    inputs = ask(AutoProcessor.from_pretrained(tmp_path / "new"), [question("What?")], [tone(0.5)])
    assert opened.generation_config.pad_token_id == tokens.pad_token_id is not None
    assert opened.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3
    assert torch.equal(opened(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_a_norm_behind_the_projector_starts_as_loud_as_the_embeddings(tmp_path):
    encoder, llm = save_parts(tmp_path)
    model, processor = new_model(encoder, llm, projector_norm=True)
    projector = model.model.multi_modal_projector
    inputs = ask(processor, [question("What?")], [tone(0.5)])
    vectors = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    embeddings = model.get_input_embeddings().weight
    torch.testing.assert_close(vectors.pow(2).mean(-1).sqrt().mean(), embeddings.pow(2).mean().sqrt())

    # It is what the projector would give, divided by its root mean square, times the learned weight.
    projector.norm.weight.normal_()
    seen = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    norm, projector.norm = projector.norm, torch.nn.Identity()
    bare = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    torch.testing.assert_close(
        seen, bare / bare.pow(2).mean(-1, keepdim=True).sqrt() * norm.weight, rtol=1e-3, atol=1e-5
    )
    projector.norm = norm

    model.save_pretrained(tmp_path / "normed")
    opened = AutoModelForMultimodalLM.from_pretrained(tmp_path / "normed")
    assert opened.config.projector_norm
    assert torch.equal(opened.model.multi_modal_projector.norm.weight, norm.weight)


def test_spare_rows_of_the_language_model_are_used_and_then_cut_off(tmp_path):
    """Qwen pads its vocabulary. A placeholder with a row would have a logit, which vLLM does not mask."""
    encoder, llm = save_parts(tmp_path, "qwen2", spare_rows=20)
    original = load_file(llm / "model.safetensors")["model.embed_tokens.weight"]
    model, processor = new_model(encoder, llm)
    rows = model.get_input_embeddings().weight.detach()
    known = processor.tokenizer.get_vocab()["<Audio>"]  # the first token added: Qwen has a pad token
    assert torch.equal(rows[:known], original[:known])
    torch.testing.assert_close(rows[known:], original[:known].mean(0).expand(4, -1))
    assert model.config.audio_token_id == len(rows) == model.config.text_config.vocab_size
    inputs = ask(processor, [question("What?")], [tone(0.5)])
    assert model(**inputs).logits.shape[-1] == len(rows) == model.lm_head.weight.shape[0]


def test_the_placeholders_id_is_no_multiple_of_64(tmp_path):
    """vLLM pads embeddings to such a multiple, and looks the placeholder up in the padding."""
    encoder, llm = save_parts(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.add_tokens([f"[filler {number}]" for number in range(len(tokenizer), 315)])
    tokenizer.save_pretrained(llm)
    model, processor = new_model(encoder, llm)
    tokens = processor.tokenizer.convert_ids_to_tokens([314, 315, 316, 319, 320, 321])
    assert tokens == ["[filler 314]", "<unk>", "<Audio>", "<audio_end>", "<audio_unused>", "<audio>"]
    assert processor.audio_token_id == len(model.get_input_embeddings().weight) == 321
    again = copy.deepcopy(processor.tokenizer)
    add_audio_tokens(again)
    assert again.get_vocab() == processor.tokenizer.get_vocab()

    # A checkpoint in the released format keeps its rows, whatever their number.
    opened, its_processor = from_official(to_official(model, processor, tmp_path / "released"))
    assert its_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    fixed = tiny_tokenizer()
    fixed.add_tokens([f"[filler {number}]" for number in range(len(fixed), 315)])
    add_audio_tokens(fixed, rows_are_fixed=True)
    assert fixed.convert_tokens_to_ids("<audio>") == 320 == len(fixed) - 1


def test_an_untied_language_model_keeps_its_head(tmp_path):
    encoder, llm = save_parts(tmp_path, "mistral", tie_word_embeddings=False)
    model, _ = new_model(encoder, llm)
    assert model.config.tie_word_embeddings is False
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    original = load_file(llm / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.lm_head.weight[: len(original)].detach(), original)
    model.save_pretrained(tmp_path / "new")
    opened = AutoModelForMultimodalLM.from_pretrained(tmp_path / "new")
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight)


def test_the_new_command(tmp_path, capsys):
    encoder, llm = save_parts(tmp_path)
    out = tmp_path / "new"
    arguments = ["new", "--encoder", str(encoder), "--llm", str(llm), "--out", str(out), "--projector-stride", "4"]
    assert main([*arguments, "--projector-pooling", "concatenate", "--audio-padding", "trim"]) == 0
    assert "its projector is untrained" in capsys.readouterr().out
    model, processor = AutoModelForMultimodalLM.from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert model.model.multi_modal_projector.linear_1.in_features == 4 * 16
    inputs = ask(processor, [question("What?")], [tone(1.0)])
    assert (inputs["input_ids"] == processor.audio_token_id).sum() == 13  # 100 frames, 50 vectors, 12.5 fours
    assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]
    assert main(["new", "--encoder", str(llm), "--llm", str(llm), "--out", str(out)]) == 2
    assert "llaso: error: " in capsys.readouterr().err


def test_work_is_never_overwritten_unasked(released, tmp_path, capsys):
    encoder, llm = save_parts(tmp_path)
    out = tmp_path / "trained"
    new = ["new", "--encoder", str(encoder), "--llm", str(llm), "--out", str(out)]
    assert main(new) == 0
    (out / "README.md").write_text("the card of a trained model")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()

    def refused(arguments: list[str], message: str) -> None:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    refused(new, f"{out} is not empty: it holds README.md, chat_template.jinja")
    refused(["convert", "--from-official", str(released), "--out", str(out)], "replace it with --overwrite")
    refused(["convert", "--to-official", str(out), "--out", str(out), "--overwrite"], f"--out {out} holds {out}")
    refused([*new[:3], "--llm", str(out), "--out", str(out), "--overwrite"], "write to another folder")
    inside = ["new", "--encoder", str(encoder), "--llm", str(llm), "--out", str(tmp_path), "--overwrite"]
    refused(inside, f"--out {tmp_path} holds {encoder}, which is read")
    other = tmp_path / "notes"
    other.mkdir()
    (other / "thesis.txt").write_text("no model")
    refused([*new[:-1], str(other), "--overwrite"], f"{other} holds no model (config.json is missing)")
    assert (other / "thesis.txt").is_file()
    refused([*new, "--overwrite", "--projector", str(tmp_path / "nowhere.bin")], "there is no such file")

    assert main([*new, "--overwrite", "--seed", "1"]) == 0
    assert not (out / "README.md").exists()  # the old card does not describe the new model
    assert (out / "model.safetensors").read_bytes() != before["model.safetensors"]


# ---- The preset ----


def test_llaso_base_has_3_8_billion_parameters():
    with torch.device("meta"):
        model = LlasoForConditionalGeneration(preset("llaso-base"))

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in {p for p in module.parameters()})

    width, layers, feed_forward = 1280, 32, 5120
    attention = 4 * width * width + 3 * width
    block = attention + 2 * width * feed_forward + feed_forward + width + 4 * width
    encoder = (128 * 3 + 1) * width + (3 * width + 1) * width + 1500 * width + layers * block + 2 * width
    hidden, inner = 3072, 8192
    projector = width * hidden + hidden + hidden * hidden + hidden
    llama_block = 2 * hidden * hidden + 2 * hidden * 1024 + 3 * hidden * inner + 2 * hidden
    llama = 128_261 * hidden + 28 * llama_block + hidden
    assert count(model.model.audio_tower) == encoder == 636_968_960
    assert count(model.model.multi_modal_projector) == projector == 13_375_488
    assert count(model.model.language_model) == llama == 3_212_765_184
    assert count(model) == encoder + projector + llama == 3_863_109_632
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert LlasoConfig().to_dict() == preset("llaso-base").to_dict()
    with pytest.raises(ValueError, match="no preset is named 'llaso-huge'; there are: llaso-base"):
        preset("llaso-huge")
    assert text_config().model_type == "llama"
