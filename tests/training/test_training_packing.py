"""Rows laid end to end give the loss and gradients of rows that are padded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.row_examples import examples, loss_and_gradients
from support.tiny_llaso import ask, question, tiny_llaso, tone
from support.tiny_training import row, save_backbones, save_corpus, tiny_recipe
from torch.nn.attention import flex_attention as flex_module
from transformers import AutoConfig, AutoModel, masking_utils
from transformers.integrations import flex_attention as flex_attention_integration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaModel

from benchmarks.padding import realistic_lengths
from llaso.training.recipe.recipe import load_recipe
from llaso.training.rows.batch_plan import BatchRule
from llaso.training.rows.collator import IGNORED, Example, pack, pad
from llaso.training.rows.packing import end_to_end, taken_frames
from llaso.training.run.model_setup import add_lora, freeze_all_but
from llaso.training.run.packed_attention import BY_ROW, attend_by_row, check_rows_apart
from llaso.training.run.packed_encoder import encode_packed
from llaso.training.run.packed_forward import use_packing
from llaso.training.run.train import train
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

ROWS = ((20, (131,)), (7, ()), (31, (40, 77)), (12, (2,)), (15, (64, 63, 1)))
"""Rows as tests lay them: tokens of text, and mel frames of each audio window."""
WINDOW = 16
"""Tokens that sliding layers look back here: less than most rows have."""


def assert_packed_is_padded(model: LlasoForConditionalGeneration, made: list[Example]) -> None:
    """Compare a batch of both forms in one model that can read both."""
    padded_loss, padded = loss_and_gradients(model, pad(made, 0))
    packed_loss, packed = loss_and_gradients(model, pack(made, 0))
    torch.testing.assert_close(packed_loss, padded_loss, rtol=1e-5, atol=1e-5)
    assert packed.keys() == padded.keys() and packed
    for name, gradient in padded.items():
        largest = float(gradient.abs().max().clamp(min=1e-3))
        torch.testing.assert_close(packed[name], gradient, rtol=0, atol=1e-5 * largest, msg=name)


def packing_model(padding: str, family: str = "llama", attention: str | None = None, **settings: Any):
    model, _ = tiny_llaso(padding, family, **settings)
    if attention:
        model.set_attn_implementation(attention)
    use_packing(model)
    return model.train()


# ---- Loss and gradients ----


@pytest.fixture(scope="module")
def models() -> dict[str, LlasoForConditionalGeneration]:
    return {name: packing_model("trim", attention=name) for name in ("sdpa", "eager")}


rows_of_a_batch = st.lists(
    st.tuples(st.integers(3, 40), st.lists(st.integers(1, 90), max_size=2).map(tuple)), min_size=1, max_size=5
)


@settings(max_examples=12, deadline=None)
@given(rows=rows_of_a_batch, attention=st.sampled_from(["sdpa", "eager"]))
def test_rows_of_any_length_learn_the_same_packed(models, rows, attention):
    assert_packed_is_padded(models[attention], examples(models[attention], rows))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_whole_windows_learn_the_same_packed(attention):
    model = packing_model("full", attention=attention, projector_stride=50)
    assert_packed_is_padded(model, examples(model, ROWS[:3]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"])
def test_every_family_learns_the_same_packed(family, attention):
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers offers no sdpa for Gemma 2, whose attention caps its scores")
    model, _ = tiny_llaso("trim", family, projector_stride=3)
    if family in ("mistral", "gemma2", "gemma3_text"):
        model.config.text_config.sliding_window = WINDOW
        for layer in model.modules():
            if getattr(layer, "sliding_window", None):
                layer.sliding_window = WINDOW
    model.set_attn_implementation(attention)
    use_packing(model)
    assert_packed_is_padded(model.train(), examples(model, ROWS, kept=(2, 3)))


@pytest.mark.parametrize("pooling", ["average", "concatenate"])
@pytest.mark.parametrize("kept", [(), (0, 1, 4), (0, 1, 2, 3, 4)], ids=["live", "some-kept", "all-kept"])
def test_kept_encoder_output_and_pooling_learn_the_same_packed(pooling, kept):
    model = packing_model("trim", projector_stride=4, projector_pooling=pooling)
    freeze_all_but(model, ["projector", "llm"])
    assert_packed_is_padded(model, examples(model, ROWS, kept=kept))


@pytest.mark.parametrize("train_parts", [["projector"], ["projector", "llm"], ["encoder"]])
def test_adapters_and_frozen_parts_learn_the_same_packed(train_parts):
    model, _ = tiny_llaso("trim")
    freeze_all_but(model, train_parts)
    if "llm" in train_parts:
        recipe = tiny_recipe(Path("."), "x", train=train_parts, lora={"rank": 2})
        add_lora(model, load_recipe(recipe).lora, "llm")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.01)
    use_packing(model)
    assert_packed_is_padded(model.train(), examples(model, ROWS))


@pytest.mark.parametrize(
    "rows", [[(9, ()), (30, ()), (4, ())], [(9, (50,)), (20, (50,))], [(9, (51,))]], ids=["text", "equal", "one"]
)
def test_text_alone_equal_windows_and_one_row_learn_the_same_packed(rows):
    model = packing_model("trim")
    assert_packed_is_padded(model, examples(model, rows))


def test_nothing_to_learn_is_a_row_of_padding():
    batch = pack([], 3)
    assert batch["input_ids"].tolist() == [[3, 3]] and (batch["shift_labels"] == IGNORED).all()
    assert batch["packed"] == {"row_lengths": [2]} and batch["ids"] == [""]


@settings(max_examples=30, deadline=None)
@given(frames=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_a_packed_window_gets_the_vectors_it_gets_alone(models, frames):
    tower = models["eager"].model.audio_tower
    windows = [torch.randn(tower.conv1.in_channels, count) for count in frames]
    laid = end_to_end(windows)
    assert laid.shape[1] == sum(map(taken_frames, frames)) <= sum(frames) + 2 * len(frames)
    with torch.no_grad():
        alone = torch.cat([tower(window[None]).last_hidden_state for window in windows], dim=1)
        torch.testing.assert_close(encode_packed(tower, laid, frames), alone, rtol=1e-5, atol=1e-5)


# ---- Attention implementations ----


def varlen_on_cpu(module, query, key, value, attention_mask, cu_seq_lens_q=None, cu_seq_lens_k=None, **kwargs):
    """Attend as flash attention's varlen function is documented to, by the rows' bounds, and check what comes."""
    assert attention_mask is None and query.shape[0] == 1
    assert cu_seq_lens_q.dtype == torch.int32 and torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    lengths = cu_seq_lens_q.diff()
    assert kwargs.pop("max_length_q") == kwargs.pop("max_length_k") == int(lengths.max())
    assert int(cu_seq_lens_q[-1]) == query.shape[2]
    return attend_by_row(module, query, key, value, None, row_lengths=lengths.tolist(), **kwargs)


def test_flash_attention_gets_the_bounds_of_rows_and_windows(monkeypatch):
    """Its own kernel needs a GPU: a function that reads the same arguments takes its place."""
    model, _ = tiny_llaso("trim")
    made = examples(model, ROWS)
    padded_loss, padded = loss_and_gradients(model.train(), pad(made, 0))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", varlen_on_cpu)
    for config in (model.config, model.config.text_config, model.config.audio_config):
        config._attn_implementation_internal = "flash_attention_2"
    use_packing(model)
    assert model.config.text_config._attn_implementation == "flash_attention_2"
    packed_loss, packed = loss_and_gradients(model, pack(made, 0))
    torch.testing.assert_close(packed_loss, padded_loss, rtol=1e-5, atol=1e-5)
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_flex_attention_gets_masks_that_keep_rows_and_windows_apart(monkeypatch, family):
    """Forward only, and not compiled: on a CPU it has no backward pass."""
    model, _ = tiny_llaso("trim", family)
    for layer in model.modules():
        if getattr(layer, "sliding_window", None):
            layer.sliding_window = WINDOW
    model.config.text_config.sliding_window = WINDOW if family == "gemma3_text" else None
    made = examples(model, ROWS)
    monkeypatch.setattr(masking_utils, "create_block_mask", not_compiled(masking_utils.create_block_mask))
    monkeypatch.setattr(flex_attention_integration, "compile_friendly_flex_attention", flex_on_cpu)
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    padded = answer_logits(model, pad(made, 0))
    model.set_attn_implementation("flex_attention")
    with monkeypatch.context() as patched:
        patched.setattr(torch.accelerator, "is_available", lambda: True)
        use_packing(model)
    torch.testing.assert_close(answer_logits(model, pack(made, 0)), padded, rtol=1e-4, atol=1e-4)


def not_compiled(create_block_mask):
    return lambda *args, **kwargs: create_block_mask(*args, **{**kwargs, "_compile": False})


def flex_on_cpu(query, key, value, training=False, **kwargs):
    return flex_module.flex_attention(query, key, value, **kwargs)


def answer_logits(model: LlasoForConditionalGeneration, batch: dict[str, Any]) -> torch.Tensor:
    inputs = {name: part for name, part in batch.items() if name not in ("ids", "tasks", "shift_labels")}
    with torch.no_grad():
        return model(**inputs, logits_to_keep=batch["shift_labels"] != IGNORED, use_cache=False).logits


def test_a_model_that_packs_answers_padded_batches_as_before():
    model, processor = tiny_llaso("trim")
    inputs = ask(processor, [question("Who?"), question("Which word is said twice?")], [tone(0.4), tone(1.1)])
    before = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    use_packing(model)
    assert model.model.language_model.config._attn_implementation == BY_ROW
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False), before)


def test_sdpa_computes_nothing_across_rows(monkeypatch):
    sizes: list[tuple[int, int, bool]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, **kwargs):
        sizes.append((query.shape[2], key.shape[2], attn_mask is None))
        return attend(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model = packing_model("trim")
    made = examples(model, ROWS)
    sizes.clear()
    loss_and_gradients(model, pack(made, 0))
    windows = [(frames + 1) // 2 for _, of_row in ROWS for frames in of_row]
    layers = 2  # of each part
    expected = layers * windows + layers * [len(example.input_ids) for example in made]
    assert sizes == [(length, length, True) for length in expected]


def test_flex_attention_is_refused_where_it_cannot_train():
    model, _ = tiny_llaso("trim")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"flex_attention has no backward pass on CPU; set compute\.attention=sdpa"):
        use_packing(model)


def test_attention_without_a_packed_form_is_refused_by_name():
    model, _ = tiny_llaso("trim")
    ALL_ATTENTION_FUNCTIONS.register("somebodys_own", attend_by_row)
    model.set_attn_implementation("somebodys_own")
    with pytest.raises(ValueError, match=r"attention 'somebodys_own' has no packed form; set compute\.attention to"):
        use_packing(model)
    del ALL_ATTENTION_FUNCTIONS._global_mapping["somebodys_own"]


def test_layers_that_carry_state_are_refused_by_name():
    model, _ = tiny_llaso("trim")
    model.config.text_config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="llama has layers of kind linear_attention"):
        use_packing(model)


def test_a_model_whose_rows_see_each_other_is_refused(monkeypatch):
    """One that forgets the bounds of rows on the way to its attention."""
    forward = LlamaModel.forward

    def forgetful(self, *args, row_lengths=None, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forgetful)
    model, _ = tiny_llaso("trim")
    with pytest.raises(ValueError, match=r"in llama \(LlamaModel\) a row behind another gets other hidden states"):
        use_packing(model)


def test_learned_positions_start_again_with_every_row():
    """GPT-2's positions are learned, so that a wrong one shows, where rotary ones only have to keep their distance."""
    config = AutoConfig.for_model("gpt2", vocab_size=40, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    model = AutoModel.from_config(config, attn_implementation="eager")
    check_rows_apart(model)
    embed = model.wpe.forward
    model.wpe.forward = lambda positions: embed(torch.arange(positions.shape[-1])[None])
    with pytest.raises(ValueError, match=r"in gpt2 \(GPT2Model\) a row behind another"):
        check_rows_apart(model)


# ---- Runs ----


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packing")
    save_backbones(folder)
    rows = [row(i) for i in range(24)] + [row(i, task="IP", clips=2) for i in range(8)]
    save_corpus(folder / "corpus", {"train": rows})
    save_corpus(folder / "text", {"train": [row(i, task="AQA", clips=0) for i in range(12)]})
    return folder


RUNS: dict[str, dict[str, Any]] = {
    "stage1-full": {"model__audio_padding": "full", "model__projector_stride": 25},
    "stage2-lora-paper": {
        "train": ["projector", "llm"],
        "lora": {"rank": 2},
        "optimizer__normalization": "paper",
        "compute__gradient_checkpointing": True,
        "compute__loss_chunk": 8,
    },
    "stage2-taught-text-cache": {
        "train": ["projector", "llm"],
        "optimizer__distill_weight": 0.4,
        "data__text_share": 0.4,
        "compute__encoder_cache_gb": 30_000 / 1e9,  # too little for all clips
        "compute__answer_only_logits": False,
    },
    "taught-by-the-frozen-llm": {"optimizer__distill_weight": 0.4, "compute__attention": "eager"},
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS.keys())
def test_a_packed_run_follows_the_padded_one(root, tmp_path, changes):
    if "data__text_share" in changes:
        changes = changes | {"data__text_path": str(root / "text")}
    outs = []
    for packing in (False, True):
        recipe = tiny_recipe(root, "unused", optimizer__max_steps=3, batch__packing=packing, **changes)
        recipe["out"] = str(tmp_path / f"packed-{packing}")
        outs.append(Path(train(recipe).out))
    records = [[json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()] for out in outs]
    padded, packed = ([record for record in of if record["kind"] == "step"] for of in records)
    for one, other in zip(padded, packed, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        for name in ("rows", "tokens", "answer_tokens", "tasks"):
            if name == "tasks":
                for task, (loss, tokens) in one["tasks"].items():
                    assert other["tasks"][task] == [pytest.approx(loss, rel=1e-5), tokens]
            else:
                assert other[name] == one[name]
        assert other["padded"] == other["tokens"] < one["padded"]
        assert "encoder" in other["seconds"]
    config = json.loads((outs[1] / "config.json").read_text())
    assert BY_ROW not in json.dumps(config)  # the exported model attends as any other
    model = LlasoForConditionalGeneration.from_pretrained(outs[1])
    assert model.config.text_config._attn_implementation == "sdpa"


def test_a_packed_micro_batch_is_limited_by_its_own_tokens():
    """Rows of any length may share it, so with the same limit an epoch has fewer micro-batches."""
    lengths = np.array(realistic_lengths(200))
    cuts = {packing: BatchRule(64, 4000, packing=packing).cut(lengths) for packing in (False, True)}
    assert all(lengths[places].sum() <= 4000 for places in cuts[True])
    assert len(cuts[True]) < 0.75 * len(cuts[False])
    assert np.concatenate([np.arange(200)[places] for places in cuts[True]]).tolist() == list(range(200))
