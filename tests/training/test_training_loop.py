"""What a training step computes: loss and normalization, frozen parts, encoder cache, adapters, teacher, guards."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_training import WORDS, row, save_backbones, save_corpus, tiny_recipe

from llaso.training.recipe.recipe import DataChoice, load_recipe
from llaso.training.rows.collator import IGNORED, Collator, RowEncoder, TeacherCollator
from llaso.training.rows.corpora import decode_audio, open_corpus
from llaso.training.rows.encoder_cache import EncoderCache, clip_key, encode_windows, fill, kept_audio
from llaso.training.rows.training_rows import TrainingRows, plan_of
from llaso.training.run.distillation import Teacher
from llaso.training.run.held_out import HeldOut, normalize, word_errors
from llaso.training.run.history import History, read_history
from llaso.training.run.model_setup import (
    PartReport,
    add_lora,
    describe_parts,
    freeze_all_but,
    hold_frozen_in,
    merge_lora,
    open_model,
    rate_warnings,
    report_parts,
    set_up_parts,
)
from llaso.training.run.train import train
from llaso.training.run.trainer import LlasoTrainer, TrainingDiverged
from modeling_llaso import LlasoForConditionalGeneration


def text_row(number: int) -> dict[str, Any]:
    return row(number, task="AQA", clips=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    save_backbones(folder)
    rows = [row(i) for i in range(12)] + [row(i, task="IP", clips=2) for i in range(4)]
    save_corpus(folder / "corpus", {"train": rows, "validation": [row(i, seed=1) for i in range(4)]})
    save_corpus(folder / "text", {"train": [text_row(i) for i in range(6)]})
    broken = row(3, seed=2)
    broken["audio"][0]["bytes"] = b"no audio at all"
    save_corpus(folder / "broken", {"train": [row(i, seed=2) for i in range(3)] + [broken]})
    return folder


@pytest.fixture(scope="module")
def pair(root: Path):
    """Model and processor of the tiny Stage-1 recipe; tests leave them as they found them."""
    return open_model(load_recipe(tiny_recipe(root, "unused")))


def make_trainer(root: Path, out: Path, model=None, cache: EncoderCache | None = None, **changes: Any) -> LlasoTrainer:
    recipe = load_recipe(tiny_recipe(root, "unused", **changes) | {"out": str(out)})
    fresh, processor = open_model(recipe)
    model = model or fresh
    frozen = freeze_all_but(model, recipe.train)
    corpus = open_corpus(recipe.data)
    rows = TrainingRows(
        corpus=corpus,
        plan=plan_of(recipe, corpus, 1),
        held_out=[],
        steps=4,
        collator=Collator(RowEncoder(processor, recipe.data.max_length, cache)),
        cache=cache,
    )
    return LlasoTrainer(model, recipe, processor, rows, frozen, History(out / "history.jsonl"))


# ---- Rows to batches ----


@pytest.mark.parametrize("clips", [0, 1, 2])
def test_an_example_is_what_the_processor_makes_of_the_row(pair, clips):
    _, processor = pair
    example = row(5, task="IP", clips=clips)
    got = RowEncoder(processor, 2048)(example)
    messages = [
        {
            "role": m["role"],
            "content": [{k: v for k, v in part.items() if v is not None} for part in m["content"]],
        }
        for m in example["messages"]
    ]
    kwargs = {"audio": decode_audio(example, 16_000)} if clips else {}
    want = processor.apply_chat_template(
        [messages], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **kwargs
    )
    assert got.input_ids.tolist() == want["input_ids"][0].tolist()
    assert (got.labels != IGNORED).tolist() == want["assistant_masks"][0].bool().tolist()
    answer = processor.tokenizer.decode(got.labels[got.labels != IGNORED])
    assert answer == example["target"] + "<|eot_id|>"
    assert len(got.windows) == clips
    for number, window in enumerate(got.windows):
        frames = want["input_features_mask"][number].sum()
        torch.testing.assert_close(window, want["input_features"][number, :, :frames], rtol=0, atol=1e-5)


def test_a_batch_mixes_rows_with_and_without_audio(pair):
    model, processor = pair
    batch = Collator(RowEncoder(processor, 2048))([row(0), text_row(0), row(1, task="IP", clips=2)])
    assert batch["input_features"].shape[0] == 3 and batch["tasks"] == ["ASR", "AQA", "IP"]
    alone = Collator(RowEncoder(processor, 2048))([text_row(0)])
    skip = ("ids", "tasks", "skipped", "shift_labels")
    with torch.no_grad():
        mixed = model(**{k: v for k, v in batch.items() if k not in skip}).logits
        single = model(**{k: v for k, v in alone.items() if k not in skip}).logits
    torch.testing.assert_close(mixed[1, : single.shape[1]], single[0], rtol=1e-4, atol=1e-5)


def test_long_text_is_cut_but_audio_never(pair):
    _, processor = pair
    example = row(1)
    whole = RowEncoder(processor, 2048)(example)
    is_audio = whole.input_ids == processor.audio_token_id
    text = int((~is_audio).sum()) + 1
    cut = RowEncoder(processor, text - 2)(example)
    assert cut.input_ids.tolist() == whole.input_ids[:-2].tolist()
    with pytest.raises(ValueError, match=f"row {example['id']}: nothing of its answer"):
        RowEncoder(processor, text - int((whole.labels != IGNORED).sum()))(example)
    with pytest.raises(ValueError, match="audio is never cut"):
        RowEncoder(processor, 20)(example)


def test_rows_that_cannot_be_learned_from_say_which_and_why(pair):
    _, processor = pair
    encode = RowEncoder(processor, 2048)
    with pytest.raises(ValueError, match="row asr-0-0000: its messages have 1 places for audio, but it has 0 clips"):
        encode(row(0) | {"audio": []})
    with pytest.raises(ValueError, match="row asr-0-0000: its last message is no answer"):
        encode(row(0) | {"messages": row(0)["messages"][:1]})
    nan = row(0)
    nan["audio"][0]["bytes"] = nan["audio"][0]["bytes"][:60]
    with pytest.raises(ValueError, match=r"row asr-0-0000: clip 0.*set data.bad_rows=skip"):
        Collator(encode)([nan])
    nowhere = row(2)
    nowhere["audio"][0] = {"bytes": None, "path": "nowhere.flac"}
    with pytest.raises(ValueError, match=r"row asr-0-0002: a clip cannot be read: .*nowhere.flac"):
        encode(nowhere)
    batch = Collator(encode, skip_bad_rows=True)([nan, row(1)])
    assert batch["ids"] == ["asr-0-0001"] and batch["skipped"] == ["asr-0-0000"]
    nothing = Collator(encode, skip_bad_rows=True)([nan])
    assert (nothing["shift_labels"] == IGNORED).all()


# ---- The loss ----


def released_loss(model, batches: list[dict[str, Any]], normalization: str) -> torch.Tensor:
    """The loss of one step from the model's own forward with labels, micro-batch by micro-batch."""
    means, counts = [], []
    for batch in batches:
        labels = torch.nn.functional.pad(batch["shift_labels"][:, :-1], (1, 0), value=IGNORED)
        inputs = {k: v for k, v in batch.items() if k not in ("ids", "tasks", "skipped", "shift_labels")}
        means.append(model.eval()(**inputs, labels=labels).loss)
        counts.append((labels != IGNORED).sum())
    if normalization == "paper":
        return torch.stack(means).mean()
    return sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)


@pytest.mark.parametrize("normalization", ["token", "paper"])
@pytest.mark.parametrize("answer_only", [True, False])
def test_gradients_are_those_of_the_stated_normalization(root, tmp_path, normalization, answer_only):
    trainer = make_trainer(
        root,
        tmp_path,
        optimizer__normalization=normalization,
        compute__answer_only_logits=answer_only,
        train=["projector", "llm"],
    )
    rows = [[row(0), row(1)], [row(2, task="IP", clips=2)]]
    batches = [trainer.data_collator(micro) for micro in rows]
    model = trainer.model
    parameter = model.model.multi_modal_projector.linear_2.weight
    want = released_loss(model, batches, normalization)
    (gradient,) = torch.autograd.grad(want, parameter)

    trainer.current_gradient_accumulation_steps = len(batches)
    items = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    got = sum(trainer.training_step(model, batch, items) for batch in batches)
    torch.testing.assert_close(torch.as_tensor(got), want.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_answer_only_logits_never_make_the_others(root, tmp_path):
    trainer = make_trainer(root, tmp_path)
    batch = trainer.data_collator([row(0), row(1)])
    answers = int((batch["shift_labels"] != IGNORED).sum())
    seen = []
    trainer.model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    trainer.training_step(trainer.model, batch, torch.tensor(answers))
    assert seen == [answers] and answers < batch["input_ids"].numel() / 5


def test_frozen_parts_stay_in_eval_without_a_graph_and_unchanged(root, tmp_path):
    trainer = make_trainer(root, tmp_path)
    model = trainer.model
    modes, graphs = {}, {}
    parts = {"encoder": model.model.audio_tower, "projector": model.model.multi_modal_projector}
    parts["llm"] = model.model.language_model
    for name, module in parts.items():

        def note(module, args, output, name=name):
            tensor = output if isinstance(output, torch.Tensor) else output.last_hidden_state
            modes[name], graphs[name] = any(m.training for m in module.modules()), tensor.requires_grad

        module.register_forward_hook(note)
    trainer.training_step(model, trainer.data_collator([row(0)]), torch.tensor(5))
    assert modes == {"encoder": False, "projector": True, "llm": False}
    assert graphs == {"encoder": False, "projector": True, "llm": True}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        f"model.multi_modal_projector.linear_{k}.{kind}" for k in (1, 2) for kind in ("weight", "bias")
    }
    states = [(part.name, part.trainable > 0, part.graph) for part in report_parts(model)]
    assert states == [("encoder", False, False), ("projector", True, True), ("llm", False, True)]
    freeze_all_but(model, ["encoder", "projector", "llm"])
    assert not model.model.audio_tower.embed_positions.weight.requires_grad


def test_a_batch_of_text_alone_gives_the_projector_gradients_of_zero(root, tmp_path):
    trainer = make_trainer(root, tmp_path)
    trainer.training_step(trainer.model, trainer.data_collator([text_row(0)]), torch.tensor(5))
    gradients = [p.grad for p in trainer.model.model.multi_modal_projector.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


# ---- The encoder cache ----


def test_kept_encoder_output_gives_the_loss_and_gradients_of_the_live_encoder(root, tmp_path):
    live = make_trainer(root, tmp_path / "live")
    cache = EncoderCache(tmp_path / "cache", "x", 24, 10**6)
    kept = make_trainer(root, tmp_path / "kept", cache=cache)
    rows = [row(0), text_row(0), row(1, task="IP", clips=2)]
    encode = RowEncoder(kept.processing_class, 2048)
    for number in (0, 2):
        windows = encode(rows[number]).windows
        for clip, window in zip(rows[number]["audio"], windows, strict=True):
            mask = torch.ones(1, window.shape[1], dtype=torch.long)
            if number == 0:  # the two clips of the other row are encoded while training
                cache.add(clip_key(clip["bytes"]), encode_windows(kept.model, window[None], mask))
    losses = []
    for trainer in (live, kept):
        batch = trainer.data_collator(rows)
        losses.append(trainer.training_step(trainer.model, batch, torch.tensor(20)))
    assert (
        "mm_encoder_outputs" not in live.data_collator(rows) and len(live.data_collator(rows)["input_features"]) == 3
    )
    mixed = kept.data_collator([rows[2], *rows[:2]])
    assert mixed["ids"][0] == rows[0]["id"]  # whose audio is kept comes first
    assert len(mixed["mm_encoder_outputs"]["audio"].last_hidden_state) == 1 and len(mixed["input_features"]) == 2
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)  # float16 on disk
    weights = [t.model.model.multi_modal_projector.linear_1.weight.grad for t in (live, kept)]
    torch.testing.assert_close(*weights, rtol=1e-2, atol=1e-5)


def test_a_clip_in_a_file_of_its_own_is_the_same_clip(pair, tmp_path):
    _, processor = pair
    apart = row(0)
    (tmp_path / "0.flac").write_bytes(apart["audio"][0]["bytes"])
    apart["audio"][0] = {"bytes": None, "path": str(tmp_path / "0.flac")}
    cache = EncoderCache(tmp_path / "cache", "x", 24, 10**6)
    cache.add(clip_key(row(0)["audio"][0]["bytes"]), [torch.ones(3, 24)])
    encoded, plain = RowEncoder(processor, 2048, cache)(apart), RowEncoder(processor, 2048)(apart)
    assert encoded.encoded and torch.equal(encoded.windows[0], torch.ones(3, 24))
    assert torch.equal(plain.windows[0], RowEncoder(processor, 2048)(row(0)).windows[0])


def test_projecting_windows_is_what_the_model_does(pair):
    model, processor = pair
    batch = Collator(RowEncoder(processor, 2048))([row(0), row(1)])
    features, mask = batch["input_features"], batch["input_features_mask"]
    with torch.no_grad():
        want = model.get_audio_features(features, mask, return_dict=True).pooler_output
        kept = kept_audio(encode_windows(model, features, mask))
        got = model.model.project(kept.last_hidden_state, kept.vector_mask)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_cache_is_bounded_and_survives_a_kill_while_writing(tmp_path):
    cache = EncoderCache(tmp_path, "print", width=4, limit=100)
    first = [torch.arange(12.0).view(3, 4), torch.ones(2, 4)]
    assert cache.add("first", first) and cache.bytes_used == 40
    assert not cache.add("too large", [torch.zeros(10, 4)])
    assert cache.add("second", [torch.full((2, 4), 7.0)])
    with cache.index_file.open("a") as file:
        file.write('{"key": "half wri')  # as a kill leaves it
    again = EncoderCache(tmp_path, "print", width=4, limit=100)
    assert set(again.entries) == {"first", "second"}
    for got, want in zip(again.get("first"), first, strict=True):
        assert torch.equal(got, want)
    assert again.add("third", [torch.full((1, 4), 3.0)])
    assert torch.equal(EncoderCache(tmp_path, "print", 4, 100).get("third")[0], torch.full((1, 4), 3.0))
    assert "first" not in EncoderCache(tmp_path, "another encoder", 4, 100)


# ---- Adapters ----


@pytest.mark.parametrize(
    ("part", "settings"), [("llm", {"lora": {"rank": 2}}), ("encoder", {"encoder_lora": {"rank": 2}})]
)
def test_lora_starts_as_the_model_it_adapts_and_merges_into_it(root, part, settings):
    recipe = load_recipe(tiny_recipe(root, "unused", train=["projector", part], **settings))
    model, processor = open_model(recipe)
    batch = Collator(RowEncoder(processor, 2048))([row(0)])
    inputs = {k: v for k, v in batch.items() if k not in ("ids", "tasks", "skipped", "shift_labels")}
    names = set(model.state_dict())
    with torch.no_grad():
        before = model.eval()(**inputs).logits
        set_up_parts(model, recipe)
        torch.testing.assert_close(model.eval()(**inputs).logits, before)
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert all("lora" in n or "projector" in n for n in trainable)
        reports = {report.name: report for report in report_parts(model)}  # the encoder has layers of the same names
        choice, config = (
            (recipe.lora, model.config.text_config)
            if part == "llm"
            else (recipe.encoder_lora, model.config.audio_config)
        )
        adapted = reports.pop(part)
        assert len(adapted.adapted) == config.num_hidden_layers * len(choice.targets)
        assert not any(other.adapted for other in reports.values())
        assert (
            f"in adapters of {len(adapted.adapted)} layers: {', '.join(sorted(choice.targets))}"
            in (describe_parts([adapted])[0])
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        got = model(**inputs).logits
        assert not torch.allclose(got, before, atol=1e-3)
        merge_lora(model)
        assert set(model.state_dict()) == names
        torch.testing.assert_close(model.eval()(**inputs).logits, got, rtol=1e-4, atol=1e-4)  # summed otherwise


@pytest.mark.parametrize(
    ("settings", "learned"),
    [
        ({"encoder_lora": {"rank": 2, "targets": ["fc1"]}}, ("layers.0.fc1", "layers.1.fc1")),
        ({"encoder_last_layers": 1}, ("layers.1.", "layer_norm.")),
    ],
)
def test_the_encoder_learns_in_adapters_or_in_its_last_layers_alone(root, tmp_path, settings, learned):
    encoder, _ = save_backbones(tmp_path, encoder_layers=2)
    recipe = tiny_recipe(root, "unused", train=["encoder", "projector"], optimizer__max_steps=2, **settings)
    recipe |= {"out": str(tmp_path / "out"), "model": recipe["model"] | {"encoder": str(encoder)}}
    before, _ = open_model(load_recipe(recipe))
    train(recipe)
    after = LlasoForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    changed = {name for name, weight in before.state_dict().items() if not torch.equal(weight, after[name])}
    of_encoder = {name.removeprefix("model.audio_tower.") for name in changed if "audio_tower" in name}
    assert of_encoder and all(name.startswith(learned) for name in of_encoder)
    assert all(any(name.startswith(one) for name in of_encoder) for one in learned)
    assert not any("language_model" in name for name in changed)


def test_more_last_layers_than_there_are_and_ways_to_learn_that_exclude_each_other_are_refused(root):
    both = tiny_recipe(root, "unused", train=["encoder"], encoder_last_layers=1, encoder_lora={"rank": 2})
    with pytest.raises(ValueError, match="`encoder_lora.rank` adapts every layer .* set one of them to 0"):
        load_recipe(both)
    with pytest.raises(ValueError, match="`encoder_last_layers` says how the encoder learns, .* name encoder"):
        load_recipe(tiny_recipe(root, "unused", encoder_last_layers=1))
    recipe = load_recipe(tiny_recipe(root, "unused", train=["encoder"], encoder_last_layers=2))
    with pytest.raises(ValueError, match="`encoder_last_layers` is 2, but the encoder has 1"):
        set_up_parts(open_model(recipe)[0], recipe)


def test_adapters_merge_into_weights_held_in_bf16_without_being_rounded_to_them(root):
    recipe = load_recipe(tiny_recipe(root, "unused", lora={"rank": 2}, train=["projector", "llm"]))
    model, _ = open_model(recipe)
    freeze_all_but(model, recipe.train)
    add_lora(model, recipe.lora, "llm")
    hold_frozen_in(model, torch.bfloat16)
    adapted = model.model.language_model.layers[0].self_attn.q_proj
    with torch.no_grad():
        adapted.lora_B["default"].weight.normal_(std=1e-3)
        delta = adapted.scaling["default"] * adapted.lora_B["default"].weight @ adapted.lora_A["default"].weight
        want = adapted.get_base_layer().weight.float() + delta
    merge_lora(model)
    merged = model.model.language_model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(merged.detach(), want, rtol=0, atol=1e-8)
    assert not torch.equal(merged.detach(), want.bfloat16().float())


def test_what_an_encoder_in_adapters_does_not_learn_is_held_in_bf16_too(root):
    settings = {"encoder_lora": {"rank": 2}, "compute__frozen_weights": "bf16", "compute__precision": "bf16"}
    recipe = load_recipe(tiny_recipe(root, "unused", train=["encoder"], **settings))
    model, _ = open_model(recipe)
    positions = model.model.audio_tower.embed_positions.weight.clone()
    set_up_parts(model, recipe)
    types = {name: p.dtype for name, p in model.model.audio_tower.named_parameters()}
    wide = {name for name in types if "lora_" in name or name == "embed_positions.weight"}
    assert any("lora_" in name for name in wide)
    assert {name for name, dtype in types.items() if dtype == torch.float32} == wide
    assert torch.equal(model.model.audio_tower.embed_positions.weight, positions)


def test_a_large_part_of_which_little_learns_fast_is_warned_of(root):
    recipe = load_recipe(
        tiny_recipe(root, "unused", train=["encoder"], encoder_last_layers=1, optimizer__learning_rate=1e-3)
    )
    part = PartReport("encoder", 635_000_000, 20_000_000, 0, True)
    assert "encoder_lora.rank" in rate_warnings([part], recipe)[0]
    assert not rate_warnings([replace(part, parameters=9_000_000)], recipe)


def test_adapters_for_layers_the_llm_lacks_are_refused(root):
    recipe = load_recipe(tiny_recipe(root, "unused", lora={"rank": 2}, train=["projector", "llm"]))
    model, _ = open_model(recipe)
    wrong = load_recipe(recipe, ["lora.targets=[q_proj, nothing]"])
    with pytest.raises(ValueError, match="no linear layer named nothing; it has down_proj, gate_proj"):
        add_lora(model, wrong.lora, "llm")


# ---- The teacher ----


def test_the_teacher_reads_the_transcript_and_its_answers_are_drawn_near(root, tmp_path):
    trainer = make_trainer(root, tmp_path)
    model, encode = trainer.model, trainer.data_collator.encode
    rows = [row(0, task="IP"), row(1), row(2)]
    extra = TeacherCollator(encode)(rows)
    assert extra["teacher_rows"].tolist() == [1, 2]
    assert TeacherCollator(encode)([row(1) | {"target": None}]) == {}
    text = encode.processor.tokenizer.decode(extra["teacher_ids"][0])
    assert text.count(rows[1]["target"]) == 2 and "<audio>" not in text

    batch = Collator(encode, extra_inputs=TeacherCollator(encode))(rows)
    is_answer = batch["shift_labels"] != IGNORED
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "input_features", "input_features_mask")}
    with torch.no_grad():
        student = model(**inputs).logits
        losses = []
        for place in (1, 2):  # the divergence, row by row, from whole probability tables
            ids = extra["teacher_ids"][place - 1][extra["teacher_mask"][place - 1].bool()]
            wanted = model(input_ids=ids[None]).logits[0, extra["teacher_answers"][place - 1][: len(ids)]].softmax(-1)
            heard = student[place][is_answer[place]].softmax(-1)
            losses.append((wanted * (wanted / heard).log()).sum(-1))
        plain = torch.nn.functional.cross_entropy(student[0][is_answer[0]], batch["shift_labels"][0][is_answer[0]])
    answers = int(is_answer.sum())
    want = (plain * is_answer[0].sum() + torch.cat(losses).sum()) / answers

    trainer.distill_weight = 1.0
    trainer.teacher = Teacher(model, temperature=1.0)
    got = trainer.training_step(model, batch, torch.tensor(answers))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert trainer.teacher.language_model is model.model.language_model  # frozen, so no copy is made
    model.model.language_model.requires_grad_(True)
    copied = Teacher(model, temperature=1.0)
    assert copied.language_model is not model.model.language_model
    assert copied.head.weight is copied.language_model.embed_tokens.weight and not copied.head.weight.requires_grad


# ---- Guards ----


def test_a_loss_that_is_no_number_names_the_row_and_spares_the_weights(root, tmp_path):
    trainer = make_trainer(root, tmp_path, watch__save_every=1)
    poisoned = {row(i)["id"] for i in (3,)}
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    collate = trainer.data_collator

    def poison(rows):
        batch = collate(rows)
        for number, row_id in enumerate(batch["ids"]):
            if row_id in poisoned:
                batch["input_features"][number] = float("nan")
        return batch

    trainer.data_collator = poison
    with pytest.raises(TrainingDiverged, match="asr-0-0003") as error:
        trainer.train()
    step = int(str(error.value).split()[1].rstrip(":"))
    for record in read_history(tmp_path / "history.jsonl"):
        assert np.isfinite(record["loss"]) and record["step"] < step
    for name, parameter in trainer.model.named_parameters():
        assert torch.isfinite(parameter).all()
        if step == 1:
            assert torch.equal(parameter, before[name])


def test_an_explosion_is_a_loss_far_above_the_recent_and_above_the_first(root, tmp_path):
    trainer = make_trainer(root, tmp_path)
    for step in range(60):
        trainer.history.add({"kind": "step", "step": step + 1, "loss": 5.0 / (1 + step), "tasks": {}})
    part = {"row_losses": torch.tensor([8.0, 90.0]), "row_tokens": torch.tensor([4, 3]), "ids": ["fine", "wild"]}
    trainer._check(4.9, 1.0, [part])  # far above the recent losses, but no higher than the first ones
    trainer._check(0.2, 1.0, [part])
    with pytest.raises(TrainingDiverged, match=r"jumped to 30.*worst first: wild, fine"):
        trainer._check(30.0, 1.0, [part])
    with pytest.raises(TrainingDiverged, match="the gradient norm inf"):
        trainer._check(0.2, float("inf"), [part])


# ---- Word error rate ----


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=8), st.lists(st.sampled_from(WORDS), min_size=1, max_size=8))
def test_word_errors_are_those_of_jiwer(heard, said):
    errors, words = word_errors(" ".join(heard), " ".join(said))
    reference = jiwer.process_words(" ".join(said), " ".join(heard))
    assert words == len(said)
    assert errors == reference.substitutions + reference.insertions + reference.deletions


def test_case_and_punctuation_are_no_errors():
    assert word_errors("Two, THREE.", "two three") == (0, 2)
    assert normalize("It's  a  test!").split() == ["it", "s", "a", "test"]
    assert word_errors("", "two three") == (2, 2)


def test_a_clip_of_several_rows_is_kept_once(pair, tmp_path):
    model, processor = pair
    cache = EncoderCache(tmp_path, "x", 24, 10**6)
    single, double, other = row(0), row(1, task="IP", clips=2), row(2, task="IP", clips=2)
    double["audio"][0] = other["audio"][0] = single["audio"][0]
    rows = [single, double, other]
    fill(cache, model, processor, rows, nullcontext, torch.device("cpu"), lambda done: None, lambda line: None)
    keys = {clip_key(clip["bytes"]) for one in rows for clip in one["audio"]}
    assert len(keys) == 3 and all(key in cache for key in keys)
    assert len((cache.folder / "index.jsonl").read_text().splitlines()) == 3


def test_transcriptions_are_the_same_from_the_cache_and_split_over_processes(pair, tmp_path):
    model, processor = pair
    rows = [row(i, seed=1) for i in range(5)]
    cache = EncoderCache(tmp_path, "x", 24, 10**6)
    live = HeldOut(rows, processor).evaluate(model, 5)
    for example in rows:
        window = RowEncoder(processor, 2048)(example).windows[0]
        vectors = encode_windows(model, window[None], torch.ones(1, window.shape[1], dtype=torch.long))
        cache.add(clip_key(example["audio"][0]["bytes"]), vectors)
    kept = HeldOut(rows, processor, cache).evaluate(model, 5)
    assert kept["errors"] == live["errors"] and kept["words"] == live["words"] and live["rows"] == 5
    shares = [HeldOut(rows, processor).evaluate(model, 5, rank, 2) for rank in range(2)]
    assert sum(share["words"] for share in shares) == live["words"]
    assert sum(share["errors"] for share in shares) == live["errors"]


# ---- The whole run ----


def test_both_stages_from_one_command_each(root, capsys):
    """Stage 1 with text mixed in, cache and gate; Stage 2 from it with LoRA; then nothing to do, or another recipe."""
    lines: list[str] = []
    first = tiny_recipe(
        root,
        "stage1",
        data__text_path=str(root / "text"),
        data__text_share=0.3,
        compute__encoder_cache_gb=0.01,
        watch__gate_wer=0.0,
        watch__save_every=3,
    )
    result = train(first, {"optimizer.max_steps": 4}, lines.append)
    assert result.steps == 4 and result.gate_passed is False and 0 <= result.wer and result.wer_words > 0
    out = Path(result.out)
    assert {"model.safetensors", "loss.png", "recipe.yaml", "training.json"} <= {file.name for file in out.iterdir()}
    assert not list(out.glob("checkpoint-*"))
    assert any("frozen, in eval() and no_grad()" in line for line in lines)
    assert any("tokens/s" in line and "padding" in line and "left" in line for line in lines)
    tasks = {
        task for record in read_history(out / "history.jsonl") if record["kind"] == "step" for task in record["tasks"]
    }
    assert tasks == {"ASR", "IP", "AQA"}

    again: list[str] = []
    assert train(first, {"optimizer.max_steps": 4}, again.append) == result and again == []
    with pytest.raises(ValueError, match=r"another recipe \(optimizer.learning_rate was 0.003, is 0.1\)"):
        train(first, {"optimizer.max_steps": 4, "optimizer.learning_rate": 0.1})

    second = tiny_recipe(root, "stage2", train=["projector", "llm"], lora={"rank": 2})
    second["model"] = {"checkpoint": str(out)}  # whose audio_padding it keeps
    done = train(second, {"optimizer.max_steps": 2, "data.tasks": "IP"})
    assert done.wer is not None
    names = json.loads((Path(done.out) / "config.json").read_text())
    assert names["model_type"] == "llaso" and names["audio_padding"] == "trim"
    import safetensors.torch

    before, after = (safetensors.torch.load_file(Path(o) / "model.safetensors") for o in (result.out, done.out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed) and not any("audio_tower" in name for name in changed)


def test_unreadable_rows_stop_the_run_or_are_counted(root, tmp_path):
    recipe = tiny_recipe(root, "bad", data__path=str(root / "broken"), batch__accumulation=1)
    recipe["out"] = str(tmp_path / "bad")
    with pytest.raises(ValueError, match=r"row asr-2-0003: clip 0: not readable as audio"):
        train(recipe, {"optimizer.max_steps": 2})
    recipe["out"] = str(tmp_path / "skipped")
    result = train(recipe, {"optimizer.max_steps": 2, "data.bad_rows": "skip"})
    assert result.skipped == 2 and result.wer is None  # met once an epoch; no validation split


def test_a_share_of_the_speech_is_of_whole_speakers_and_part_of_a_larger_share(root, tmp_path):
    rows = [dict(row(i), speaker=f"s:{i % 7}" if i % 10 else "") for i in range(60)]
    written = [dict(row(100 + i, task="AQA", clips=0), speaker="") for i in range(4)]
    save_corpus(tmp_path / "told", {"train": [*rows, *written]})

    def ids(share: float) -> set[str]:
        corpus = open_corpus(DataChoice(path=str(tmp_path / "told"), speech_share=share))
        assert corpus.seconds().sum() <= share * sum(one["duration"] for one in rows) + 1e-9
        return {found["id"] for found in corpus}

    quarter, half, whole = ids(0.25), ids(0.5), ids(1)
    assert len(whole) == 64 and {one["id"] for one in written} < quarter < half < whole
    of_speaker: dict[str, set[str]] = {}
    for one in rows:
        of_speaker.setdefault(one["speaker"] or one["id"], set()).add(one["id"])
    for drawn in (quarter, half):
        assert all(mine <= drawn or not mine & drawn for mine in of_speaker.values())
    seconds = {name: sum(one["duration"] for one in rows if one["id"] in mine) for name, mine in of_speaker.items()}
    left_out = sum(value for name, value in seconds.items() if not of_speaker[name] & half)
    assert left_out <= sum(seconds.values()) / 2 + max(seconds.values())  # no more than one speaker short of the half

    with pytest.raises(ValueError, match=r"data.speech_share=0.001 of \d+ s is less than the first speaker has"):
        ids(0.001)
    with pytest.raises(ValueError, match=r"there is no column speaker; set it to 1"):
        open_corpus(DataChoice(path=str(root / "corpus"), speech_share=0.5))
    with pytest.raises(ValueError, match=r"recipe: `data.speech_share` .* above 0 and at most 1"):
        load_recipe(tiny_recipe(root, "unused", data__speech_share=0))


def test_data_mistakes_are_named(root, tmp_path):
    recipe = load_recipe(tiny_recipe(root, "unused"))
    with pytest.raises(FileNotFoundError, match="no corpus at ./nowhere"):
        open_corpus(load_recipe(recipe, ["data.path=./nowhere"]).data)
    with pytest.raises(ValueError, match=r"leave no row; it has ASR \(text_audio\), IP \(text_audio\)"):
        open_corpus(load_recipe(recipe, ["data.without_tasks=[ASR, IP]"]).data)
    with pytest.raises(ValueError, match=r"names PR, which it has no row of; it has ASR, IP"):
        open_corpus(load_recipe(recipe, ["data.tasks=[ASR, PR]"]).data)
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "data" / "train-0.parquet")
    with pytest.raises(ValueError, match="no column task, modality, messages, audio, target"):
        open_corpus(load_recipe(recipe, [f"data.path={tmp_path}"]).data)
    for setting, message in (
        (f"model.llm={root / 'encoder'}", "the LLM is a 'whisper', not a language model of text"),
        (f"model.encoder={root / 'llm'}", "the encoder is a 'llama', not a Whisper"),
        ("model.encoder=./nowhere", "model.encoder: no folder ./nowhere"),
        ("compute.attention=flash_attention_2", "compute.attention=flash_attention_2: .*installed"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_model(load_recipe(recipe, [setting]))
    strided = load_recipe(recipe, ["model.projector_stride=2"])
    model, processor = open_model(strided)
    model.save_pretrained(tmp_path / "strided")
    processor.save_pretrained(tmp_path / "strided")
    again = load_recipe(recipe, [f"model.checkpoint={tmp_path / 'strided'}", "model.audio_padding=null"])
    assert [part.audio_padding for part in (open_model(again)[0].config, open_model(again)[1])] == ["trim", "trim"]
    with pytest.raises(ValueError, match="model.projector_stride is 3, but the projector of .* was made with 2"):
        open_model(load_recipe(again, ["model.projector_stride=3"]))
    with pytest.raises(ValueError, match="is a whisper model, not a LLaSO one"):
        open_model(load_recipe(recipe, [f"model.checkpoint={root / 'encoder'}"]))
