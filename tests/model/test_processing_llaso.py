"""The processor: prompts and labels, log-mel against Whisper's own, token counts, long audio, and every refusal."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from support.tiny_llaso import FAMILIES, RATE, ask, question, tiny_processor, tiny_tokenizer, tone
from transformers import AutoProcessor, WhisperFeatureExtractor

from modeling_llaso import processing_llaso
from modeling_llaso.compatibility_llaso import SANITIZES_SINCE_5_23
from modeling_llaso.configuration_llaso import count_audio_tokens
from modeling_llaso.processing_llaso import SILENT_PEAK, SYSTEM_PROMPT, LlasoProcessor, add_audio_tokens

ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "An answer."}]}


@pytest.fixture(scope="module")
def full() -> LlasoProcessor:
    return tiny_processor(audio_padding="full")


@pytest.fixture(scope="module")
def trim() -> LlasoProcessor:
    return tiny_processor(audio_padding="trim")


def train(processor: LlasoProcessor, conversations, audio=None):
    return processor.apply_chat_template(
        conversations,
        audio=audio,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding_side": "right"},
    )


def learned(processor: LlasoProcessor, inputs) -> list[str]:
    return [
        processor.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True)
    ]


# ---- Log-mel ----

LENGTHS = (1, 159, 160, 161, 200, 400, 8_000, 79_999, 479_799, 479_801, 479_960, 479_999, 480_000)


@pytest.mark.parametrize("samples", LENGTHS)
def test_log_mel_is_whispers(full, trim, samples):
    clip = tone(samples / RATE, seed=samples)
    assert len(clip) == samples
    wanted = torch.from_numpy(
        full.feature_extractor(clip, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    )
    (whole,), (real,) = full.log_mel([clip]), trim.log_mel([clip])
    assert whole.shape == wanted.shape == (16, 3000)
    torch.testing.assert_close(whole, wanted, atol=1e-5, rtol=0)
    frames = -(-samples // 160)
    assert real.shape == (16, frames)
    torch.testing.assert_close(real, wanted[:, :frames], atol=1e-5, rtol=0)


def test_log_mel_of_silence_and_of_a_batch(full, trim):
    silence = np.zeros(5_000, dtype=np.float32)
    wanted = full.feature_extractor(silence, sampling_rate=RATE, return_tensors="pt")["input_features"][0]
    torch.testing.assert_close(full.log_mel([silence])[0], wanted)
    clips = [tone(seconds, seed=number) for number, seconds in enumerate((0.2, 3.1, 0.01, 1.0))]
    for together, alone in zip(trim.log_mel(clips), [trim.log_mel([clip])[0] for clip in clips], strict=True):
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_extractors_with_other_mel_counts_and_windows():
    """Any Whisper's extractor: other mel counts, and windows of other lengths."""
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=5)
    tokenizer = tiny_tokenizer()
    add_audio_tokens(tokenizer)
    processor = LlasoProcessor(extractor, tokenizer, audio_padding="trim")
    clip = tone(11.0)
    assert processor.window_frames(len(clip)) == [500, 500, 100]
    # The extractor's own double precision: its float32 transform is 1.6e-5 away from that on some processors.
    wanted = torch.from_numpy(extractor._np_extract_fbank_features(clip[None, :80_000], "cpu")[0])
    torch.testing.assert_close(processor.log_mel([clip[:80_000]])[0], wanted, atol=1e-6, rtol=0)


# ---- Counts: one formula ----


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 40 * RATE), stride=st.integers(1, 9))
def test_trim_counts_every_frame_and_loses_no_sample(samples, stride):
    processor = COUNTING[stride]
    windows = processor.audio_windows(samples)
    assert windows[0][0] == 0 and windows[-1][1] == samples
    assert all(stop == start for (_, stop), (start, _) in zip(windows, windows[1:], strict=False))
    frames = sum(-(-(stop - start) // 160) for start, stop in windows)
    vectors = sum(-(-count // 2) for count in processor.window_frames(samples))
    assert sum(processor.window_frames(samples)) == frames
    tokens = processor.count_audio_tokens(samples)
    assert vectors <= tokens * stride < vectors + stride * len(windows)


COUNTING = {stride: tiny_processor(audio_padding="trim", projector_stride=stride) for stride in range(1, 10)}


def test_one_formula_for_numbers_arrays_and_tensors():
    frames = np.arange(1, 3001)
    for stride in (1, 2, 3, 4, 8):
        numbers = [count_audio_tokens(int(count), stride) for count in frames]
        assert (count_audio_tokens(frames, stride) == numbers).all()
        assert count_audio_tokens(torch.from_numpy(frames), stride).tolist() == numbers
    assert count_audio_tokens(3000) == 1500


@pytest.mark.parametrize("padding", ["full", "trim"])
@pytest.mark.parametrize("stride", [1, 4])
def test_lengths_without_audio_are_the_lengths_with_it(padding, stride):
    processor = tiny_processor(audio_padding=padding, projector_stride=stride)
    clips = [tone(0.7), tone(31.5), tone(2.0)]
    seconds = [len(clip) / RATE for clip in clips]
    conversations = [
        [*question("Compare", clips=2), ANSWER],
        [*question("And this", clips=1), ANSWER],
        [*question("No audio", clips=0), ANSWER],
    ]
    lengths = [
        processor.expanded_length(conversation, durations)
        for conversation, durations in zip(conversations, (seconds[:2], seconds[2:], ()), strict=True)
    ]
    inputs = train(processor, conversations, clips)
    assert inputs["attention_mask"].sum(-1).tolist() == lengths
    counts = [processor.count_audio_tokens(len(clip)) for clip in clips]
    assert (inputs["input_ids"] == processor.audio_token_id).sum() == sum(counts)

    prompts = processor.apply_chat_template(conversations)
    expanded = processor.tokenizer(processor.expand_text(prompts, counts), padding=True, padding_side="right")
    assert expanded["input_ids"] == inputs["input_ids"].tolist()


# ---- Long audio ----


def test_windows_of_long_audio_lie_end_to_end_in_one_row(full, trim):
    clip = tone(45.0)
    inputs = trim(text="<audio><audio>", audio=[clip, tone(2.0)], sampling_rate=RATE)
    assert inputs["input_features_mask"].sum(-1).tolist() == [4500, 200]
    halves = trim.log_mel([clip[:480_000], clip[480_000:]])
    torch.testing.assert_close(inputs["input_features"][0], torch.cat(halves, dim=1), atol=1e-6, rtol=0)
    inputs = full(text="<audio><audio>", audio=[clip, tone(2.0)])
    assert inputs["input_features"].shape == (2, 16, 6000)
    assert inputs["input_features_mask"].sum(-1).tolist() == [6000, 3000]
    halves = full.log_mel([clip[:480_000], clip[480_001:]])
    torch.testing.assert_close(inputs["input_features"][0], torch.cat(halves, dim=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("padding", ["full", "trim"])
def test_audio_beyond_the_maximum_is_never_cut(padding):
    processor = tiny_processor(audio_padding=padding, max_audio_len=60)
    assert len(processor.audio_windows(60 * RATE)) == 2
    with pytest.raises(ValueError, match=r"audio 1: the recording lasts 60\.\d s, longer than max_audio_len, 60 s"):
        processor(text="<audio><audio>", audio=[tone(1.0), tone(60.0002)])


# ---- Prompts and labels ----


def test_labels_in_every_modality_format(trim):
    clip = tone(0.4)
    rows = {
        "text_audio": [{"type": "text", "text": "Who speaks?"}, {"type": "audio"}],
        "audio_text": [{"type": "audio"}, {"type": "text", "text": "The text to work on."}],
        "audio": [{"type": "audio"}],
        "two audios": [{"type": "audio"}, {"type": "text", "text": " and "}, {"type": "audio"}],
        "text only": [{"type": "text", "text": "Who are you?"}],
    }
    answers = [f"Answer {number}: [IPA ə], naïve 你好." for number in range(len(rows))]
    conversations = [
        [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        for content, answer in zip(rows.values(), answers, strict=True)
    ]
    inputs = train(trim, conversations, [clip] * 5)
    assert learned(trim, inputs) == [f"{answer}<|eot_id|>" for answer in answers]
    assert isinstance(inputs["assistant_masks"], torch.Tensor)
    assert not (inputs["assistant_masks"].bool() & (inputs["attention_mask"] == 0)).any()
    alone = train(trim, conversations[1:2], [clip])
    length = alone["input_ids"].shape[1]
    assert torch.equal(inputs["input_ids"][1, :length], alone["input_ids"][0])
    assert torch.equal(inputs["assistant_masks"][1, :length], alone["assistant_masks"][0])


def test_every_turn_of_a_long_conversation_is_learned(trim):
    conversation = [*question("First", clips=2), ANSWER, *question("Then", clips=1)]
    conversation.append({"role": "assistant", "content": "Another."})
    inputs = train(trim, [conversation], [tone(0.3), tone(0.5), tone(0.4)])
    assert learned(trim, inputs) == ["An answer.<|eot_id|>Another.<|eot_id|>"]


def test_a_system_message_takes_the_place_of_the_released_one(trim):
    assert SYSTEM_PROMPT in trim.apply_chat_template(question("Hi"))
    text = trim.apply_chat_template([{"role": "system", "content": "Be brief."}, *question("Hi")])
    assert SYSTEM_PROMPT not in text and "system<|end_header_id|>\n\nBe brief.<|eot_id|>" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_other_language_models_keep_their_turn_marks(family):
    processor = tiny_processor(family, audio_padding="trim")
    conversation = [*question("Who?"), ANSWER, *question("And?"), ANSWER]
    text = processor.apply_chat_template(conversation)
    assert text.count(SYSTEM_PROMPT) == 1
    assert text.count("<Audio><audio_start><audio><audio_end></Audio>") == 2
    prompt = processor.apply_chat_template(conversation[:3], add_generation_prompt=True)
    assert text.startswith(prompt)  # what is asked at generation is what was trained on
    end = {"llama": "<|eot_id|>", "qwen2": "<|im_end|>", "qwen3": "<|im_end|>", "mistral": "</s>"}.get(
        family, "<end_of_turn>"
    )
    inputs = train(processor, [conversation], [tone(0.3), tone(0.4)])
    assert learned(processor, inputs) == [f"An answer.{end}" * 2]
    begin = FAMILIES[family][0]
    first = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, :2].tolist())
    assert first.count(begin) == (1 if begin else 0)


def test_messages_may_be_objects(trim):
    user = SimpleNamespace(
        role="user", content=[SimpleNamespace(type="text", text="Who?"), SimpleNamespace(type="audio", audio=None)]
    )
    answer = SimpleNamespace(role="assistant", content="Me.", tool_calls=None)
    dicts = [*question("Who?"), {"role": "assistant", "content": "Me."}]
    assert trim.apply_chat_template([user, answer]) == trim.apply_chat_template(dicts)
    clip = tone(0.3)
    assert torch.equal(ask(trim, [[user]], [clip])["input_ids"], ask(trim, [question("Who?")], [clip])["input_ids"])


def test_generation_pads_on_the_left(trim):
    inputs = ask(trim, [question("One"), question("A longer question")], [tone(0.2), tone(0.9)])
    assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][:, -1].all()


def test_transcription_requests(trim, tmp_path):
    clip = tone(0.5)
    soundfile.write(tmp_path / "clip.wav", clip, RATE, subtype="FLOAT")
    inputs = trim.apply_transcription_request([clip, clip], [None, "Write it down."])
    texts = trim.tokenizer.batch_decode(inputs["input_ids"])
    assert trim.default_transcription_prompt in texts[0] and "Write it down." in texts[1]
    by_path = trim.apply_transcription_request(str(tmp_path / "clip.wav"))
    alone = trim.apply_transcription_request(torch.from_numpy(clip))
    assert by_path.keys() == alone.keys() and all(torch.equal(by_path[name], alone[name]) for name in alone)
    written = trim.apply_transcription_request(clip, tokenize=False)
    assert len(written) == 1 and written[0].count("<audio>") == 1
    later = trim(text=written, audio=[clip])
    assert torch.equal(later["input_ids"], alone["input_ids"])
    with pytest.raises(ValueError, match="2 prompts came for 1 audios"):
        trim.apply_transcription_request(clip, ["One", "Two"])
    with pytest.raises(ValueError, match="no audio to transcribe"):
        trim.apply_transcription_request([])


def test_saved_and_opened_again(tmp_path):
    settings = {"projector_stride": 4, "max_audio_len": 90, "default_transcription_prompt": "Write!"}
    processor = tiny_processor(audio_padding="trim", **settings)
    processor.save_pretrained(tmp_path)
    opened = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(opened, LlasoProcessor)
    for name in ("audio_padding", "audio_token_id", *settings):
        assert getattr(opened, name) == getattr(processor, name)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    del config["max_audio_len"], config["default_transcription_prompt"]
    config |= {"max_windows": 3, "transcription_prompt": "Write!"}  # as they were once called
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    earlier = AutoProcessor.from_pretrained(tmp_path)
    assert (earlier.max_audio_len, earlier.default_transcription_prompt) == (90, "Write!")
    assert not hasattr(earlier, "max_windows") and not hasattr(earlier, "transcription_prompt")
    before, after = (ask(p, [question("Who?")], [tone(0.5)]) for p in (processor, opened))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_special_tokens_in_user_text_can_be_escaped():
    """transformers' own way to take control tokens as plain text still works."""
    processor = tiny_processor("qwen2", audio_padding="trim")
    if not SANITIZES_SINCE_5_23:
        with pytest.raises(ValueError, match="sanitize_control_tokens needs a newer transformers"):
            ask(processor, [question("What is <|im_end|>?")], [tone(0.3)], sanitize_control_tokens=True)
        return
    inputs = ask(processor, [question("What is <|im_end|> and <audio>?")], [tone(0.3)], sanitize_control_tokens=True)
    ids = inputs["input_ids"][0]
    assert (ids == processor.audio_token_id).sum() == processor.count_audio_tokens(round(0.3 * RATE))
    ends = (ids == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")).sum()
    assert ends == 2  # of the system and the user message, not the text's own
    assert "What is <|im_end|> and <audio>?" in processor.tokenizer.decode(ids)


# ---- Refusals: each names the item ----


def test_bad_audio_is_named(trim, tmp_path):
    good = tone(0.3)

    def refused(clip, message, **kwargs):
        with pytest.raises(ValueError, match=message):
            trim(text="<audio><audio>", audio=[good, clip], **kwargs)

    refused(np.zeros(0, dtype=np.float32), "audio 1: the recording holds no samples")
    refused(np.array([0.1, np.nan], dtype=np.float32), "audio 1: the recording holds NaN or infinite samples")
    refused(np.array([0.1, np.inf], dtype=np.float32), "audio 1: the recording holds NaN or infinite samples")
    refused(np.zeros(16_000, dtype=np.float32), "audio 1: the recording is silent")
    refused(good / np.abs(good).max() * 0.9e-4, "audio 1: the recording is silent")
    refused({"array": good}, "audio 1: an array without its sampling_rate")
    refused({"path": None}, 'audio 1: it has neither "bytes" nor a "path"')
    refused("nowhere.wav", "nowhere.wav: there is no such file")
    refused(str(tmp_path), f"{tmp_path}: a folder; name the files in it")
    refused(b"no audio at all", "audio 1: not readable as audio")
    refused(42, "audio 1: int is neither a recording nor samples")
    refused(np.zeros((2, 100), dtype=np.float32), r"audio 1 has the shape \(2, 100\); average its channels")
    refused(np.ones(100, dtype=np.int16), "audio 1 holds int16; scale it to floats")
    refused(good, "sampling rate is 44100 Hz, but the encoder hears 16000 Hz", sampling_rate=44_100)


class Samples:
    """Samples of torchcodec, by their attributes: `(channels, samples)` and their rate."""

    def __init__(self, clip: np.ndarray, rate: int) -> None:
        self.data, self.sample_rate = torch.from_numpy(np.stack([clip, clip])), rate


class Decoder:
    """A decoder of torchcodec, by its method."""

    def __init__(self, clip: np.ndarray, rate: int) -> None:
        self.get_all_samples = lambda: Samples(clip, rate)


def test_everything_that_holds_a_recording_is_taken_wherever_audio_is(trim, tmp_path):
    clip = tone(0.5)
    file = tmp_path / "clip.wav"
    soundfile.write(file, clip, RATE, subtype="FLOAT")
    wanted = ask(trim, [question("Who?")], [clip])
    sources = {
        "path": file,
        "path as text": str(file),
        "bytes": file.read_bytes(),
        "tensor": torch.from_numpy(clip),
        "one channel": torch.from_numpy(clip)[None],
        "list": clip.tolist(),
        "array of datasets": {"array": clip, "sampling_rate": RATE, "path": None},
        "bytes of datasets": {"bytes": file.read_bytes(), "path": "elsewhere.wav"},
        "path of datasets": {"bytes": None, "path": str(file)},
        "decoder": Decoder(clip, RATE),
        "samples": Samples(clip, RATE),
    }
    for kind, source in sources.items():
        asked = question("Who?")
        asked[0]["content"][1]["audio"] = source
        found = {
            "single": ask(trim, [question("Who?")], source),
            "listed": ask(trim, [question("Who?")], [source]),
            "in its part": ask(trim, [asked], None),
            "processor": trim(
                text=trim.apply_chat_template(question("Who?"), add_generation_prompt=True), audio=source
            ),
        }
        for way, inputs in found.items():
            for name, value in wanted.items():
                assert torch.equal(inputs[name], value), (kind, way, name)
        request = trim.apply_transcription_request(source)
        assert torch.equal(request["input_features"], wanted["input_features"]), kind
        assert asked[0]["content"][1]["audio"] is source  # the caller's conversation is unchanged


def test_files_are_read_by_the_package_or_by_the_checkpoints_own_code(trim, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "whole.wav", tone(1.0)[::2], 8_000, subtype="FLOAT")
    content = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.wav: the file is cut off"):
        trim.apply_transcription_request(tmp_path / "cut.wav")
    by_package = trim.apply_transcription_request(content)
    spec = importlib.util.spec_from_file_location("modeling_llaso.own_processing", processing_llaso.__file__)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    monkeypatch.setattr(LlasoProcessor, "read_file", staticmethod(own.LlasoProcessor.read_file))
    by_itself = trim.apply_transcription_request(content)
    torch.testing.assert_close(by_itself["input_features"], by_package["input_features"], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="audio 0: not readable as audio"):
        trim.apply_transcription_request(b"no audio at all")


def test_samples_that_state_another_rate_are_resampled(trim, tmp_path):
    clip = tone(1.0, pitch=300.0)[::2]  # at 8 kHz
    soundfile.write(tmp_path / "clip.wav", clip, 8_000, subtype="FLOAT")
    wanted = trim.apply_transcription_request(tmp_path / "clip.wav")
    assert wanted["input_features_mask"].sum() == 100
    for source in (
        {"array": clip, "sampling_rate": 8_000},
        Decoder(clip, 8_000),
        {"array": clip.tolist(), "sampling_rate": 8_000},
    ):
        found = trim.apply_transcription_request(source)
        torch.testing.assert_close(found["input_features"], wanted["input_features"], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="sampling rate is 8000 Hz, but the encoder hears 16000 Hz"):
        trim(text="<audio>", audio=clip, sampling_rate=8_000)


def test_labels_as_processors_of_transformers_give_them(trim):
    conversations = [[*question("Who?"), ANSWER], [*question("And who is this?"), ANSWER]]
    texts = trim.apply_chat_template(conversations)
    inputs = trim(text=texts, audio=[tone(0.3), tone(0.4)], output_labels=True)
    ids, labels = inputs["input_ids"], inputs["labels"]
    ignored = (ids == trim.audio_token_id) | (inputs["attention_mask"] == 0)
    assert ignored.any(-1).all() and torch.equal(labels == -100, ignored)
    assert torch.equal(labels[~ignored], ids[~ignored])
    request = {"audio": [tone(0.3), tone(0.4)], "tokenize": True, "return_dict": True}
    for how in ({"output_labels": True}, {"processor_kwargs": {"output_labels": True}}):
        assert torch.equal(trim.apply_chat_template(conversations, **request, **how)["labels"], labels)
    assert "labels" not in trim.apply_chat_template(conversations, **request)


def test_silence_has_the_threshold_of_every_other_door():
    from llaso_common import audio

    assert SILENT_PEAK == (audio.SILENT_PEAK if hasattr(audio, "SILENT_PEAK") else audio.SILENCE)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "conversation 0 is no list of messages"),
        ([[]], "conversation 0 is no list of messages"),
        ("Hi", "a conversation is a list of messages, not str"),
        (None, "a conversation is a list of messages, not NoneType"),
        (["Hi"], 'conversation 0, message 0: it has no "role"'),
        ([{"content": "Hi"}], 'conversation 0, message 0: it has no "role"'),
        ([{"role": None, "content": "Hi"}], 'conversation 0, message 0: it has no "role"'),
        ([{"role": "tool", "content": "Hi"}], r"message 0 \(tool\): the roles are user and assistant"),
        ([{"role": "user"}], r"message 0 \(user\): its content is neither a text nor a list of parts"),
        ([{"role": "user", "content": None}], r"message 0 \(user\): its content is neither"),
        ([{"role": "user", "content": 3}], r"message 0 \(user\): its content is neither"),
        ([{"role": "user", "content": ["Hi"]}], r"message 0 \(user\): its content is neither"),
        ([{"role": "user", "content": [{}]}], r"message 0 \(user\): a None part"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"message 0 \(user\): a text part without its text"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "a text part without its text"),
        ([{"role": "user", "content": [{"type": "image", "url": "a.png"}]}], "a 'image' part; messages hold text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "a 'image_url' part"),
        (
            [{"role": "user", "content": [{"type": "audio", "audio": b"", "path": "a"}]}],
            "names its audio more than once",
        ),
    ],
)
@pytest.mark.parametrize("sanitized", [False, True])
def test_malformed_conversations_are_plain_errors(trim, conversation, message, sanitized):
    with pytest.raises(ValueError, match=message):
        trim.apply_chat_template(conversation, tokenize=True, return_dict=True, sanitize_control_tokens=sanitized)


def test_audio_and_placeholders_must_match(trim):
    clip = tone(0.3)
    with pytest.raises(ValueError, match="the same as the number of audio inputs passed: 1 and 2"):
        trim(text="<audio>", audio=[clip, clip])
    if SANITIZES_SINCE_5_23:  # before, transformers let text pass whose audio is missing
        with pytest.raises(ValueError, match="Found 1 <audio> tokens in the text but no audio"):
            trim(text="<audio>")
    with pytest.raises(ValueError, match="1 audio parts without a recording, but 2 recordings were passed"):
        ask(trim, [question("Who?")], [clip, clip])
    with pytest.raises(ValueError, match="2 audio parts without a recording, but 1 recordings were passed"):
        ask(trim, [question("Who?", clips=2)], [clip])
    with pytest.raises(ValueError, match="has 1 audio parts, but 0 durations came"):
        trim.expanded_length(question("Who?"))
    with pytest.raises(ValueError, match="has 1 placeholders, but 2 audios were named"):
        trim.expand_text("<audio>", [3, 4])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_template_writes_is_the_whole_prompt(family):
    """vLLM tokenizes it as it is; here the text lacks the begin of text, which the tokenizer adds."""
    processor = tiny_processor(family, audio_padding="trim")
    tokenizer, conversation = processor.tokenizer, question("Who?", clips=0)
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    wanted = ask(processor, [conversation], None)["input_ids"][0].tolist()
    assert tokenizer(text)["input_ids"] == wanted
    settings = {"chat_template": processor.chat_template, "add_generation_prompt": True}
    written = tokenizer.apply_chat_template(conversation, tokenize=False, **settings)
    assert tokenizer(written, add_special_tokens=False)["input_ids"] == wanted
    assert written.removesuffix(text) == {"llama": "<|begin_of_text|>", "mistral": "<s>"}.get(
        family, "<bos>" if family.startswith("gemma") else ""
    )


def test_the_template_refuses_a_typed_placeholder_by_itself(trim):
    """Programs such as vLLM render it without the processor."""
    for content in ("What is <audio>?", [{"type": "text", "text": "What is <audio>?"}, {"type": "audio"}]):
        for role in ("system", "user", "assistant"):
            messages = [{"role": role, "content": content}, {"role": "user", "content": "Hi"}]
            with pytest.raises(
                TemplateError, match="the text holds the special token '<audio>'.*in a part of its own"
            ):
                trim.tokenizer.apply_chat_template(messages, chat_template=trim.chat_template, tokenize=False)


@pytest.mark.parametrize("token", ["<audio>", "<unk>", "</Audio>", "<|eot_id|>", "<|begin_of_text|>"])
def test_special_tokens_typed_by_a_user(trim, token):
    with pytest.raises(ValueError, match=r"conversation 0, message 0 \(user\): the text holds the special token"):
        trim.apply_chat_template(question(f"What is {token}?"))
    with pytest.raises(ValueError, match=r"conversation 1, message 1 \(assistant\): the text holds"):
        trim.apply_chat_template([question("Hi"), [*question("Hi"), {"role": "assistant", "content": f"{token}"}]])


def test_empty_and_misplaced_messages(trim):
    with pytest.raises(ValueError, match=r"message 1 \(assistant\): the message is empty"):
        trim.apply_chat_template([*question("Hi"), {"role": "assistant", "content": " \n"}])
    with pytest.raises(ValueError, match=r"message 0 \(user\): the message is empty"):
        trim.apply_chat_template([{"role": "user", "content": []}])
    with pytest.raises(
        ValueError, match=r"message 1 \(assistant\): a 'audio' part; messages hold text, and a user's audio too"
    ):
        trim.apply_chat_template([*question("Hi"), {"role": "assistant", "content": [{"type": "audio"}]}])
    with pytest.raises(ValueError, match=r"message 0 \(user\): a 'image' part"):
        trim.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    with pytest.raises(ValueError, match=r"message 1 \(system\): the roles are user and assistant"):
        trim.apply_chat_template([*question("Hi"), {"role": "system", "content": "Be brief."}])
    with pytest.raises(ValueError, match="text 1 is empty"):
        trim(text=["Hello", "  "])


def test_truncation_never_cuts_audio(trim):
    with pytest.raises(ValueError, match="audio"):
        ask(trim, [question("Who?")], [tone(2.0)], processor_kwargs={"truncation": True, "max_length": 300})
    kept = ask(trim, [question("Hi")], [tone(0.1)], processor_kwargs={"truncation": True, "max_length": 4000})
    assert (kept["input_ids"] == trim.audio_token_id).sum() == 5


def test_unusable_tokenizers_and_extractors_are_refused(trim):
    with pytest.raises(ValueError, match="the tokenizer lacks <audio>, <Audio>.*add_audio_tokens"):
        LlasoProcessor(WhisperFeatureExtractor(), tiny_tokenizer())
    with pytest.raises(ValueError, match="audio_padding is 'none'; choose one of"):
        tiny_processor(audio_padding="none")
    with pytest.raises(ValueError, match="dithers"):
        LlasoProcessor(WhisperFeatureExtractor(dither=0.1), trim.tokenizer)
