"""The released checkpoint, its prompts, mel, embeddings, logits, greedy ids, losses, gradients and training steps.

Every expected number was observed by running the released code. The weights are near-random, so the tests compare
logits and not only ids: a wrong slice stride, activation or resampler would leave many ids unchanged.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.paths import shared_fixture
from support.tiny_llaso import answer_only

from llaso_common.audio import read_audio
from modeling_llaso.compatibility_llaso import checkpoint_activations
from modeling_llaso.conversion import from_official, load_projector, new_model, released_name

CASES = ("a", "b", "c", "d", "e", "e2", "g", "g2")
RELEASED_PLACEHOLDER = -300
LITERALS = ("lower-case tag literal in answer", "unk literal in text", "header literal in answer")
"""Rows the released code breaks on; ours refuses them."""


@pytest.fixture(scope="module")
def official() -> SimpleNamespace:
    folder = shared_fixture("official_parity")
    model, processor = from_official(folder / "checkpoint")
    return SimpleNamespace(
        folder=folder,
        model=model,
        processor=processor,
        cases=json.loads((folder / "cases.json").read_text()),
        expected=load_file(folder / "expected.safetensors"),
        rows=json.loads((folder / "train.json").read_text()),
    )


def parts(text: str) -> list[dict]:
    """The released way to write a user message, `<audio>` in the text, as content parts."""
    content = []
    for index, piece in enumerate(text.split("<audio>")):
        content += [{"type": "audio"}] if index else []
        content += [{"type": "text", "text": piece}] if piece else []
    return content


def user(text: str) -> dict:
    return {"role": "user", "content": parts(text)}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def as_released(processor, ids) -> list[int]:
    return [RELEASED_PLACEHOLDER if i == processor.audio_token_id else i for i in ids]


def clips(official, names) -> list[np.ndarray]:
    return [read_audio(official.folder / name) for name in names]


def prompt_inputs(official, names, **kwargs):
    """Inputs that ask the cases' questions, in one batch."""
    cases = [official.cases["cases"][name] for name in names]
    return official.processor.apply_chat_template(
        [[user(case["human"])] for case in cases],
        audio=clips(official, [voice for case in cases for voice in case["voice"]]),
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        **kwargs,
    )


# ---- Prompts and ids ----


@pytest.mark.parametrize("name", CASES)
def test_prompts_and_ids_are_the_released_ones(official, name):
    case, processor = official.cases["cases"][name], official.processor
    prompt = processor.apply_chat_template([user(case["human"])], add_generation_prompt=True)
    assert prompt == case["prompt"]
    conversation = [user(case["human"]), assistant(case["gpt"])]
    assert processor.apply_chat_template(conversation) == case["full_training_prompt"]
    assert as_released(processor, processor.tokenizer(prompt)["input_ids"]) == case["input_ids"]

    inputs = prompt_inputs(official, [name])
    assert inputs["input_ids"].shape == (1, case["expanded_len"])
    windows, _ = official.model.model.cut_windows(inputs["input_features"], inputs["input_features_mask"])
    assert tuple(windows.shape) == tuple(case["input_features_shape"][1:])
    is_audio = (inputs["input_ids"][0] == processor.audio_token_id).int().diff(prepend=torch.zeros(1, dtype=torch.int))
    starts, stops = (is_audio == 1).nonzero().flatten(), (is_audio == -1).nonzero().flatten()
    assert torch.stack([starts, stops], 1).tolist() == case["audio_spans"]


def test_training_ids_and_labels_of_the_edge_cases(official):
    processor = official.processor
    checked = 0
    for case in official.cases["tokenise_only"]:
        if case["desc"].startswith(LITERALS):
            with pytest.raises(ValueError, match="special token"):
                processor.apply_chat_template([user(case["human"]), assistant(case["gpt"])])
            continue
        if not case["gpt"]:  # nothing to learn from: the released loss is NaN
            with pytest.raises(ValueError, match=r"message 1 \(assistant\): the message is empty"):
                processor.apply_chat_template([user(case["human"]), assistant(case["gpt"])])
            continue
        # One sample keeps the placeholder's neighbourhood and the labels easy to line up.
        audio = [np.full(1, 0.5, dtype=np.float32)] * case["human"].count("<audio>")
        inputs = processor.apply_chat_template(
            [[user(case["human"]), assistant(case["gpt"])]],
            audio=audio,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = inputs["input_ids"][0], inputs["assistant_masks"][0]
        keep = torch.ones_like(ids, dtype=torch.bool)
        keep[1:] = (ids[1:] != processor.audio_token_id) | (ids[:-1] != processor.audio_token_id)
        assert as_released(processor, ids[keep].tolist()) == case["input_ids"], case["desc"]
        labels = torch.where(mask.bool(), ids, -100)[keep].tolist()
        if case["has_audio"]:
            assert labels == case["labels"], case["desc"]
        else:  # the released mask is one token wide of the mark here: it learns the header's line break
            assert [a for a, b in zip(labels, case["labels"], strict=True) if a != b] == [-100]
        checked += 1
    assert checked == 6


def test_slices_of_long_audio(official):
    processor = official.processor
    for samples, slices in official.cases["chunks_by_n_samples"].items():
        if int(samples) > 20 * 480_001:  # the released code cuts here without a word
            with pytest.raises(ValueError, match=r"lasts 6\d\d.\d s, longer than max_audio_len, 600 s"):
                processor.audio_windows(int(samples))
        else:
            assert len(processor.audio_windows(int(samples))) == slices
    assert processor.audio_windows(45 * 16_000) == [(0, 480_000), (480_001, 720_000)]
    assert processor.audio_windows(480_001) == [(0, 480_000)]


# ---- Mel, embeddings, logits, ids ----


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_mel_embeddings_and_logits(official, name):
    case, expected = official.cases["cases"][name], official.expected
    inputs = prompt_inputs(official, [name])
    windows, _ = official.model.model.cut_windows(inputs["input_features"], inputs["input_features_mask"])
    torch.testing.assert_close(windows[..., ::25], expected[f"{name}/mel_every_25th_frame"], atol=1e-5, rtol=0)
    outputs = official.model(**inputs)
    projected = outputs.audio_hidden_states[::25]
    torch.testing.assert_close(projected, expected[f"{name}/projected_every_25th"], atol=1e-5, rtol=0)
    at_text = outputs.logits[0, case["text_positions"]]
    torch.testing.assert_close(at_text, expected[f"{name}/logits_text_positions"], atol=1e-3, rtol=0)
    if name == "a":
        torch.testing.assert_close(inputs["input_features"], expected["a/mel"], atol=1e-5, rtol=0)
        torch.testing.assert_close(outputs.audio_hidden_states, expected["a/projected"], atol=1e-5, rtol=0)
        torch.testing.assert_close(outputs.logits[0], expected["a/logits_full"], atol=1e-3, rtol=0)
        encoded = official.model.get_audio_features(inputs["input_features"]).last_hidden_state[0]
        torch.testing.assert_close(encoded, expected["a/encoder_out"], atol=1e-4, rtol=0)


def greedy(official, inputs, **kwargs):
    """As the released code generated for the fixtures: greedy, 20 new tokens."""
    return official.model.generate(
        **inputs, max_new_tokens=20, return_dict_in_generate=True, output_logits=True, **kwargs
    )


def answers(official, generated, inputs) -> list[list[int]]:
    """Generated ids of each row, up to and with the end of the turn."""
    rows = []
    for row in generated.sequences[:, inputs["input_ids"].shape[1] :].tolist():
        while row and row[-1] == official.processor.tokenizer.pad_token_id:
            row.pop()
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", CASES)
def test_greedy_generation_one_by_one(official, name):
    case, inputs = official.cases["cases"][name], prompt_inputs(official, [name])
    generated = greedy(official, inputs)
    assert answers(official, generated, inputs) == [case["generated_ids"]]
    logits = torch.cat(generated.logits)
    torch.testing.assert_close(logits, official.expected[f"{name}/generate_logits"], atol=1e-3, rtol=0)
    text = official.processor.decode(case["generated_ids"], skip_special_tokens=True).strip()
    assert text == case["decoded"].strip()


@pytest.mark.slow
def test_greedy_generation_in_one_left_padded_batch(official):
    inputs = prompt_inputs(official, CASES)
    assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][:, -1].all()
    generated = greedy(official, inputs)
    expected = [official.cases["cases"][name]["generated_ids"] for name in CASES]
    assert answers(official, generated, inputs) == expected
    for row, name in enumerate(CASES):
        logits = torch.stack([step[row] for step in generated.logits[: len(expected[row])]])
        torch.testing.assert_close(logits, official.expected[f"{name}/generate_logits"], atol=1e-3, rtol=0)


def test_generation_of_equal_lengths_and_early_stop(official):
    case = official.cases["equal_length_batch_generate"]
    inputs = official.processor.apply_chat_template(
        [[user(case["human"])] for _ in case["voice"]],
        audio=clips(official, [f"wavs/{voice}.wav" for voice in case["voice"]]),
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
    assert answers(official, greedy(official, inputs), inputs) == case["generated_ids"]
    case = official.cases["early_stop_generate"]
    inputs = prompt_inputs(official, [case["case"]])
    assert answers(official, greedy(official, inputs, eos_token_id=case["eos_token_id"]), inputs) == [
        case["generated_ids"]
    ]


# ---- Training ----


def training_batch(official, processor, indices):
    rows = [official.rows[index] for index in indices]
    inputs = processor.apply_chat_template(
        [[user(row["conversations"][0]["value"]), assistant(row["conversations"][1]["value"])] for row in rows],
        audio=clips(official, [voice for row in rows for voice in row["voice"]]),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding_side": "right"},
    )
    mask = inputs.pop("assistant_masks").bool()
    inputs["labels"] = torch.where(mask, inputs["input_ids"], -100)
    return inputs


def freeze(model, stage: int) -> list[torch.nn.Parameter]:
    """Stage 1 trains the projector; stage 2 the projector and the language model."""
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if stage == 2:
        model.model.language_model.requires_grad_(True)
    model.train()
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", ["f1", "f2", "f3"])
@pytest.mark.parametrize("stage", [1, 2])
def test_labels_loss_and_gradients(official, name, stage):
    case, model = official.cases["batches"][name], official.model
    inputs = training_batch(official, official.processor, case["train_json_indices"])
    # The released code pads before it expands, so its batch may be wider; the rows are the same.
    assert inputs["attention_mask"].sum(-1).tolist() == [total for _, _, total in case["attention_true_ranges"]]
    for row, (positions, ids) in enumerate(zip(case["label_positions"], case["label_ids"], strict=True)):
        labelled = (inputs["labels"][row] != -100).nonzero().flatten()
        assert labelled.tolist() == positions
        assert inputs["labels"][row, labelled].tolist() == ids

    trained = freeze(model, stage)
    try:
        outputs = model(**inputs, **answer_only(inputs["labels"]))
        assert outputs.logits.shape[0] == sum(len(ids) for ids in case["label_ids"])
        predicted = outputs.logits.split([len(ids) for ids in case["label_ids"]])
        for row, logits in enumerate(predicted):
            wanted = official.expected[f"{name}/row{row}_logits_predicting_labels"]
            torch.testing.assert_close(logits.detach(), wanted, atol=1e-3, rtol=0)
        assert outputs.loss.item() == pytest.approx(case["loss"], rel=1e-5)
        outputs.loss.backward()
        grads = case["grads"][str(stage)]
        total = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained]).item()
        assert total == pytest.approx(grads["total_norm"], rel=1e-5)
        norms = {released_name(n): p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
        assert norms == pytest.approx(grads["per_param_norm"], rel=1e-5)
        projector = model.model.multi_modal_projector
        for tensor, wanted in (
            (projector.linear_1.weight, "grad_projector.0.weight"),
            (projector.linear_2.bias, "grad_projector.2.bias"),
        ):
            torch.testing.assert_close(tensor.grad, official.expected[f"{name}/{wanted}"], atol=1e-4, rtol=1e-4)
        if (name, stage) == ("f1", 2):
            embeddings = model.get_input_embeddings().weight.grad
            torch.testing.assert_close(embeddings, official.expected["f1/grad_embed_tokens"], atol=1e-4, rtol=1e-4)
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


def released_parts(official) -> tuple[Path, Path]:
    return official.folder / "whisper", official.folder / "base_llm"


@pytest.fixture(scope="module")
def untrained(official):
    """What the released training starts from: `llaso new` on the two parts, and the projector as it was drawn."""
    model, processor = new_model(*released_parts(official), dtype="float32", rows_are_fixed=True)
    embeddings = load_file(official.folder / "stage1" / "resized_embed_tokens.safetensors")["embed_tokens"]
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), embeddings, atol=1e-7, rtol=0)
    drawn = {
        f"model.mm_audio_aligner.{name}": tensor
        for name, tensor in load_file(official.folder / "stage1" / "projector_init.safetensors").items()
    }
    return model, processor, drawn


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_the_released_trainer_runs(official, untrained, stage, tmp_path):
    """Both stages of the released scripts, micro-batch by micro-batch, from the same start and in the same order."""
    run = json.loads((official.folder / f"train_stage{stage}.json").read_text())
    _, processor, drawn = untrained
    model, _ = new_model(*released_parts(official), dtype="float32", rows_are_fixed=True)
    torch.save(drawn, tmp_path / "drawn.bin")
    load_projector(
        model, tmp_path / "drawn.bin" if stage == 1 else official.folder / "stage1" / "mm_audio_aligner.bin"
    )
    trained = freeze(model, stage)
    assert {released_name(n) for n, p in model.named_parameters() if p.requires_grad} == set(run["trainable"])

    flags = dict(zip(run["args"][::2], run["args"][1::2], strict=True))
    batch = int(flags["--per_device_train_batch_size"])
    accumulation = int(flags["--gradient_accumulation_steps"])
    if flags["--gradient_checkpointing"] == "True":
        checkpoint_activations(model)
    steps, peak = len(run["log_history"]), float(flags["--learning_rate"])
    warmup = math.ceil(steps * float(flags["--warmup_ratio"]))
    optimiser = torch.optim.AdamW(trained, lr=peak, weight_decay=0.0)

    def rate(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    order = [run["sample_order"][i : i + batch] for i in range(0, len(run["sample_order"]), batch)]
    losses, norms = [], []
    for micro, indices in enumerate(order):
        loss = model(**training_batch(official, processor, indices)).loss
        losses.append(loss.item())
        (loss / accumulation).backward()
        if (micro + 1) % accumulation == 0:
            norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
    assert losses == pytest.approx(run["micro_losses"], rel=1e-4)
    assert norms == pytest.approx([entry["grad_norm"] for entry in run["log_history"]], rel=1e-3)
    if stage == 1:
        artefact = torch.load(official.folder / "stage1" / "mm_audio_aligner.bin", weights_only=True)
        for name, tensor in model.model.multi_modal_projector.state_dict().items():
            ours = f"model.multi_modal_projector.{name}"
            wanted = next(
                v for k, v in artefact.items() if released_name(ours).endswith(k.split("mm_audio_aligner.")[-1])
            )
            torch.testing.assert_close(tensor, wanted, atol=2e-5, rtol=1e-3)
