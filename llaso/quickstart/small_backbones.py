"""Trains a small Whisper encoder and a small Llama from scratch, in place of pretrained weights that need a download.

The encoder has Whisper's architecture. It learns to recognize phonemes (CTC) and to reconstruct its spectrogram, so
that its output also holds what is not speech. The language model has Llama's architecture and learns from text alone:
to read a sentence spelled out in phonemes, with repetitions, gaps and errors. The two are trained apart; Stage 1 joins
them. Each is saved as transformers saves a Whisper and a Llama.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from llaso.progress import Report, time_in_words
from llaso_common.atomic_write import atomic_path
from llaso_common.output_folder import replaced_folder
from modeling_llaso.configuration_llaso import count_audio_tokens
from modeling_llaso.modeling_llaso import LlasoEncoder
from modeling_llaso.processing_llaso import (
    LLAMA_3,
    SYSTEM_PROMPT,
    LlasoProcessor,
    add_audio_tokens,
    default_chat_template,
)

Batch = TypeVar("Batch")

MELS = 80
ENCODER_WIDTH, ENCODER_LAYERS, ENCODER_HEADS = 128, 4, 4
LLM_WIDTH, LLM_LAYERS, LLM_HEADS, LLM_KEY_VALUE_HEADS, LLM_INNER = 128, 4, 4, 2, 352
INIT_STD = 0.06
"""Standard deviation of drawn weights: wider than in a large network, whose sums have more terms."""
VOCABULARY = 2048
SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PAD_TOKEN = "<|finetune_right_pad_id|>"
BLANK = "_"
WORD_BREAK = "|"
IGNORED = -100


@dataclass(frozen=True)
class Schedule:
    """How one stand-in is trained.

    Args:
        steps: optimizer steps.
        batch: mel frames of a batch of the encoder, or rows of one of the language model.
        learning_rate: at the end of the warm-up; it falls to a twentieth along a cosine.
        warmup: steps.
        save_every: steps between two states on disk, from which an interrupted run goes on.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 50
    save_every: int = 100


def encoder_schedule(steps: int) -> Schedule:
    """Return the schedule of a small encoder on two cores."""
    return Schedule(steps, batch=1500, learning_rate=2.5e-3)


def llm_schedule(steps: int) -> Schedule:
    """Return the schedule of a small language model on two cores."""
    return Schedule(steps, batch=12, learning_rate=3e-3)


@dataclass(frozen=True)
class HeardClip:
    """A training clip of the encoder: samples (float32, 16 kHz) and the phonemes spoken in them; none for music."""

    samples: np.ndarray
    phonemes: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A training row of the language model: an instruction, a sentence, and its phonemes."""

    instruction: str
    sentence: str
    phonemes: tuple[str, ...]


def split_phonemes(ipa: str) -> tuple[str, ...]:
    """Split IPA text into symbols: length marks and the like stay with the sound before, blanks become word breaks."""
    symbols: list[str] = []
    for char in ipa:
        if char.isspace():
            symbols.append(WORD_BREAK)
        elif char in "ːˑʰʲʷᵊ̩̃" and symbols:
            symbols[-1] += char
        elif char not in "ˈˌ":
            symbols.append(char)
    return tuple(symbols)


# --- the encoder ----------------------------------------------------------------------------------------------------


class PhonemeEncoder(nn.Module):
    """The encoder with its training heads: CTC over phonemes, and reconstruction of the spectrogram."""

    def __init__(self, encoder: LlasoEncoder, phonemes: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.d_model
        self.phoneme_head = nn.Linear(width, 1 + phonemes)
        self.mel_head = nn.Linear(width, 2 * encoder.config.num_mel_bins)

    def forward(self, mels: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute the loss of a batch.

        Args:
            mels: log-mel of each clip, `(num_mel_bins, frames)`.
            labels: phoneme numbers of each clip, from 1; empty if nothing is spoken.
        """
        frames = torch.tensor([mel.shape[1] for mel in mels])
        features = pad_sequence([mel.T for mel in mels], batch_first=True)  # (clips, frames, bins)
        mask = torch.arange(features.shape[1]) < frames[:, None]
        vectors = self.encoder(features.transpose(1, 2), input_features_mask=mask.long()).last_hidden_state
        lengths = count_audio_tokens(frames)

        pairs = functional.pad(features, (0, 0, 0, 2 * vectors.shape[1] - features.shape[1])).unflatten(1, (-1, 2))
        missed = (self.mel_head(vectors) - pairs.flatten(2)).square().mean(-1)
        reconstruction = missed[torch.arange(vectors.shape[1]) < lengths[:, None]].mean()

        spoken = [index for index, label in enumerate(labels) if len(label)]
        if not spoken:
            return RECONSTRUCTION_WEIGHT * reconstruction
        scores = self.phoneme_head(vectors[spoken]).log_softmax(-1).transpose(0, 1)
        wanted = [labels[index] for index in spoken]
        ctc = functional.ctc_loss(
            scores,
            torch.cat(wanted),
            lengths[spoken],
            torch.tensor([len(label) for label in wanted]),
            zero_infinity=True,
        )
        return ctc + RECONSTRUCTION_WEIGHT * reconstruction


RECONSTRUCTION_WEIGHT = 0.3
"""Weight of the spectrogram's reconstruction loss beside the CTC loss."""


def stretched(mel: torch.Tensor, factor: float) -> torch.Tensor:
    """Stretch a clip's frequencies, as a longer or shorter vocal tract would.

    Args:
        mel: log-mel, `(num_mel_bins, frames)`.
        factor: by which its mel scale is stretched.
    """
    bins = len(mel)
    place = (torch.arange(bins) / factor).clamp(max=bins - 1)
    below = place.long()
    above, part = (below + 1).clamp(max=bins - 1), (place - below)[:, None]
    return (1 - part) * mel[below] + part * mel[above]


VOCAL_TRACT = 0.08
"""How far frequencies are stretched at most; speakers differ by about as much."""


def train_encoder(clips: Sequence[HeardClip], out: Path, report: Report, *, schedule: Schedule, seed: int = 0) -> None:
    """Train a small Whisper encoder and save it in `out`, as a Whisper with a decoder of one untrained layer.

    Args:
        clips: to train on.
        out: folder; an interrupted training there is resumed, a finished one is kept.
        report: takes progress, a line at a time.
        seed: of the weights and of the order.
        schedule: how long.
    """
    if (out / "config.json").exists():
        return
    torch.manual_seed(seed)
    config = WhisperConfig(
        num_mel_bins=MELS,
        d_model=ENCODER_WIDTH,
        encoder_layers=ENCODER_LAYERS,
        encoder_attention_heads=ENCODER_HEADS,
        encoder_ffn_dim=4 * ENCODER_WIDTH,
        decoder_layers=1,
        decoder_attention_heads=ENCODER_HEADS,
        decoder_ffn_dim=ENCODER_WIDTH,
        vocab_size=8,
        init_std=INIT_STD,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    whisper = WhisperModel(config)
    encoder = LlasoEncoder(config)
    extractor = WhisperFeatureExtractor(feature_size=MELS)
    inventory = sorted({phoneme for clip in clips for phoneme in clip.phonemes})
    number = {phoneme: 1 + index for index, phoneme in enumerate(inventory)}
    tokenizer = train_tokenizer([SYSTEM_PROMPT])
    add_audio_tokens(tokenizer)
    log_mel = LlasoProcessor(extractor, tokenizer, audio_padding="trim").log_mel
    mels = [
        mel for start in range(0, len(clips), 64) for mel in log_mel([c.samples for c in clips[start : start + 64]])
    ]
    labels = [torch.tensor([number[phoneme] for phoneme in clip.phonemes], dtype=torch.long) for clip in clips]

    def batches(epoch: int) -> Iterator[list[tuple[int, float]]]:
        """Clips of about one length, `schedule.batch` frames at most, each with its stretch; in drawn order."""
        chance = random.Random(f"{seed}/{epoch}")
        order = sorted(range(len(clips)), key=lambda index: mels[index].shape[1] + 20 * chance.random())
        found: list[list[int]] = [[]]
        for index in order:
            if found[-1] and mels[index].shape[1] * (len(found[-1]) + 1) > schedule.batch:
                found.append([])
            found[-1].append(index)
        chance.shuffle(found)
        for clips_of_batch in found:
            yield [(index, chance.uniform(1 - VOCAL_TRACT, 1 + VOCAL_TRACT)) for index in clips_of_batch]

    def loss(batch: list[tuple[int, float]]) -> torch.Tensor:
        heard = [stretched(mels[index], factor) for index, factor in batch]
        return trained(heard, [labels[index] for index, _ in batch])

    trained = PhonemeEncoder(encoder, len(inventory))
    _fit("encoder", trained, batches, loss, schedule, out, report)
    whisper.encoder.load_state_dict(encoder.state_dict())
    with replaced_folder(out) as finished:
        extractor.save_pretrained(finished)
        whisper.save_pretrained(finished)


# --- the language model ---------------------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with Llama 3's special tokens and turn marks; each digit is a token of its own.

    LLaSO's system text, the same in every row, is one token: as words it would be two fifths of a row.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL_TOKENS, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin, end = SPECIAL_TOKENS[0], LLAMA_3.assistant[1]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=PAD_TOKEN)
    fast.add_tokens([AddedToken(SYSTEM_PROMPT, normalized=False)])
    return fast


def spell(phonemes: Sequence[str], inventory: Sequence[str], chance: random.Random) -> str:
    """Write phonemes as an encoder would hear them: drawn out, with gaps, and sometimes wrong."""
    drawn_out, slips, lost = chance.uniform(0.7, 1.6), 0.05 * chance.random(), 0.03 * chance.random()
    written = [BLANK] * chance.randint(0, 2)
    for phoneme in phonemes:
        if chance.random() < lost:
            continue
        heard = chance.choice(inventory) if chance.random() < slips else phoneme
        written += [heard] * max(1, round(chance.gauss(drawn_out, 0.5)))
        if chance.random() < 0.15:
            written.append(BLANK)
    return " ".join(written + [BLANK] * chance.randint(0, 2))


def train_language_model(
    lines: Sequence[Line], texts: Sequence[str], out: Path, report: Report, *, schedule: Schedule, seed: int = 0
) -> None:
    """Train a small Llama on text alone and save it, with its tokenizer, in `out`.

    Args:
        lines: sentences with their phonemes.
        texts: more text for the tokenizer to learn from.
        out: folder; an interrupted training there is resumed, a finished one is kept.
        report: takes progress, a line at a time.
        seed: of the weights and of the order.
        schedule: how long.
    """
    if (out / "config.json").exists():
        return
    torch.manual_seed(seed)
    inventory = sorted({phoneme for line in lines for phoneme in line.phonemes})
    words = _words(lines)
    chance = random.Random(f"{seed}/texts")
    known = [spell(line.phonemes, inventory, chance) for line in lines]
    known += [text for line in lines for text in (line.instruction, line.sentence, "".join(line.phonemes))]
    tokenizer = train_tokenizer([*known, *texts])
    template = default_chat_template(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=LLM_WIDTH,
            intermediate_size=LLM_INNER,
            num_hidden_layers=LLM_LAYERS,
            num_attention_heads=LLM_HEADS,
            num_key_value_heads=LLM_KEY_VALUE_HEADS,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=INIT_STD,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )

    def batches(epoch: int) -> Iterator[list[tuple[list[int], int]]]:
        """Yield batches of token ids with the length of the prompt; rows of about one length together."""
        chance = random.Random(f"{seed}/{epoch}")
        rows = sorted((_example(chance) for _ in range(schedule.batch * 24)), key=lambda row: len(row[0]))
        found = [rows[start : start + schedule.batch] for start in range(0, len(rows), schedule.batch)]
        chance.shuffle(found)
        yield from found

    def _example(chance: random.Random) -> tuple[list[int], int]:
        line = chance.choice(lines)
        sentence, phonemes = line.sentence, line.phonemes
        if chance.random() < RANDOM_WORDS:
            drawn = [chance.choice(words) for _ in range(chance.randint(1, 6))]
            sentence = " ".join(word for word, _ in drawn)
            phonemes = tuple(symbol for _, spelled in drawn for symbol in (*spelled, WORD_BREAK))[:-1]
        asked = f"{line.instruction}\n {spell(phonemes, inventory, chance)}\n"
        turns = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": asked}]
        prompt = tokenizer.apply_chat_template(
            turns, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        head = tokenizer(SPECIAL_TOKENS[0] + str(prompt), add_special_tokens=False)["input_ids"]
        return head + tokenizer(sentence + LLAMA_3.assistant[1], add_special_tokens=False)["input_ids"], len(head)

    def loss(batch: list[tuple[list[int], int]]) -> torch.Tensor:
        ids = pad_sequence([torch.tensor(row) for row, _ in batch], batch_first=True)
        lengths, prompts = torch.tensor([len(row) for row, _ in batch]), torch.tensor([prompt for _, prompt in batch])
        place = torch.arange(ids.shape[1])
        learned = (place >= prompts[:, None]) & (place < lengths[:, None])
        hidden = model.model(input_ids=ids, attention_mask=(place < lengths[:, None]).long()).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][learned[:, 1:]])
        return functional.cross_entropy(logits, ids[learned])

    _fit("language model", model, batches, loss, schedule, out, report)
    with replaced_folder(out) as finished:
        tokenizer.save_pretrained(finished)
        model.save_pretrained(finished)


RANDOM_WORDS = 0.3
"""Share of the rows whose sentence is random words, so that the model learns to read, not the sentences."""


def _words(lines: Sequence[Line]) -> list[tuple[str, tuple[str, ...]]]:
    """Return words with their phonemes, from sentences that have as many words as groups of phonemes."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    for line in lines:
        written = line.sentence.split()
        spelled = " ".join(line.phonemes).split(WORD_BREAK)
        if len(written) == len(spelled):
            found |= {(word, tuple(sounds.split())) for word, sounds in zip(written, spelled, strict=True)}
    return sorted(found)


# --- training --------------------------------------------------------------------------------------------------------


def _fit(
    name: str,
    model: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    loss_of: Callable[[Batch], torch.Tensor],
    schedule: Schedule,
    out: Path,
    report: Report,
) -> None:
    """Train for `schedule.steps`, from the state in `out` if there is one, which the finished model replaces."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    state, step = out / "state.pt", 0
    out.mkdir(parents=True, exist_ok=True)
    if state.exists():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        step = kept["step"]
    model.train()
    first, started, told, mean = step, time.perf_counter(), time.perf_counter(), 0.0
    for number, batch in enumerate(_forever(batches)):
        if number < step:
            continue
        if step == schedule.steps:
            break
        part = step / schedule.steps
        rate = min(1.0, (step + 1) / schedule.warmup) * (0.05 + 0.95 * (1 + math.cos(math.pi * part)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * rate
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean = loss.item() if step == first + 1 else 0.95 * mean + 0.05 * loss.item()
        if step % schedule.save_every == 0:
            with atomic_path(state) as file:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)
        if time.perf_counter() - told > 5 or step == schedule.steps:
            told = time.perf_counter()
            left = time_in_words((told - started) / (step - first) * (schedule.steps - step))
            report(f"{name}: step {step:,}/{schedule.steps:,}  loss {mean:.3f}  {left} left")


def _forever(batches: Callable[[int], Iterator[Batch]]) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches(epoch)
        epoch += 1
