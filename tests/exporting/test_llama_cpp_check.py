"""The exported files in llama.cpp itself: tokens, prompts and answers equal ours, for every family.

Skipped without xllamacpp, which is no extra of ours: `pip install xllamacpp`.
"""

from __future__ import annotations

import math

import openai
import pytest
import soundfile

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'llaso[export]'")
pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")

from support.tiny_families import FAMILIES, SENTENCES, family_llaso, raise_placeholder
from support.tiny_llaso import ask, question, tone
from support.tiny_server import heard

from llaso.cli import main
from llaso.exporting.gguf_files import export_gguf
from llaso.exporting.llama_cpp_check import LlamaCppServer, compare_clip, compare_prompts, context_for, is_quiet
from llaso.exporting.own_answers import FORMS

QUESTION = "What is said?"
GAP = 0.02
"""In log-probability, at most: llama.cpp convolves in half precision, which shows with weights as large as these."""
TEXTS = [
    *SENTENCES,
    "plain words",
    " a leading blank and two  inside, three   trailing   ",
    "It's we'll THEY'VE I'D don't 'tis",
    "0 12 345 6789 01234 3.14 1,000,000 x2y3",
    "camelCase HTTPServer McDonald iOS éÉcole ÀB Ünicode ΑΩ ЖЗ",
    "naïve café — “quoted” … ¿qué? 東京タワー 한국어 مرحبا हिन्दी ไทย 👩‍👩‍👧 🎧🎧",
    "line\nbreaks\n\n\nand\r\ntabs\t\tand / slashes //\n/",
    "punctuation!!! (brackets) [x] {y} <z> & | \\ ^ ~ ` @ # $ % * _ = +",
]


@pytest.fixture(scope="module", params=FAMILIES)
def served(request, tmp_path_factory):
    """A family's model, and llama.cpp with its f32 files."""
    model, processor = family_llaso(request.param)
    folder = tmp_path_factory.mktemp(request.param) / "gguf"
    export_gguf(model, processor, folder, "f32")
    return model, processor, LlamaCppServer(folder, context_for(processor, QUESTION, 32))


@pytest.mark.parametrize("text", TEXTS)
def test_texts_become_the_same_tokens(text, served):
    _, processor, server = served
    body = {"content": text, "add_special": True, "parse_special": True}
    assert server.ask("/tokenize", body)["tokens"] == processor.tokenizer(text)["input_ids"]


def test_prompts_are_the_processors_token_by_token(served):
    _, processor, server = served
    assert compare_prompts(server, processor, QUESTION) == dict.fromkeys(FORMS, True)


@pytest.mark.parametrize("seconds", [0.4, 3.3, 27.0])
def test_answers_are_equal(seconds, served):
    model, processor, server = served
    one = compare_clip(server, model, processor, tone(seconds, 300), QUESTION, 8)
    assert one.equal and one.gaps
    assert max(one.gaps) < GAP


def test_the_official_client_gets_the_answer(served):
    """What docs/export.md shows: OpenAI's client, the question and a clip."""
    model, processor, server = served
    clip = tone(1.0)
    client = openai.OpenAI(base_url=f"{server.server.listening_address}/v1", api_key="unused", max_retries=0)
    answer = client.chat.completions.create(
        model="llaso", messages=heard(QUESTION, clip), temperature=0, max_completion_tokens=6, logprobs=True
    )
    inputs = _inputs(processor, clip)
    ours = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    theirs = [place.id for place in answer.choices[0].logprobs.content]  # those of whole letters only
    remaining = iter(ours)
    assert theirs and all(number in remaining for number in theirs)
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"projector_stride": 4, "projector_pooling": "concatenate"},
        {"projector_stride": 1},
    ],
)
def test_other_strides_and_poolings(settings, tmp_path):
    model, processor = family_llaso("smollm2", **settings)
    export_gguf(model, processor, tmp_path / "gguf", "f32")
    server = LlamaCppServer(tmp_path / "gguf", context_for(processor, QUESTION, 8))
    one = compare_clip(server, model, processor, tone(2.0), QUESTION, 4)
    assert one.equal and max(one.gaps) < GAP


def test_the_placeholder_is_never_written(tmp_path):
    """With a row of its own that would win, it is masked here and there."""
    model, processor = family_llaso("qwen2", spare_rows=40, text={"tie_word_embeddings": False})
    clip = tone(1.0)
    placeholder = processor.audio_token_id
    raise_placeholder(model, processor, QUESTION, clip)
    export_gguf(model, processor, tmp_path / "gguf", "f32")
    server = LlamaCppServer(tmp_path / "gguf", context_for(processor, QUESTION, 8))
    one = compare_clip(server, model, processor, clip, QUESTION, 1)
    assert one.equal and placeholder not in one.theirs


def test_what_is_quiet_is_heard_differently(served):
    """The level at which a clip counts as quiet is where llama.cpp's log-mel begins to differ from ours."""
    model, processor, server = served
    for loudness, quiet in ((1.0, False), (0.02, True)):
        clip = loudness * tone(1.5)
        assert is_quiet(processor, clip) is quiet
        one = compare_clip(server, model, processor, clip, QUESTION, 8)
        assert (max(one.gaps, default=math.inf) > GAP) is quiet


def _inputs(processor, clip):
    return ask(processor, [question(QUESTION)], [clip])


def test_the_command_tells_equal_from_different(tmp_path, capsys):
    model, processor = family_llaso("smollm2")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "clip.wav", tone(1.5), 16_000)
    out, clip = str(tmp_path / "gguf"), str(tmp_path / "clip.wav")
    assert main(["export", "gguf", str(tmp_path / "model"), out, "--type", "f32"]) == 0
    check = ["export", "check", out, clip, "--max-new-tokens", "4"]
    assert main(check) == 0
    said = capsys.readouterr().out
    assert said.count("equal token ids") == len(FORMS) and "1 of 1 clips with equal prompt lengths and answers" in said
    other, _ = family_llaso("smollm2", seed=1)
    other.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    assert main([*check, "--model", str(tmp_path / "other")]) == 1
    assert "DIFFERENT ids" in capsys.readouterr().out
    assert "quiet" not in said
    soundfile.write(tmp_path / "quiet.wav", 0.02 * tone(1.5), 16_000)
    main(["export", "check", out, str(tmp_path / "quiet.wav"), "--max-new-tokens", "1"])
    assert "quiet.wav: so quiet that" in capsys.readouterr().out
    for samples, message in ((479_840, "compare shorter clips"), (159, "compare longer clips")):
        soundfile.write(tmp_path / "odd.wav", tone(30.0)[:samples], 16_000)
        assert main(["export", "check", out, str(tmp_path / "odd.wav")]) == 2
        assert message in capsys.readouterr().err
    soundfile.write(tmp_path / "window.wav", tone(30.0)[:479_839], 16_000)  # the longest
    assert main(["export", "check", out, str(tmp_path / "window.wav"), "--max-new-tokens", "1"]) == 0
