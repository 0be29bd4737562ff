"""Aligns the projected audio with the transcript by CTC (Graves et al., 2006); the LLM does not run for it.

Training moves the audio vectors near the embeddings of the words that are said, in their order, which is something
that an LLM can read. A row costs the projector and one small matrix, so many epochs take minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llaso.alignment.alignment import TRANSCRIBED, Alignment, blank_of, saved_alignment
from llaso.alignment.short_pieces import ShortPieces
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..rows.corpora import Corpus

SHARPNESS = 8.0
"""Mean score of a vector that equals its token's embedding. It makes the start alike for every LLM, whatever the norm
of its embeddings: with scores near 0 no token is preferred, and with large ones the first choices hardly change any
more. SmolLM2-135M's own embeddings give 8."""
TRANSCRIPTS_READ = 200_000
"""Transcripts whose tokens compete; more would take minutes to read, and hardly add a token."""


def transcripts_of(corpus: Corpus) -> Iterator[str]:
    """Yield the transcripts of a corpus."""
    rows = corpus.first(None, ("task", "target"))
    return (row["target"] for row in rows if row["task"] in TRANSCRIBED and row["target"])


def alignment_with(
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    corpus: Corpus,
    pieces: ShortPieces | None = None,
) -> Alignment:
    """Return a model's alignment with the tokens of a corpus's transcripts.

    A model that was aligned before, in pieces of the same kind, keeps its scale and the tokens that competed then.

    Args:
        model: has the embeddings.
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
    before = saved_alignment(model)
    merges = None if pieces is None else pieces.merges
    if before is not None and (before.blank, before.merges) == (blank, merges):
        return replace(before, competing=torch.cat([before.competing, competing]).unique())
    table: torch.Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[union-attr, operator]
    mean_square = float(table[competing.to(table.device)].float().square().sum(-1).mean())
    return Alignment(table, competing, blank, merges, SHARPNESS / mean_square)


@torch.no_grad()
def match_loudness(model: LlasoForConditionalGeneration) -> float:
    """Make projected audio as loud as the LLM's embeddings again, in place, if a norm follows the projector.

    CTC is surer the louder the vectors are, and makes them several times as loud. What a layer of the LLM adds to such
    a vector, for instance what comes before it, is then lost beside it. The order of the scores does not change.

    Returns:
        The factor by which the audio was divided.
    """
    if not model.config.projector_norm:
        return 1.0
    embeddings: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    weight = model.model.multi_modal_projector.norm.weight
    assert isinstance(weight, torch.Tensor)
    loudness = weight.float().square().mean().sqrt().item() / embeddings.float().square().mean().sqrt().item()
    weight.div_(loudness)
    return loudness


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
