"""Measures how well the language model's attention tells when a word is said, on strings whose words have known times.

The right answer is read with its audio, and each word's attention to the audio tokens is aligned by dynamic time
warping, as Whisper's word times are. The heads are chosen on one half of the strings, and measured on the other.
Beside it stands the error of spreading the words evenly over the recording, which needs no model.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.digits_model import DigitString, digit_string, noisy, read_digits
from llaso_common.audio import SAMPLE_RATE
from modeling_llaso.loading import load

BEST_HEADS = 3


def attention(model: Any, processor: Any, string: DigitString, seed: int) -> tuple[torch.Tensor, float]:
    """Return how each word attends to the audio, `(layers, heads, words, audio_tokens)`, and seconds of a token.

    A word's row is that of the position which predicts its first token.
    """
    clip = noisy(string.samples, seed, 1e-3)
    asked = [{"type": "text", "text": processor.default_transcription_prompt}, {"type": "audio"}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": " ".join(string.words)}]
    inputs = processor.apply_chat_template(
        [turns], audio=[clip], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    answer = torch.as_tensor(inputs.pop("assistant_masks"))[0].bool().nonzero().flatten()
    ids = inputs["input_ids"][0]
    pieces = [processor.tokenizer.decode(ids[place]) for place in answer.tolist()]
    first = [0, *(number for number, piece in enumerate(pieces) if piece.startswith(" "))]
    with torch.no_grad():
        seen = torch.stack(model(**inputs, output_attentions=True).attentions)[:, 0]
    audio = ids.eq(processor.audio_token_id)
    rows = answer[torch.tensor(first)] - 1
    return seen[:, :, rows][..., audio], len(clip) / processor.feature_extractor.sampling_rate / int(audio.sum())


def starts(weights: np.ndarray, seconds: float) -> list[float]:
    """Return when each word begins by dynamic time warping over `(words, audio_tokens)`.

    Each word gets a stretch of tokens, in order; the sum of the weights inside the stretches is greatest. A stretch
    begins a word.
    """
    words, tokens = weights.shape
    smooth = weights / (weights.sum(0, keepdims=True) + 1e-9)
    best = np.full((words, tokens), -np.inf)
    came = np.zeros((words, tokens), bool)  # from the word before
    best[0] = np.cumsum(smooth[0])
    for word in range(1, words):
        for token in range(word, tokens):
            stay, move = best[word, token - 1], best[word - 1, token - 1]
            came[word, token] = move >= stay
            best[word, token] = max(stay, move) + smooth[word, token]
    found, word = [], words - 1
    for token in range(tokens - 1, -1, -1):
        if word and came[word, token]:
            found.append(token * seconds)
            word -= 1
    return [0.0, *reversed(found)]


def peaks(weights: np.ndarray, seconds: float) -> list[float]:
    """Return where each word attends most."""
    return ((weights.argmax(1) + 0.5) * seconds).tolist()


def evenly(string: DigitString, part: float) -> list[float]:
    """Return times that spread the words evenly: their starts with part 0, their middles with 1/2."""
    whole = len(string.samples) / SAMPLE_RATE
    return [whole * (number + part) / len(string.words) for number in range(len(string.words))]


def errors(found: list[float], true: list[float]) -> list[float]:
    """Return how far each time is off, in seconds."""
    return [abs(one - other) for one, other in zip(found, true, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.word_times", description=__doc__)
    parser.add_argument("model", metavar="DIR", help="a checkpoint, of benchmarks.digits_model for one")
    parser.add_argument("digits", type=Path, metavar="DIGITS", help="the Free Spoken Digit Dataset")
    parser.add_argument("--strings", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/word_times.json"))
    arguments = parser.parse_args()
    model, processor = load(arguments.model, "cpu")
    model.set_attn_implementation("eager")
    held_out, chance = read_digits(arguments.digits, held_out=True), random.Random("word times")
    strings = [digit_string(held_out, chance) for _ in range(arguments.strings)]
    seen = [attention(model, processor, string, number) for number, string in enumerate(strings)]
    half = len(strings) // 2
    middles = [[sum(span) / 2 for span in string.times] for string in strings]
    begins = [[span[0] for span in string.times] for string in strings]

    def off(choose: Any, aims: list[list[float]], which: range, how: Any) -> list[float]:
        return [
            error
            for number in which
            for error in errors(how(choose(seen[number][0]).numpy(), seen[number][1]), aims[number])
        ]

    layers, heads = seen[0][0].shape[:2]
    ranked = sorted(
        ((layer, head) for layer in range(layers) for head in range(heads)),
        key=lambda place: statistics.mean(off(lambda all, p=place: all[p], middles, range(half), peaks)),
    )
    best = ranked[:BEST_HEADS]

    def chosen(all: torch.Tensor) -> torch.Tensor:
        return torch.stack([all[place] for place in best]).mean(0)

    def everything(all: torch.Tensor) -> torch.Tensor:
        return all.flatten(0, 1).mean(0)

    rest = range(half, len(strings))

    def even(aims: list[list[float]], part: float) -> float:
        return statistics.median(
            error for number in rest for error in errors(evenly(strings[number], part), aims[number])
        )

    report = {
        "strings": len(rest),
        "words": sum(len(strings[number].words) for number in rest),
        "heads": best,
        "token_seconds": seen[0][1],
        "median_error_of_starts": {
            "chosen heads": statistics.median(off(chosen, begins, rest, starts)),
            "all heads": statistics.median(off(everything, begins, rest, starts)),
            "evenly spread": even(begins, 0),
        },
        "median_error_of_middles": {
            "chosen heads": statistics.median(off(chosen, middles, rest, peaks)),
            "all heads": statistics.median(off(everything, middles, rest, peaks)),
            "evenly spread": even(middles, 0.5),
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
