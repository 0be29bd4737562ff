"""The server decodes an aligned model's transcripts jointly; other answers are the language model's alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from support.tiny_llaso import aligned_llaso, tiny_llaso, tone
from support.tiny_server import NAME, audio_file, heard, served

from llaso.alignment.joint_decoding import JointDecoder
from llaso.serving.app import build_app
from llaso.transcription.transcriber import Transcriber

CLIPS = [tone(0.3), tone(0.7, 500.0), tone(0.5, 900.0, seed=2), tone(0.6, 300.0, seed=3)]
TOKENS = 8
WEIGHT = 0.9


def test_transcripts_are_those_of_a_single_hypothesis_beside_other_requests():
    model, processor = aligned_llaso()
    model.config.text_config.max_position_embeddings = 1024
    expected = Transcriber(model, processor, max_new_tokens=TOKENS, ctc_weight=WEIGHT, beams=1).transcribe(CLIPS)
    assert len({text for text, _, _ in expected}) > 1
    with served(model, processor, ctc_weight=WEIGHT) as server:

        def transcribed(clip):
            create = server.client.audio.transcriptions.create
            return create(model=NAME, file=("clip.wav", audio_file(clip)), response_format="verbose_json")

        with ThreadPoolExecutor(len(CLIPS) + 1) as pool:
            beside = pool.submit(server.ask, heard("What is this?", CLIPS[0]), max_tokens=TOKENS)
            answers = list(pool.map(transcribed, CLIPS))
        answer = beside.result().choices[0].message.content
    for got, (text, mean, reason) in zip(answers, expected, strict=True):
        if reason == "stop":
            assert got.text == text and got.segments[0].avg_logprob == pytest.approx(mean, abs=1e-3)
        else:  # the server's answers have no limit of their own
            assert got.text.startswith(text)
    assert not set(answer) <= set("abcdefgh "), "other answers are not decoded jointly"


def test_a_weight_needs_an_aligned_model():
    model, processor = tiny_llaso("trim")
    with pytest.raises(ValueError, match="not aligned by CTC"):
        build_app(model, processor, NAME, ctc_weight=0.5)


def test_requests_whose_decoding_cannot_begin_leave_the_batch_as_it_was(monkeypatch):
    model, processor = aligned_llaso()
    expected = Transcriber(model, processor, ctc_weight=WEIGHT, beams=1)._generate(CLIPS[1:2])[0]
    for_audio, calls = JointDecoder.for_audio, []

    def fails_at_first(self, clips):
        calls.append(len(clips))
        if len(calls) == 1:
            raise MemoryError("no memory is left")
        return for_audio(self, clips)

    monkeypatch.setattr(JointDecoder, "for_audio", fails_at_first)
    with served(model, processor, ctc_weight=WEIGHT) as server:
        create = server.client.audio.transcriptions.create
        with pytest.raises(openai.InternalServerError, match="no memory is left"):
            create(model=NAME, file=("clip.wav", audio_file(CLIPS[0])))
        assert server.idle()
        assert create(model=NAME, file=("clip.wav", audio_file(CLIPS[1]))).text == expected[0]
