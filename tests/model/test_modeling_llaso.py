"""The network: trimming, pooling, generation in every manner, encode once, answer-only loss, devices and adapters."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
from support.tiny_llaso import answer_only, ask, question, text_config, tiny_llaso, tone, whisper_config
from torch._dynamo.utils import counters
from transformers import (
    AutoModel,
    BitsAndBytesConfig,
    CompileConfig,
    GenerationConfig,
    TextStreamer,
    WhisperModel,
    pipeline,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_llaso.compatibility_llaso import (
    CACHE_SINCE_5_24,
    CHUNKS_PREFILL_SINCE_5_23,
    LOADS_AUDIO_SINCE_5_23,
    checkpoint_activations,
)
from modeling_llaso.configuration_llaso import LlasoConfig, count_audio_tokens
from modeling_llaso.modeling_llaso import LlasoEncoder, LlasoForConditionalGeneration, LlasoModel
from modeling_llaso.processing_llaso import stack_windows


@pytest.fixture(scope="module")
def trim():
    return tiny_llaso("trim")


@pytest.fixture(scope="module")
def full():
    return tiny_llaso("full")


def questions(processor, seconds=(0.3, 1.2, 0.7)):
    """Rows of different lengths: no audio, one, and two."""
    clips = [tone(s, seed=n) for n, s in enumerate(seconds)]
    rows = [question("Hi there", clips=0), question("Who?", clips=1), question("Compare both:", clips=2)]
    return ask(processor, rows, clips)


def labelled(processor, seconds=(0.3, 0.9)):
    rows = [
        [*question(f"Question {n}", clips=1), {"role": "assistant", "content": f"Answer {n}" * (n + 1)}]
        for n in range(len(seconds))
    ]
    inputs = processor.apply_chat_template(
        rows,
        audio=[tone(s, seed=n) for n, s in enumerate(seconds)],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding_side": "right"},
    )
    mask = inputs.pop("assistant_masks").bool()
    return dict(inputs) | {"labels": inputs["input_ids"].masked_fill(~mask, -100)}


# ---- Encoder ----


@torch.no_grad()
def test_the_encoder_gives_whispers_output():
    torch.manual_seed(0)
    whisper = WhisperModel(whisper_config()).eval()
    encoder = LlasoEncoder(whisper_config()).eval()
    encoder.load_state_dict(whisper.encoder.state_dict())
    features = torch.randn(2, 16, 3000)
    wanted = whisper.encoder(features).last_hidden_state
    torch.testing.assert_close(encoder(features).last_hidden_state, wanted, atol=1e-6, rtol=0)
    masked = encoder(features, torch.ones(2, 3000)).last_hidden_state
    torch.testing.assert_close(masked, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_masked_batch_gives_every_window_what_it_gets_alone(attention):
    encoder = tiny_llaso("trim")[0].model.audio_tower
    encoder.set_attn_implementation(attention)
    frames = (1, 2, 7, 50, 129)  # odd ones end inside a stride of the second convolution
    windows = [torch.randn(16, count) for count in frames]
    batch, mask = torch.full((len(frames), 16, 140), 7.0), torch.zeros(len(frames), 140)
    for row, window in enumerate(windows):
        batch[row, :, : window.shape[1]] = window
        mask[row, : window.shape[1]] = 1
    together = encoder(batch * mask[:, None], mask).last_hidden_state
    for row, window in enumerate(windows):
        alone = encoder(window[None]).last_hidden_state[0]
        assert len(alone) == count_audio_tokens(window.shape[1])
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_trim_computes_no_frame_of_padding(trim, full):
    """One second: the encoder sees 100 frames and the language model 50 vectors, not 3000 and 1500."""
    for (model, processor), frames in ((trim, 100), (full, 3000)):
        inputs = ask(processor, [question("Who?")], [tone(1.0)])
        seen = []
        hook = model.model.audio_tower.conv1.register_forward_hook(
            lambda _, args, __, seen=seen: seen.append(args[0].shape)
        )
        with torch.no_grad():
            outputs = model(**inputs)
        hook.remove()
        assert seen == [(1, 16, frames)]
        assert outputs.audio_hidden_states.shape == (frames // 2, 24)


@pytest.mark.parametrize("pooling", ["average", "concatenate"])
@pytest.mark.parametrize("padding", ["full", "trim"])
@torch.no_grad()
def test_pooled_vectors_are_counted_and_computed_per_clip(pooling, padding):
    stride = 7  # divides neither 1500 nor most clips
    model, processor = tiny_llaso(padding, projector_stride=stride, projector_pooling=pooling)
    clips = [tone(0.25), tone(1.0), tone(31.0)]
    inputs = ask(processor, [question("Compare", clips=3)], clips)
    outputs = model(**inputs)
    counts = [processor.count_audio_tokens(len(clip)) for clip in clips]
    assert outputs.audio_hidden_states.shape == (sum(counts), 24)

    encoded = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    projector, vectors = model.model.multi_modal_projector, encoded.last_hidden_state
    _, masks = model.model.cut_windows(inputs["input_features"], inputs["input_features_mask"])
    wanted = []
    for window, mask in zip(vectors, masks, strict=True):
        for group in window[: count_audio_tokens(int(mask.sum()))].split(stride):
            if pooling == "average":
                wanted.append(group.mean(0))
            else:
                wanted.append(torch.cat([group, torch.zeros(stride - len(group), 16)]).flatten())
    torch.testing.assert_close(encoded.pooler_output, projector(torch.stack(wanted)), atol=1e-5, rtol=1e-5)


# ---- Batches, caches, implementations ----


@pytest.mark.parametrize("padding", ["full", "trim"])
@torch.no_grad()
def test_a_left_padded_batch_is_equal_to_one_by_one(padding):
    model, processor = tiny_llaso(padding)
    inputs = questions(processor)
    together = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    clips = [tone(s, seed=n) for n, s in enumerate((0.3, 1.2, 0.7))]
    rows = [
        (question("Hi there", clips=0), []),
        (question("Who?"), clips[:1]),
        (question("Compare both:", clips=2), clips[1:]),
    ]
    for row, (conversation, audio) in enumerate(rows):
        alone = ask(processor, [conversation], audio or None)
        generated = model.generate(**alone, max_new_tokens=8)[:, alone["input_ids"].shape[1] :]
        assert generated[0].tolist() == together[row].tolist()


@torch.no_grad()
def test_sdpa_and_eager_agree(trim):
    model, processor = trim
    inputs = questions(processor)
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    assert other.model.audio_tower.config._attn_implementation == "eager"
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(other(**inputs).logits[real], model(**inputs).logits[real], atol=1e-4, rtol=1e-4)
    assert model._supports_flash_attn and model._supports_sdpa and model._supports_attention_backend


@pytest.mark.parametrize(
    ("penalty", "settings"),
    [("repetition_penalty", {}), ("repetition_penalty", {"num_beams": 2}), ("encoder_repetition_penalty", {})],
    ids=str,
)
def test_penalties_leave_out_the_placeholder(trim, penalty, settings):
    """The placeholder has no logit to change; every other token of the prompt counts, as by the loop below."""
    model, processor = trim
    inputs = questions(processor)
    length = inputs["input_ids"].shape[1]
    said = [set(row.tolist()) - {model.config.audio_token_id} for row in inputs["input_ids"]]
    factor = 1.5 if penalty == "repetition_penalty" else 1 / 1.5

    def by_hand(input_ids, scores):
        scores = scores.clone()
        for row, (ids, row_scores) in enumerate(zip(input_ids, scores, strict=True)):
            counted = said[row // settings.get("num_beams", 1)]
            if penalty == "repetition_penalty":
                counted = counted | set(ids[length:].tolist())
            for token in counted:
                row_scores[token] = row_scores[token] * factor if row_scores[token] < 0 else row_scores[token] / factor
        return scores

    wanted = model.generate(**inputs, max_new_tokens=6, logits_processor=[by_hand], **settings)
    generated = model.generate(**inputs, max_new_tokens=6, **{penalty: 1.5}, **settings)
    assert torch.equal(generated, wanted)
    assert not torch.equal(generated, model.generate(**inputs, max_new_tokens=6, **settings))


@torch.no_grad()
def test_beam_search_sampling_and_streaming_keep_each_rows_audio(trim):
    """Rows with no, one and two audios: repeated rows keep their own audio, and it is encoded once."""
    model, processor = trim
    inputs = questions(processor)
    width = inputs["input_ids"].shape[1]
    encodings = []
    hook = model.model.audio_tower.register_forward_hook(lambda *args: encodings.append(1))
    beams = model.generate(**inputs, max_new_tokens=5, num_beams=3, num_return_sequences=3)
    hook.remove()
    assert encodings == [1]
    # Beam search over embeddings that already hold the audio is the reference: no audio is repeated there.
    embeds = merged(model, inputs)
    wanted = model.generate(
        inputs_embeds=embeds,
        attention_mask=inputs["attention_mask"],
        max_new_tokens=5,
        num_beams=3,
        num_return_sequences=3,
    )
    assert beams[:, width:].tolist() == wanted.tolist()

    torch.manual_seed(0)
    sampled = model.generate(**inputs, max_new_tokens=5, do_sample=True, num_return_sequences=4, temperature=2.0)
    assert sampled.shape == (12, width + 5)
    assert len({tuple(row[width:].tolist()) for row in sampled[:4]}) > 1

    written = []

    class Kept(TextStreamer):
        def put(self, value):
            written.append(value)

    alone = ask(processor, [question("Who?")], [tone(0.4)])
    generated = model.generate(**alone, max_new_tokens=5, streamer=Kept(processor.tokenizer))
    assert torch.cat([value.flatten() for value in written]).tolist() == generated[0].tolist()


def merged(model, inputs) -> torch.Tensor:
    """The language model's input with the audio in it, written out by hand."""
    is_audio = inputs["input_ids"] == model.config.audio_token_id
    embeds = model.get_input_embeddings()(inputs["input_ids"].masked_fill(is_audio, 0))
    vectors = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    embeds[is_audio] = vectors
    return embeds


@torch.no_grad()
def test_static_cache_and_compiled_decoding(trim):
    model, processor = trim
    inputs = questions(processor)
    wanted = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, cache_implementation="static"), wanted)
    chunked = copy.deepcopy(model)
    encoded = {"audio": model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])}
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if not CHUNKS_PREFILL_SINCE_5_23:
        with pytest.raises(ValueError, match="prefill_chunk_size with audio needs a newer transformers"):
            chunked.generate(**text, mm_encoder_outputs=encoded, max_new_tokens=6, prefill_chunk_size=100)
        return
    generated = chunked.generate(**text, mm_encoder_outputs=encoded, max_new_tokens=6, prefill_chunk_size=100)
    assert torch.equal(generated, wanted)


@pytest.mark.slow
@torch.no_grad()
def test_the_decode_step_compiles_as_one_graph(trim):
    model, processor = trim
    inputs = questions(processor)
    prefill = model(**inputs, use_cache=True, logits_to_keep=1)
    token = prefill.logits.argmax(-1)
    step = {
        "input_ids": token,
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1),
        "position_ids": inputs["attention_mask"].sum(-1, keepdim=True),
    }
    eager = model(**step, cache=copy.deepcopy(prefill[CACHE_SINCE_5_24])).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(**step, cache=copy.deepcopy(prefill[CACHE_SINCE_5_24])).logits, eager, atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_the_cache_is_taken_under_its_new_and_its_old_name(trim):
    model, processor = trim
    inputs = questions(processor)
    prefill = model(**inputs, use_cache=True, logits_to_keep=1)
    step = {
        "input_ids": prefill.logits.argmax(-1),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1),
        "position_ids": inputs["attention_mask"].sum(-1, keepdim=True),
    }
    new = model(**step, cache=copy.deepcopy(prefill[CACHE_SINCE_5_24])).logits
    named_anew = CACHE_SINCE_5_24 == "cache"
    with pytest.warns(FutureWarning, match="use `cache`") if named_anew else contextlib.nullcontext():
        old = model(**step, past_key_values=copy.deepcopy(prefill[CACHE_SINCE_5_24])).logits
    assert torch.equal(new, old)
    assert not torch.allclose(new, model(**step | {"attention_mask": None}).logits)  # it is read
    with pytest.raises(
        ValueError, match="two names of one thing" if named_anew else "generate.. knows past_key_values"
    ):
        model(**step, cache=prefill[CACHE_SINCE_5_24], past_key_values=prefill[CACHE_SINCE_5_24])


def no_cpp_compiler() -> str:
    """Say why inductor cannot build here; "" if it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        return f"inductor finds no C++ compiler: {error}"
    return ""


@pytest.mark.slow
@torch.no_grad()
def test_decoding_compiled_by_inductor_writes_the_same_answers(trim):
    if reason := no_cpp_compiler():
        pytest.skip(reason)
    model, processor = trim
    inputs = questions(processor)
    compiled = CompileConfig(backend="inductor", mode="default", fullgraph=True)
    compiled._compile_all_devices = True  # transformers compiles on accelerators only, unless told so
    torch._dynamo.reset()
    counters.clear()
    generated = model.generate(**inputs, max_new_tokens=6, cache_implementation="static", compile_config=compiled)
    assert torch.equal(generated, model.generate(**inputs, max_new_tokens=6))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@torch.no_grad()
def test_bfloat16_stays_near_float32(trim):
    model, processor = trim
    half = copy.deepcopy(model).to(torch.bfloat16)
    inputs = questions(processor)
    logits = half(**inputs).logits  # the mel stays float32 outside, and is cast where it enters
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    real = inputs["attention_mask"].bool()
    wanted = model(**inputs).logits[real]
    error = logits.float()[real] - wanted
    # bfloat16 keeps 8 bits: 0.4 % a rounding. That adds up to 5 % of the spread of the logits, and 30 % at the worst.
    assert error.std() < 0.05 * wanted.std() and error.abs().max() < 0.3 * wanted.std()
    features = half.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    exact = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    assert features.dtype == torch.bfloat16 and (features.float() - exact).std() < 0.05 * exact.std()
    # Greedy answers agree wherever float32 is surer of its choice than the error of bfloat16.
    best = wanted.topk(2).values
    sure = best[:, 0] - best[:, 1] > 2 * error.abs().max()
    assert sure.any() and torch.equal(logits[real][sure].argmax(-1), wanted[sure].argmax(-1))


@torch.no_grad()
def test_answers_end_with_the_language_models_context_and_longer_prompts_are_refused(trim):
    model, processor = copy.deepcopy(trim[0]), trim[1]
    inputs = ask(processor, [question("Who?")], [tone(0.5)])
    length = inputs["input_ids"].shape[1]
    for room in (3, 1):
        model.config.text_config.max_position_embeddings = length + room
        assert model.generate(**inputs, max_new_tokens=8).shape[1] == length + room
    model.config.text_config.max_position_embeddings = length
    for beams in (1, 2):
        with pytest.raises(ValueError, match=f"the prompt has {length} tokens, its audio included.*at most {length}"):
            model.generate(**inputs, max_new_tokens=8, num_beams=beams)


# ---- Encode once, ask many ----


@torch.no_grad()
def test_encoded_audio_serves_many_prompts(trim):
    model, processor = trim
    clips = [tone(0.4), tone(31.0)]
    counts = [processor.count_audio_tokens(len(clip)) for clip in clips]
    windows = processor(text="<audio><audio>", audio=clips)
    audio = model.get_audio_features(windows["input_features"], windows["input_features_mask"])
    each = audio.pooler_output.split(counts)

    for text, order in (("First", [0]), ("Second", [1]), ("Both", [1, 0])):
        conversation = question(text, clips=len(order))
        prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
        tokens = processor.tokenizer(processor.expand_text(prompt, [counts[i] for i in order]), return_tensors="pt")
        encoded = {"audio": BaseModelOutputWithPooling(pooler_output=[each[i] for i in order])}
        inputs = ask(processor, [conversation], [clips[i] for i in order])
        assert torch.equal(tokens["input_ids"], inputs["input_ids"])
        torch.testing.assert_close(
            model(**tokens, mm_encoder_outputs=encoded).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4
        )
        for settings in ({}, {"num_beams": 2}):
            again = model.generate(**tokens, mm_encoder_outputs=encoded, max_new_tokens=5, **settings)
            assert torch.equal(again, model.generate(**inputs, max_new_tokens=5, **settings))


@torch.no_grad()
def test_audio_encoded_before_is_projected_and_comes_before_new_audio(trim):
    model, processor = trim
    clips = [tone(0.4), tone(31.0), tone(0.7)]
    whole = ask(processor, [question("Compare", clips=3)], clips)
    tokens = {name: whole[name] for name in ("input_ids", "attention_mask")}
    mask = whole["input_features_mask"]
    before = model.model.encode(whole["input_features"][:2], mask[:2])  # the second clip has two windows
    assert before.pooler_output is None and before.last_hidden_state.shape == (3, 1500, 16)
    assert before.vector_mask.sum(-1).tolist() == [20, 1500, 50]
    new = {"input_features": whole["input_features"][2:], "input_features_mask": mask[2:]}
    wanted = model(**whole).logits
    got = model(**tokens, **new, mm_encoder_outputs={"audio": before}).logits
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    beams = {"num_beams": 2, "max_new_tokens": 4}
    again = model.generate(**tokens, **new, mm_encoder_outputs={"audio": before}, **beams)
    assert torch.equal(again, model.generate(**whole, **beams))


# ---- Windows ----


@torch.no_grad()
@pytest.mark.parametrize("padding", ["full", "trim"])
def test_an_audio_is_one_row_and_its_windows_are_cut_from_it(padding):
    model, processor = tiny_llaso(padding)
    clips = [tone(0.4), tone(61.0), tone(30.0), tone(33.0)]
    spans = [processor.audio_windows(len(clip)) for clip in clips]
    mels = [
        processor.log_mel([clip[start:stop] for start, stop in cuts]) for clip, cuts in zip(clips, spans, strict=True)
    ]
    inputs = processor(text="<audio>" * 4, audio=clips)
    assert len(inputs["input_features"]) == len(clips)
    windows, mask = model.model.cut_windows(inputs["input_features"], inputs["input_features_mask"])
    wanted, wanted_mask = stack_windows([window for clip in mels for window in clip])  # 1 + 3 + 1 + 2: none is empty
    assert torch.equal(windows, wanted) and torch.equal(mask, wanted_mask)
    again, again_mask = model.model.cut_windows(windows, mask)
    assert again is windows and again_mask is mask

    encoded = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    assert encoded.last_hidden_state.shape == (7, 1500, 16)
    assert torch.equal(encoded.pooler_output, model.get_audio_features(wanted, wanted_mask).pooler_output)
    # As vLLM gives them: audios of different length are lists.
    rows = [torch.cat(clip, dim=1) for clip in mels]
    masks = [torch.ones(row.shape[1], dtype=torch.long) for row in rows]
    for given in (masks, None):
        assert torch.equal(model.get_audio_features(rows, given).pooler_output, encoded.pooler_output)
    alone = [model.get_audio_features(row[None], [mask]).pooler_output for row, mask in zip(rows, masks, strict=True)]
    torch.testing.assert_close(torch.cat(alone), encoded.pooler_output, atol=1e-5, rtol=1e-4)
    whole = [row for row in rows if row.shape[1] <= 3000 or padding == "full"]
    unmasked = torch.cat([model.get_audio_features(row[None]).pooler_output for row in whole])
    masked = [vectors for row, vectors in zip(rows, alone, strict=True) if any(row is one for one in whole)]
    torch.testing.assert_close(unmasked, torch.cat(masked), atol=1e-5, rtol=1e-4)


def test_what_is_left_of_a_batch_does_not_pay_for_the_row_that_is_gone(trim):
    model, processor = trim
    inputs = processor(text="<audio>" * 3, audio=[tone(0.4), tone(1.0), tone(61.0)])
    assert inputs["input_features"].shape == (3, 16, 6100)
    windows, mask = model.model.cut_windows(inputs["input_features"][:2], inputs["input_features_mask"][:2])
    assert windows.shape == (2, 16, 100) and mask.sum(-1).tolist() == [40, 100]


@pytest.mark.parametrize("padding", ["full", "trim"])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_window_without_a_real_frame_runs_through_the_encoder_and_changes_nothing(padding, stride):
    """Sharded processes stay in step by it."""
    model, processor = tiny_llaso(padding, projector_stride=stride)
    inputs = processor.apply_chat_template(question("Hi", clips=0), tokenize=True, return_dict=True)
    empty = {"input_features": torch.zeros(1, 16, 2), "input_features_mask": torch.zeros(1, 2)}
    assert torch.equal(model(**inputs, **empty).logits, model(**inputs).logits)
    model.train()(**inputs, **empty).logits.sum().backward()
    parts = [model.model.audio_tower, model.model.multi_modal_projector]
    gradients = {name: p.grad for part in parts for name, p in part.named_parameters() if p.requires_grad}
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values()), gradients


# ---- Training ----


@pytest.mark.parametrize("padding", ["full", "trim"])
def test_the_answer_only_loss_is_the_whole_loss(padding):
    model, processor = tiny_llaso(padding)
    inputs = labelled(processor)
    answers = int((inputs["labels"] != -100).sum())
    grads, losses = [], []
    for settings, shape in ((answer_only(inputs["labels"]), (answers,)), ({}, inputs["input_ids"].shape)):
        model.train()
        model.zero_grad()
        outputs = model(**inputs, **settings)
        outputs.loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        losses.append(outputs.loss.item())
        assert outputs.logits.shape[:-1] == shape
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for kept, whole in zip(*grads, strict=True):
        torch.testing.assert_close(kept, whole, atol=1e-5, rtol=1e-4)
    model.eval()
    assert model(**inputs).loss.item() == pytest.approx(losses[0], rel=1e-6)
    everything = model(**inputs | {"labels": inputs["input_ids"].clone()})
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.audio_token_id, -100)
    assert everything.loss.isfinite() and everything.loss == model(**inputs | {"labels": labels}).loss
    split = model.train()(**inputs, num_items_in_batch=torch.tensor(2 * answers)).loss.item()
    assert split == pytest.approx(losses[0] / 2, rel=1e-6)


def test_a_frozen_encoder_records_no_graph(trim):
    model, processor = copy.deepcopy(trim[0]), trim[1]
    inputs = labelled(processor)

    def graph(frozen: bool):
        model.model.audio_tower.requires_grad_(not frozen)
        return model.train().get_audio_features(inputs["input_features"], inputs["input_features_mask"])

    assert graph(frozen=True).last_hidden_state.grad_fn is None
    assert graph(frozen=True).pooler_output.grad_fn is not None  # the projector still learns
    assert graph(frozen=False).last_hidden_state.grad_fn is not None
    features = inputs["input_features"].clone().requires_grad_()
    model.model.audio_tower.requires_grad_(False)
    model.get_audio_features(features, inputs["input_features_mask"]).pooler_output.sum().backward()
    assert features.grad.abs().sum() > 0  # a caller that asks for the input's gradient gets it


def test_gradient_checkpointing_changes_no_gradient(trim):
    model, processor = copy.deepcopy(trim[0]), trim[1]
    inputs = labelled(processor)

    def gradients():
        model.zero_grad()
        model.train()(**inputs).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    checkpoint_activations(model)
    assert any(layer.gradient_checkpointing for layer in model.model.audio_tower.layers)
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_lora_trains_the_named_modules_only_and_merges_unchanged(trim, tmp_path):
    peft = pytest.importorskip("peft")
    model, processor = copy.deepcopy(trim[0]), trim[1]
    inputs = labelled(processor)
    config = peft.LoraConfig(
        r=4, target_modules=r".*language_model.*\.(q|v)_proj|.*multi_modal_projector\.linear_\d", task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, config)
    trained = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    layers = range(model.config.text_config.num_hidden_layers)
    modules = {f"language_model.layers.{n}.self_attn.{p}_proj" for n in layers for p in "qv"}
    modules |= {f"multi_modal_projector.linear_{n}" for n in (1, 2)}
    assert {name.partition(".lora_")[0].rpartition("model.model.")[2] for name in trained} == modules
    assert len(trained) == 2 * len(modules) and all("lora_" in name for name in trained)
    frozen = {name: p.detach().clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    with torch.no_grad():  # the second matrix starts at zero: nothing is changed yet
        torch.testing.assert_close(adapted(**inputs).loss, trim[0](**inputs).loss)
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = adapted.train()(**inputs).loss
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0]
    now = dict(adapted.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())
    assert not any(torch.equal(now[name], before) for name, before in trained.items())
    adapted.save_pretrained(tmp_path)
    opened = peft.PeftModel.from_pretrained(copy.deepcopy(trim[0]), tmp_path)
    generate = {"input_ids": inputs["input_ids"][:1], "input_features": inputs["input_features"][:1]}
    generate["input_features_mask"] = inputs["input_features_mask"][:1]
    real = {**generate, "attention_mask": inputs["attention_mask"][:1]}
    with torch.no_grad():
        logits = adapted.eval()(**real).logits
        torch.testing.assert_close(opened.eval()(**real).logits, logits, atol=1e-5, rtol=1e-5)
        assert (logits - trim[0](**real).logits).abs().max() > 1e-2  # the adapters do something
        merged = adapted.merge_and_unload()
        assert not any("lora_" in name for name, _ in merged.named_parameters())
        torch.testing.assert_close(merged(**real).logits, logits, atol=1e-4, rtol=1e-4)


# ---- The placeholder ----


@torch.no_grad()
def test_the_placeholder_is_never_generated(trim):
    """With no row it has no logit; with a row, as after resizing or in a padded vocabulary, its logit is masked."""
    model, processor = copy.deepcopy(trim[0]), trim[1]
    inputs = questions(processor)
    placeholder = model.config.audio_token_id
    assert model(**inputs).logits.shape[-1] == placeholder == len(processor.tokenizer) - 1
    wanted = model(**inputs).logits
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    rows = model.get_output_embeddings().weight
    rows[placeholder] = 1000 * torch.ones_like(rows[placeholder])
    logits = model(**inputs).logits
    torch.testing.assert_close(logits[..., :placeholder], wanted)
    assert (logits[..., placeholder] == torch.finfo(logits.dtype).min).all()
    embeds = model.get_input_embeddings()(inputs["input_ids"])  # now that it has a row, its embedding shows it
    features = {name: inputs[name] for name in ("attention_mask", "input_features", "input_features_mask")}
    torch.testing.assert_close(model(inputs_embeds=embeds, **features).logits, logits)
    sampling = GenerationConfig(do_sample=True, temperature=50.0, max_new_tokens=60, num_return_sequences=4)
    generated = model.generate(**inputs, generation_config=sampling)[:, inputs["input_ids"].shape[1] :]
    assert (generated != placeholder).all()


def test_audio_that_does_not_fit_its_placeholders_is_named(trim, full):
    model, processor = trim
    inputs = ask(processor, [question("Who?")], [tone(0.5)])
    fewer = dict(inputs) | {"input_features_mask": inputs["input_features_mask"].clone()}
    fewer["input_features_mask"][:, 40:] = 0
    with pytest.raises(ValueError, match=r"25 audio placeholders, but the audio gives 20 vectors.*'trim'"):
        model(**fewer)
    with pytest.raises(ValueError, match="25 audio placeholders, but the audio gives 20"):
        model.generate(**fewer, num_beams=2, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"25 audio placeholders, but no audio came with it.*generate\(\*\*inputs\)"):
        model.generate(input_ids=inputs["input_ids"], max_new_tokens=2)
    with pytest.raises(ValueError, match='audio_padding="full", so it takes windows of 3000 frames, not 50'):
        full[0](**inputs)
    whole = ask(full[1], [question("Who?")], [tone(0.5)])
    assert model(**whole).logits.shape[1] == whole["input_ids"].shape[1]  # whole windows are real frames to `trim`
    with pytest.raises(ValueError, match='audio_padding="full", so it takes windows of 3000 frames, not 3001'):
        full[0].get_audio_features(torch.zeros(1, 16, 3001))
    with pytest.raises(ValueError, match=r"1 audios of 50 frames came with a mask of shape \(2, 50\)"):
        model.get_audio_features(torch.zeros(1, 16, 50), torch.ones(2, 50))
    encoded = {"audio": model.get_audio_features(inputs["input_features"])}
    with pytest.raises(ValueError, match="25 audio placeholders, but the audio gives 50 vectors"):
        model(**inputs, mm_encoder_outputs=encoded)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(input_features=inputs["input_features"])
    with pytest.raises(ValueError, match="inputs_embeds cannot show them"):
        model(inputs_embeds=torch.zeros(1, 25, 24), input_features=inputs["input_features"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("audio_padding", "none", "audio_padding is 'none'; choose one of"),
        ("projector_pooling", "max", "projector_pooling is 'max'; choose one of"),
        ("projector_stride", 0, "projector_stride is 0; it counts encoder vectors"),
        ("projector_stride", 10**9, "projector_stride is 1000000000, but a window has only 1500 vectors"),
    ],
)
def test_bad_configurations_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        LlasoConfig(**{field: value})


# ---- Loading, devices, pipelines ----


def test_saved_and_opened_with_tied_weights(trim, tmp_path):
    model, _ = trim
    model.save_pretrained(tmp_path)
    opened = LlasoForConditionalGeneration.from_pretrained(tmp_path, device_map="auto")
    assert opened.lm_head.weight is opened.get_input_embeddings().weight
    assert all(torch.equal(tensor, opened.state_dict()[name].cpu()) for name, tensor in model.state_dict().items())
    headless = AutoModel.from_pretrained(tmp_path)
    assert isinstance(headless, LlasoModel)
    with pytest.raises(ValueError, match="AutoModelForMultimodalLM"):
        headless.generate(input_ids=torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.skipif(not LOADS_AUDIO_SINCE_5_23, reason="before transformers 5.23 its pipelines for audio need librosa")
def test_the_any_to_any_pipeline(trim, tmp_path):
    model, processor = trim
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answer = pipeline("any-to-any", model=str(tmp_path))
    message = {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "audio", "audio": tone(0.4)}]}
    out = answer([message], max_new_tokens=4, return_full_text=False)
    inputs = ask(processor, [question("Who?")], [tone(0.4)])
    with torch.no_grad():
        generated = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    assert out[0]["generated_text"] == processor.decode(generated, skip_special_tokens=True)
    several = answer([[message], [message]], max_new_tokens=4, return_full_text=False)
    assert [one[0]["generated_text"] for one in several] == [out[0]["generated_text"]] * 2
    message["content"][1]["audio"] = np.zeros(8_000, dtype=np.float32)
    with pytest.raises(ValueError, match="audio 0: the recording is silent"):
        answer([message], max_new_tokens=4)


@pytest.mark.skipif(not LOADS_AUDIO_SINCE_5_23, reason="before transformers 5.23 its pipelines for audio need librosa")
def test_a_pipeline_in_batches_is_right_or_refused(tmp_path):
    """transformers refuses such batches; made to form them, it needs audios of one length, one a conversation."""
    model, processor = tiny_llaso("full")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answer = pipeline("any-to-any", model=str(tmp_path))

    def answers(*clips, **options):
        parts = [
            [{"type": "text", "text": "Who?"}, *({"type": "audio", "audio": tone(length)} for length in lengths)]
            for lengths in clips
        ]
        asked = [[{"role": "user", "content": content}] for content in parts]
        given = answer(asked, max_new_tokens=3, return_full_text=False, **options)
        return [one[0]["generated_text"] for one in given]

    with pytest.raises(ValueError, match="don't agree on padding side"):
        answers([1], [2], batch_size=2)
    answer.feature_extractor.padding_side = "left"
    for clips in (([1], [2]), ([31], [33])):
        assert answers(*clips, batch_size=2) == answers(*clips)
    with pytest.raises(RuntimeError, match=r"expanded size.*must match the existing size"):
        answers([1], [31], batch_size=2)
    with pytest.raises(ValueError, match=r"2 audios of 3000 frames came with a mask of shape \(4, 3000\)"):
        answers([1, 2], [3, 4], batch_size=2)


@torch.no_grad()
def test_a_bitsandbytes_configuration_is_accepted(trim, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the quantize extra: pip install '.[quantize]'")
    model, processor = trim
    model.save_pretrained(tmp_path)
    quantized = LlasoForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in quantized.modules())
    inputs = questions(processor)
    assert quantized.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


@torch.no_grad()
def test_parts_of_any_size_fit_together():
    """The projector takes its sizes from both parts, and tokens of text and audio pass the language model together."""
    for family, overrides in (("qwen2", {"num_hidden_layers": 1}), ("gemma2", {"hidden_size": 48, "head_dim": 24})):
        config = LlasoConfig(
            audio_config=whisper_config(d_model=40, num_mel_bins=80, encoder_attention_heads=5).to_dict(),
            text_config=text_config(family, **overrides).to_dict(),
            audio_token_id=270,
            audio_padding="trim",
        )
        model = LlasoForConditionalGeneration(config).eval()
        width = config.text_config.hidden_size
        projector = model.model.multi_modal_projector
        assert (projector.linear_1.in_features, projector.linear_1.out_features) == (40, width)
        assert (projector.linear_2.in_features, projector.linear_2.out_features) == (width, width)
        assert len(model.model.audio_tower.layers) == config.audio_config.encoder_layers
        assert len(model.model.language_model.layers) == config.text_config.num_hidden_layers
        mel = torch.randn(1, 80, 100)
        audio = model.get_audio_features(mel).pooler_output
        assert audio.shape == (50, width)
        ids = torch.tensor([[5] + [270] * 50 + [6]])
        logits = model(input_ids=ids, input_features=mel, input_features_mask=torch.ones(1, 100)).logits
        assert logits.shape == (1, 52, config.text_config.vocab_size)
        embeds = model.get_input_embeddings()(ids.where(ids != 270, 0))
        embeds[0, 1:51] = audio
        torch.testing.assert_close(model(inputs_embeds=embeds).logits, logits, atol=1e-5, rtol=1e-5)
