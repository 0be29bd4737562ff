"""vLLM's server, unchanged, gives our answers: both paddings, long recordings, two a prompt, all lengths at once.

Skipped unless `LLASO_VLLM_PYTHON` names the Python of an environment with vLLM; docs/serve.md says how to make one.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from support.tiny_llaso import (
    ask,
    question,
    text_config,
    tiny_processor,
    tone,
    whisper_config,
    with_drawn_weights,
)
from support.vllm_server import ask_vllm, transcribe_with_vllm, vllm_server

from modeling_llaso.configuration_llaso import LlasoConfig
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

PYTHON = os.environ.get("LLASO_VLLM_PYTHON", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not PYTHON, reason="LLASO_VLLM_PYTHON names no Python with vLLM, see docs/serve.md"),
]

GAP = 1e-3
TOKENS = 6
QUESTIONS = ("What is said?", "Who speaks, and where?", "Is it music?", "Describe it in three words.")
SHORT = [round(0.3 + 0.89 * number, 2) for number in range(30)]  # 0.3 s to 26.1 s
LONG = [30.0, 30.01, 31.0, 36.0, 42.5, 45.0, 60.0, 61.0, 66.6, 70.0]
PAIRS = [
    (0.5, 3.0),
    (3.0, 0.5),
    (1.0, 1.0),
    (2.0, 36.0),
    (33.0, 4.0),
    (7.7, 7.1),
    (29.9, 0.4),
    (5, 30),
    (8, 9),
    (12, 2),
]
PROMPTS = [*((seconds,) for seconds in SHORT), *((seconds,) for seconds in LONG), *PAIRS]


LIMITS = ("--max-model-len", "8192", "--max-num-batched-tokens", "8192", "--limit-mm-per-prompt", '{"audio": 2}')


def vllm_llaso(
    audio_padding: str, vocab_size: int, rows_are_fixed: bool = False
) -> tuple[LlasoForConditionalGeneration, LlasoProcessor]:
    """Return a tiny model of heads as wide as vLLM's attention takes them, and its processor."""
    stride = 5 if audio_padding == "full" else 1
    processor = tiny_processor(
        vocab_size=vocab_size, rows_are_fixed=rows_are_fixed, audio_padding=audio_padding, projector_stride=stride
    )
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    config = LlasoConfig(
        audio_config=whisper_config().to_dict(),
        text_config=text_config(vocab_size=processor.audio_token_id, **sizes).to_dict(),
        audio_token_id=processor.audio_token_id,
        audio_padding=audio_padding,
        projector_stride=stride,
    )
    return with_drawn_weights(config, processor), processor


@pytest.fixture(scope="module", params=["full", "trim"])
def served(request, tmp_path_factory):
    """A model, and vLLM's server of it; the vocabulary of `trim` would have a multiple of 64 rows."""
    model, processor = vllm_llaso(request.param, 272 if request.param == "full" else 320)
    folder = tmp_path_factory.mktemp(f"vllm-{request.param}")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    with vllm_server(PYTHON, folder / "model", *LIMITS, log=folder / "log.txt") as client:
        yield SimpleNamespace(model=model, processor=processor, client=client, log=folder / "log.txt")


def prompt(number: int) -> tuple[str, list[np.ndarray]]:
    clips = [tone(seconds, 150 + 11 * number + 70 * place, number) for place, seconds in enumerate(PROMPTS[number])]
    return QUESTIONS[number % len(QUESTIONS)], clips


def ours(served, text: str, clips: list[np.ndarray]) -> tuple[list[int], list[int], list[float]]:
    """Our prompt's ids, the answer's, and their log-probabilities."""
    inputs = ask(served.processor, [question(text, clips=len(clips))], clips)
    with torch.no_grad():
        found = served.model.generate(
            **inputs, max_new_tokens=TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    answer = found.sequences[0, inputs["input_ids"].shape[1] :]
    scores = torch.cat(found.logits).log_softmax(-1)
    return inputs["input_ids"][0].tolist(), answer.tolist(), scores[range(len(answer)), answer].tolist()


def test_fifty_prompts_of_all_lengths_at_once_are_answered_as_here(served):
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        asked = list(threads.map(lambda number: ask_vllm(served.client, *prompt(number), TOKENS), range(len(PROMPTS))))
    gaps = []
    for number, response in enumerate(asked):
        assert response.status_code == 200, (PROMPTS[number], response.text)
        choice = response.json()["choices"][0]
        ids, answer, scores = ours(served, *prompt(number))
        assert response.json()["prompt_token_ids"] == ids, PROMPTS[number]
        assert choice["token_ids"] == answer, PROMPTS[number]
        theirs = [token["logprob"] for token in choice["logprobs"]["content"]]
        gaps.append(max(abs(a - b) for a, b in zip(theirs, scores, strict=True)))
    print(f"largest gap of a log-probability: {max(gaps):.2e}")
    assert max(gaps) < GAP


def test_the_placeholder_has_no_logit(served):
    text, clips = prompt(0)
    response = ask_vllm(served.client, text, clips, 2, logit_bias={str(served.processor.audio_token_id): 100})
    assert response.status_code == 400 and "vocab" in response.text, response.text


def test_a_typed_placeholder_is_refused(served):
    clip = tone(0.5)
    response = ask_vllm(served.client, f"What is {served.processor.audio_token}?", [clip], 2)
    assert response.status_code == 400 and "special token" in response.text, response.text
    assert ask_vllm(served.client, "What is it?", [clip], 2).status_code == 200  # the engine still runs


def test_the_prefix_cache_tells_audios_apart(served):
    """Two audios of one length behind the same text, each asked twice: the second time much comes from the cache."""

    def hits() -> float:
        lines = served.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))

    clips = [tone(20, 200), tone(20, 700)]
    wanted = [ours(served, QUESTIONS[1], [clip])[1] for clip in clips]
    assert wanted[0] != wanted[1]
    found = []
    for clip in clips * 2:
        before = hits()
        response = ask_vllm(served.client, QUESTIONS[1], [clip], TOKENS)
        found.append(response.json()["choices"][0]["token_ids"])
        gained = hits() - before
    assert found == wanted * 2
    assert gained >= 256  # tokens of the last prompt


# ---- Adapters ----


@pytest.mark.parametrize("plugin", [False, True])
def test_adapters_answer_as_here_beside_the_model_itself(plugin, tmp_path):
    """Two adapters and the model answer in one batch.

    Unchanged, vLLM must be told to leave the embeddings alone. One slot stays free: on a CPU, a request for the model
    itself gets the last slot's adapter (vLLM's pull request 48421).
    """
    model, processor = vllm_llaso("trim", 272)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    numbers = [0, 5, 33, 42]  # short ones, one above 30 s, two in a prompt
    wanted = {"llaso": [ours(SimpleNamespace(model=model, processor=processor), *prompt(n)) for n in numbers]}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        settings = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=r".*language_model.*\.(q|k|v|o)_proj")
        adapted = peft.get_peft_model(model, settings).eval()
        adapted.save_pretrained(tmp_path / name)
        found = SimpleNamespace(model=adapted, processor=processor)
        wanted[name] = [ours(found, *prompt(n)) for n in numbers]
        model = adapted.unload()
    for place in range(len(numbers)):
        assert len({tuple(answers[place][1]) for answers in wanted.values()}) == 3  # so that a mix-up shows
    adapters = [f"{name}={tmp_path / name}" for name in ("first", "second")]
    options = ["--enable-lora", "--max-loras", "3", "--lora-modules", *adapters]
    if not plugin:
        options += ["--lora-target-modules", "q_proj", "k_proj", "v_proj", "o_proj"]
    asked = [(name, place) for place in range(len(numbers)) for name in wanted]
    with (
        vllm_server(PYTHON, tmp_path / "model", *LIMITS, *options, log=tmp_path / "log.txt", plugin=plugin) as client,
        ThreadPoolExecutor(len(asked)) as threads,
    ):
        responses = threads.map(lambda one: ask_vllm(client, *prompt(numbers[one[1]]), TOKENS, model=one[0]), asked)
        for (name, place), response in zip(asked, responses, strict=True):
            assert response.status_code == 200, (name, response.text)
            ids, answer, scores = wanted[name][place]
            assert response.json()["prompt_token_ids"] == ids
            choice = response.json()["choices"][0]
            assert choice["token_ids"] == answer, (name, PROMPTS[numbers[place]])
            theirs = [token["logprob"] for token in choice["logprobs"]["content"]]
            assert max(abs(a - b) for a, b in zip(theirs, scores, strict=True)) < GAP


# ---- With the plugin ----


@pytest.mark.parametrize("placeholder_has_a_row", [True, False])
def test_the_plugin_transcribes_and_takes_any_vocabulary(placeholder_has_a_row, tmp_path):
    """A placeholder with a row is masked, though its logit is the largest; 320 rows without one do not end the engine.

    Both come from outside: `llaso new` makes neither.
    """
    rows = 319 if placeholder_has_a_row else 320
    model, processor = vllm_llaso("trim", rows, rows_are_fixed=True)
    assert processor.audio_token_id == model.config.text_config.vocab_size == rows
    if placeholder_has_a_row:
        model.resize_token_embeddings(320, mean_resizing=False)
        inputs = ask(processor, [question("Who?")], [tone(0.5)])
        with torch.no_grad():
            model.get_input_embeddings().weight[rows] = 100 * model.model(**inputs).last_hidden_state[0, -1]
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    served = SimpleNamespace(model=model, processor=processor)
    with vllm_server(PYTHON, tmp_path / "model", *LIMITS, log=tmp_path / "log.txt", plugin=True) as client:
        for clip, context in ((tone(1.3), ""), (tone(28.0), "Jane Doe")):
            text = processor.default_transcription_prompt + (f"\nContext: {context}" if context else "")
            _, answer, _ = ours(served, text, [clip])
            response = transcribe_with_vllm(client, clip, TOKENS, context)
            assert response.status_code == 200, response.text
            wanted = processor.decode(answer, skip_special_tokens=True)
            assert response.json()["text"] == wanted.removesuffix("\N{REPLACEMENT CHARACTER}")  # half a letter
        response = ask_vllm(client, "Who?", [tone(0.5)], TOKENS)
        ids, answer, _ = ours(served, "Who?", [tone(0.5)])
        assert response.json()["prompt_token_ids"] == ids
        assert response.json()["choices"][0]["token_ids"] == answer
        assert transcribe_with_vllm(client, tone(65.0), TOKENS).status_code == 200  # cut at quiet places
