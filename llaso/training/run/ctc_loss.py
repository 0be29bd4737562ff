"""Aligns the projected audio with the transcript by CTC (Graves et al., 2006); the LLM does not run for it.

Each audio vector is scored against the embeddings of the tokens in which the LLM would write the transcripts; one more
token, the blank, stands for "nothing new is said here". Training moves the vectors near the embeddings of the words
that are said, in their order, which is something that an LLM can read. A row costs the projector and one small matrix,
so many epochs take minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..rows.collator import TRANSCRIBED, blank_of
from ..rows.corpora import Corpus
from ..rows.short_pieces import ShortPieces

SHARPNESS = 8.0
"""Mean score of a vector that equals its token's embedding. It makes the start alike for every LLM, whatever the norm
of its embeddings: with scores near 0 no token is preferred, and with large ones the first choices hardly change any
more. SmolLM2-135M's own embeddings give 8."""
TRANSCRIPTS_READ = 200_000
"""Transcripts whose tokens compete; more would take minutes to read, and hardly add a token."""


@dataclass(frozen=True)
class Alignment:
    """Scores audio vectors against token embeddings.

    Attributes:
        embeddings: `(vocabulary, width)`, the LLM's; this loss does not train them.
        competing: ids of the tokens that a vector is scored against, in their order, the blank among them; a batch's
            own tokens compete as well.
        blank: id of the blank.
        scale: factor; a vector's score is `scale` times its product with the embedding.
    """

    embeddings: torch.Tensor
    competing: torch.Tensor
    blank: int
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

    def _scores(self, audio: torch.Tensor, competing: torch.Tensor) -> torch.Tensor:
        embeddings = self.embeddings.to(audio.device)[competing].to(audio.dtype)
        return self.scale * nn.functional.linear(audio, embeddings)


def transcripts_of(corpus: Corpus) -> Iterator[str]:
    """Yield the transcripts of a corpus."""
    rows = corpus.first(None, ("task", "target"))
    return (row["target"] for row in rows if row["task"] in TRANSCRIBED and row["target"])


def alignment_with(
    embeddings: torch.Tensor, processor: LlasoProcessor, corpus: Corpus, pieces: ShortPieces | None = None
) -> Alignment:
    """Return the alignment with the tokens of a corpus's transcripts.

    Args:
        embeddings: `(vocabulary, width)`, the LLM's.
        processor: of the model.
        corpus: the rows to train on.
        pieces: splits the transcripts' tokens.

    Raises:
        ValueError: the corpus has no transcript.
    """
    texts = list(itertools.islice(transcripts_of(corpus), TRANSCRIPTS_READ))
    if not texts:
        raise ValueError(
            f"no row to train on has a transcript (task {' or '.join(TRANSCRIBED)}), so that CTC has nothing to align "
            "with; set optimizer.ctc_weight=0, or choose other rows"
        )
    tokens = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    blank = blank_of(processor)
    said = torch.tensor([token for row in tokens for token in row], dtype=torch.long).unique()
    said = said if pieces is None else pieces.split(said)
    competing = torch.cat([said, torch.tensor([blank])]).unique()
    table = embeddings.detach()
    mean_square = float(table[competing.to(table.device)].float().square().sum(-1).mean())
    return Alignment(table, competing, blank, SHARPNESS / mean_square)


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


@torch.no_grad()
def match_loudness(model: LlasoForConditionalGeneration) -> None:
    """Make projected audio as loud as the LLM's embeddings again, in place, if a norm follows the projector.

    CTC is surer the louder the vectors are, and makes them several times as loud. What a layer of the LLM adds to such
    a vector, for instance what comes before it, is then lost beside it. The order of the scores does not change.
    """
    if not model.config.projector_norm:
        return
    embeddings: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    weight = model.model.multi_modal_projector.norm.weight
    assert isinstance(weight, torch.Tensor)
    weight.mul_(embeddings.float().square().mean().sqrt().item() / weight.float().square().mean().sqrt().item())


def call_through(wrapper: nn.Module, module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of a wrapped module's parameters so that the wrapper takes it for the module's forward pass.

    DistributedDataParallel averages the gradients of what its own forward pass has called.

    Args:
        wrapper: the module itself, or what is around it.
        module: whose `forward` is replaced for this one call.
        function: called in its place.
        *args: of the function.
    """
    if wrapper is module:
        return function(*args)
    forward = module.forward

    def instead(*args: Any) -> Any:
        module.forward = forward
        return function(*args)

    module.forward = instead
    return wrapper(*args)
