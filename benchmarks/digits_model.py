"""Trains a LLaSO of the quickstart's size to write down strings of spoken digits, in minutes, for benchmarks.

What comes in is the Free Spoken Digit Dataset; what goes out is a checkpoint. Encoder, projector and language model
learn together from scratch, with CTC over the ten words as a second loss on the encoder. Takes 0 to 4 of each speaker
and digit are held out, as the data set has it.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor

from llaso.quickstart import small_backbones as sizes
from llaso_common.audio import SAMPLE_RATE, read_audio
from modeling_llaso.configuration_llaso import LlasoConfig, count_audio_tokens
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import DEFAULT_TRANSCRIPTION_PROMPT, LlasoProcessor, add_audio_tokens

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT_TAKES = range(5)
LONGEST = 6
"""Digits of a string."""
EDGE_SECONDS = 0.25
"""Silence before and after a string, at most."""
GAP_SECONDS = 0.3
"""Silence between two digits, at most: less than the pause at which a recording is cut."""


@dataclass(frozen=True)
class SpokenDigit:
    """A recording of one digit: what is said, by whom, and its samples at 16 kHz."""

    word: str
    speaker: str
    samples: np.ndarray


@dataclass(frozen=True)
class DigitString:
    """Digits of one speaker, one after another.

    Args:
        words: what is said.
        samples: float32, 16 kHz.
        times: start and end of each word, seconds.
    """

    words: tuple[str, ...]
    samples: np.ndarray
    times: tuple[tuple[float, float], ...]


def read_digits(folder: Path, held_out: bool) -> list[SpokenDigit]:
    """Read the recordings of one side of the split.

    Raises:
        ValueError: the folder is not laid out like the data set.
    """
    found = []
    for file in sorted((folder / "recordings").glob("*.wav")):
        named = re.fullmatch(r"(\d)_(\w+)_(\d+)", file.stem)
        if named and (int(named[3]) in HELD_OUT_TAKES) is held_out:
            found.append(SpokenDigit(WORDS[int(named[1])], named[2], read_audio(file)))
    if not found:
        raise ValueError(
            f"{folder}: no recordings/DIGIT_SPEAKER_TAKE.wav; --digits wants the Free Spoken Digit Dataset"
        )
    return found


def digit_string(digits: list[SpokenDigit], chance: random.Random, longest: int = LONGEST) -> DigitString:
    """Draw a string of digits of one speaker."""
    speaker = chance.choice(digits).speaker
    own = [digit for digit in digits if digit.speaker == speaker]
    chosen = [chance.choice(own) for _ in range(chance.randint(1, longest))]
    parts = [_silence(chance.uniform(0.02, EDGE_SECONDS))]
    times, length = [], len(parts[0])
    for number, digit in enumerate(chosen):
        last = number + 1 == len(chosen)
        pause = _silence(chance.uniform(0.02, EDGE_SECONDS if last else GAP_SECONDS))
        times.append((length / SAMPLE_RATE, (length + len(digit.samples)) / SAMPLE_RATE))
        parts += [digit.samples, pause]
        length += len(digit.samples) + len(pause)
    level = 10 ** chance.uniform(-0.6, 0.2)
    return DigitString(tuple(digit.word for digit in chosen), level * np.concatenate(parts), tuple(times))


def noisy(samples: np.ndarray, seed: int, level: float) -> np.ndarray:
    """Add white noise of a root mean square `level`."""
    noise = np.random.default_rng(seed).standard_normal(len(samples), np.float32)
    return samples + np.float32(level) * noise


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def untrained() -> tuple[LlasoForConditionalGeneration, LlasoProcessor]:
    """Return a model of the quickstart's size whose tokenizer has a token for each word, and its processor."""
    extractor = WhisperFeatureExtractor(feature_size=sizes.MELS)
    spoken = [" ".join(random.Random(seed).choices(WORDS, k=LONGEST)) for seed in range(200)]
    tokenizer = sizes.train_tokenizer([DEFAULT_TRANSCRIPTION_PROMPT] * 20 + spoken)
    add_audio_tokens(tokenizer)
    shape = {"audio_padding": "trim", "projector_stride": 2}
    processor = LlasoProcessor(extractor, tokenizer, **shape)
    width, heads, layers = sizes.ENCODER_WIDTH, sizes.ENCODER_HEADS, sizes.ENCODER_LAYERS
    audio = WhisperConfig(
        num_mel_bins=sizes.MELS, d_model=width, encoder_layers=layers, encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width, decoder_layers=1, init_std=sizes.INIT_STD,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=processor.audio_token_id, hidden_size=sizes.LLM_WIDTH, intermediate_size=sizes.LLM_INNER,
        num_hidden_layers=sizes.LLM_LAYERS, num_attention_heads=sizes.LLM_HEADS,
        num_key_value_heads=sizes.LLM_KEY_VALUE_HEADS, max_position_embeddings=4096, tie_word_embeddings=True,
        initializer_range=sizes.INIT_STD, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = LlasoConfig(
        audio_config=audio.to_dict(),
        text_config=text.to_dict(),
        audio_token_id=processor.audio_token_id,
        projector_pooling="concatenate",
        **shape,
    )
    torch.manual_seed(0)
    model = LlasoForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def train(digits: list[SpokenDigit], steps: int, out: Path, batch: int = 8, rate: float = 2e-3) -> None:
    """Train for `steps` batches and save the model in `out`."""
    model, processor = untrained()
    head = nn.Linear(sizes.ENCODER_WIDTH, 1 + len(WORDS))
    number = {word: 1 + place for place, word in enumerate(WORDS)}
    learned = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    chance = random.Random(0)
    model.train()
    started, told = time.perf_counter(), 0.0
    for step in range(steps):
        longest = min(LONGEST, 1 + 2 * LONGEST * step // steps)  # short strings first
        strings = [digit_string(digits, chance, longest) for _ in range(batch)]
        clips = [
            noisy(one.samples, step * batch + row, 10 ** chance.uniform(-4, -2.5)) for row, one in enumerate(strings)
        ]
        asked = [{"type": "text", "text": processor.default_transcription_prompt}, {"type": "audio"}]
        turns = [
            [{"role": "user", "content": asked}, {"role": "assistant", "content": " ".join(one.words)}]
            for one in strings
        ]
        inputs = processor.apply_chat_template(
            turns, audio=clips, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        is_answer = torch.as_tensor(inputs["assistant_masks"]).bool()
        heard = model.model.encode(inputs["input_features"], inputs["input_features_mask"])
        frames = count_audio_tokens(inputs["input_features_mask"].sum(1))
        ctc = functional.ctc_loss(
            head(heard.last_hidden_state).log_softmax(-1).transpose(0, 1),
            torch.tensor([number[word] for one in strings for word in one.words]),
            frames,
            torch.tensor([len(one.words) for one in strings]),
            zero_infinity=True,
        )
        answer = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(~is_answer, -100),
            mm_encoder_outputs={"audio": heard},
        )
        optimizer.zero_grad()
        (answer.loss + ctc).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        if time.perf_counter() - told > 10 or step + 1 == steps:
            told = time.perf_counter()
            print(
                f"step {step + 1}/{steps}: answer {answer.loss:.3f}, ctc {ctc:.3f}, {told - started:.0f} s", flush=True
            )
    model.eval().save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits_model", description=__doc__)
    parser.add_argument("digits", type=Path, metavar="DIR", help="the Free Spoken Digit Dataset")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/digits"))
    arguments = parser.parse_args()
    train(read_digits(arguments.digits, held_out=False), arguments.steps, arguments.out)


if __name__ == "__main__":
    main()
