"""Reads projected audio as text by CTC (Graves et al., 2006), without the language model.

Each audio vector is scored against the embeddings of the tokens in which the LLM would write the transcripts; one more
token, the blank, stands for "nothing new is said here".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

TRANSCRIBED = ("ASR",)
"""Tasks whose answer is what the recording says."""
TRANSCRIBED_FORMAT = "text_audio"
"""The format whose recording holds nothing else, such as a spoken instruction."""
BLANK = "\n"
"""CTC's token for "nothing new". LLMs read it as a break between words, and its embedding differs from the others':
the tags that LLaSO adds begin as the mean of all, and do not train as a blank."""


def is_transcribed(task: str, modality: str) -> bool:
    """Return whether a row's answer is the transcript of its recording, which holds nothing else.

    Args:
        task: the row's task.
        modality: its format.
    """
    return task in TRANSCRIBED and modality == TRANSCRIBED_FORMAT


def blank_of(processor: LlasoProcessor) -> int:
    """Return the id of CTC's blank."""
    return processor.tokenizer(BLANK, add_special_tokens=False)["input_ids"][-1]


@dataclass(frozen=True)
class Alignment:
    """Scores audio vectors against token embeddings.

    Attributes:
        embeddings: `(vocabulary, width)`, the LLM's; aligning does not train them.
        competing: ids of the tokens that a vector is scored against, in their order, the blank among them; a batch's
            own tokens compete as well.
        blank: id of the blank.
        merges: how many of the tokenizer's merges make the pieces in which text is aligned; None if tokens stay whole.
        scale: factor; a vector's score is `scale` times its product with the embedding.
    """

    embeddings: torch.Tensor
    competing: torch.Tensor
    blank: int
    merges: int | None = None
    scale: float = 1.0

    def row_losses(
        self, audio: torch.Tensor, audio_sizes: torch.Tensor, tokens: torch.Tensor, token_sizes: torch.Tensor
    ) -> torch.Tensor:
        """Compute the negative log-likelihood of each row's transcript, `(rows,)`.

        Args:
            audio: projected vectors, row after row, `(sum of audio_sizes, width)`.
            audio_sizes: number of vectors of each row, `(rows,)`.
            tokens: ids of the transcripts, row after row, `(sum of token_sizes,)`.
            token_sizes: number of ids of each row, `(rows,)`.
        """
        competing = torch.cat([self.competing.to(tokens.device), tokens]).unique()
        scores = self._scores(audio, competing).float().log_softmax(-1)
        return nn.functional.ctc_loss(
            nn.utils.rnn.pad_sequence(list(scores.split(audio_sizes.tolist()))),
            torch.searchsorted(competing, tokens),
            audio_sizes,
            token_sizes,
            blank=int(torch.searchsorted(competing, self.blank)),
            reduction="none",
        )

    def read(self, audio: torch.Tensor, audio_sizes: torch.Tensor) -> list[list[int]]:
        """Return the token ids of each row's best path, blanks and repetitions left out.

        Args:
            audio: projected vectors, row after row, `(sum of audio_sizes, width)`.
            audio_sizes: number of vectors of each row, `(rows,)`.
        """
        competing = self.competing.to(audio.device)
        best = competing[self._scores(audio, competing).argmax(-1)]
        paths = [row.unique_consecutive().tolist() for row in best.split(audio_sizes.tolist())]
        return [[token for token in path if token != self.blank] for path in paths]

    def log_probs(self, audio: torch.Tensor) -> torch.Tensor:
        """Return how likely each audio vector stands for each competing token, `(…, competing)`."""
        return self._scores(audio, self.competing.to(audio.device)).float().log_softmax(-1)

    def _scores(self, audio: torch.Tensor, competing: torch.Tensor) -> torch.Tensor:
        embeddings = self.embeddings.to(audio.device)[competing].to(audio.dtype)
        return self.scale * nn.functional.linear(audio, embeddings)


def save_alignment(model: LlasoForConditionalGeneration, alignment: Alignment, loudness: float = 1.0) -> None:
    """Write an alignment into a model's configuration, so that the checkpoint can be read without the corpus.

    Args:
        model: whose audio was aligned.
        alignment: with its embeddings.
        loudness: factor by which the audio was divided after it was aligned; the scale is multiplied by it.
    """
    model.config.ctc_alignment = {
        "token_ids": alignment.competing.tolist(),
        "blank_id": alignment.blank,
        "merges": alignment.merges,
        "scale": alignment.scale * loudness,
    }


def saved_alignment(model: LlasoForConditionalGeneration) -> Alignment | None:
    """Return the alignment that a model's configuration describes, or None if it was never aligned by CTC."""
    saved = getattr(model.config, "ctc_alignment", None)  # a model of another kind has none
    if saved is None:
        return None
    embeddings: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    competing = torch.tensor(saved["token_ids"])
    return Alignment(embeddings.detach(), competing, saved["blank_id"], saved["merges"], saved["scale"])


@torch.no_grad()
def best_paths(
    alignment: Alignment, model: LlasoForConditionalGeneration, processor: LlasoProcessor, inputs: Mapping[str, Any]
) -> list[str]:
    """Read the text of each row's best path.

    Args:
        alignment: with the model's embeddings.
        model: projects the audio.
        processor: of the model.
        inputs: of the model, on its device.
    """
    names = ("input_features", "input_features_mask", "mm_encoder_outputs")
    audio = model.model.get_audio_embeds(*(inputs.get(name) for name in names))
    assert audio is not None
    sizes = inputs["input_ids"].eq(model.config.audio_token_id).sum(1)
    paths = alignment.read(audio, sizes)
    return [text.strip() for text in processor.tokenizer.batch_decode(paths, skip_special_tokens=True)]
