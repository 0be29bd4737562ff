"""`python -m benchmarks hearing`, with a tiny Whisper: what vectors are compared with, and which clips are taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny_llaso import tiny_tokenizer, tone, whisper_config
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from benchmarks.hearing import FULL, START, TRIM, SpokenClip, WhisperBaseline, cosines, measure, table
from benchmarks.manifests import evenly, read_manifest


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> WhisperBaseline:
    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(START), special_tokens=True)
    torch.manual_seed(0)
    config = whisper_config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return WhisperBaseline(str(folder))


def test_each_layers_vectors_are_compared_place_by_place(whisper):
    clip = tone(0.5)
    full, trim = whisper.states(clip, None), whisper.states(clip, 0.0)
    assert [len(states) for states in (full[0], trim[0])] == [1500, 25]
    assert len(full) == len(trim) == 2 + len(whisper.encoder.layers)
    assert np.allclose(cosines(full, full, 25), 1, atol=1e-5)
    found = cosines(trim, full, 25)
    assert found.shape == (len(full), 25)
    assert found[0].min() > 1 - 1e-6 > found[-1].min()  # before the first layer, silence is not yet seen
    assert found[-1, 3] == pytest.approx(float(torch.cosine_similarity(trim[-1][3], full[-1][3], dim=0)), abs=1e-6)


def test_a_transcript_that_does_not_end_is_told_apart(whisper, monkeypatch):
    vectors = whisper.states(tone(0.5), None)[-1]
    bias = torch.zeros(whisper.whisper.config.vocab_size)
    plain = whisper.whisper.proj_out.forward
    monkeypatch.setattr(whisper.whisper.proj_out, "forward", lambda states: plain(states) + bias)
    bias[whisper.end] = -1e9
    text, ended = whisper.transcribe(vectors, 5)
    assert text and not ended
    bias[whisper.end] = 1e9
    assert whisper.transcribe(vectors, 5)[1] and whisper.transcribe(vectors, 5)[0] != text


def test_settings_are_measured_against_full(whisper):
    clips = [SpokenClip(tone(seconds), "a tone", source) for seconds, source in ((0.4, "one"), (1.5, "two"))]
    found = measure(whisper, clips, tails=(0.5,), decode=False)
    assert list(found["settings"]) == [FULL, TRIM, f"{TRIM} + 0.5 s"] and found["clips"] == 2
    assert found["settings"][FULL]["output"]["low"] == pytest.approx(1)
    assert len(found["settings"][TRIM]["from_end"]) == 50
    first = table(found).splitlines()[2]
    assert first == "| `full` | 1.000 | 1.000 | 1.000 |"


@pytest.mark.parametrize(
    ("count", "most", "taken"), [(4, 4, [0, 1, 2, 3]), (3, 9, [0, 1, 2]), (7, 3, [0, 2, 4]), (99, 2, [0, 49])]
)
def test_rows_are_taken_evenly(count, most, taken):
    assert evenly(range(count), most) == taken
    assert evenly(range(99), 50)[-1] == 97


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "there are no rows"),
        ('{"audio": "a.wav", "text": "a"}\n{', r"manifest\.jsonl:2: not JSON"),
        ("[1]", r"manifest\.jsonl:1: not a JSON object"),
        ("[" * 5000, r"manifest\.jsonl:1: JSON that is too large"),
        ('{"audio": "a.wav", "text": "?!"}', r"manifest\.jsonl:1: a row is an object"),
        ('{"audio": "a.wav", "text": ["a", "b"]}', r"manifest\.jsonl:1: a row is an object"),
        ('{"audio": 5, "text": "a"}', r"manifest\.jsonl:1: a row is an object"),
        ('{"audio": "a.wav", "text": "a", "source": ["x"]}', r"manifest\.jsonl:1: `source` is \['x'\]"),
        ('{"audio": "a.wav", "text": "a", "speaker": {}}', r"manifest\.jsonl:1: `speaker` is \{\}"),
        (
            '{"audio": "a.wav", "text": "a"}\n{"audio": "no.wav", "text": "a"}',
            r"jsonl:2: no such file: .*; mend",
        ),
    ],
)
def test_what_is_wrong_with_a_manifest_is_named(lines, message, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    (tmp_path / "a.wav").touch()
    with pytest.raises(ValueError, match=r"manifest\.jsonl: no such file; name a manifest"):
        read_manifest(manifest)
    manifest.write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_manifest(manifest)
    manifest.write_text('{"audio": "a.wav", "text": "a\u2028b"}\n\n', encoding="utf-8")
    assert read_manifest(manifest) == {"speech": [{"audio": "a.wav", "text": "a\u2028b"}]}
