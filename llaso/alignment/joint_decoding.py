"""Decodes transcripts with the language model and CTC together, so that they keep to what was said.

A language model alone writes what is likely: another word in place of a rare one, or one phrase again and again. Here
each hypothesis is also scored by the probability, under CTC, that the audio begins with it (Watanabe et al., 2017,
"Hybrid CTC/attention architecture for end-to-end speech recognition").
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from modeling_llaso.loading import end_ids
from modeling_llaso.modeling_llaso import LlasoAudioOutput, LlasoForConditionalGeneration

from . import CTC_WEIGHT
from .alignment import Alignment, saved_alignment
from .short_pieces import ShortPieces

NEVER = -1e6
"""Log-probability that stands for "impossible". It is finite, because the difference of two infinities is NaN."""
PENALTY = -1e4
"""CTC's score of an impossible next token: finite, so that the language model decides if all are impossible."""
CANDIDATES = 40
"""Next tokens of each hypothesis that CTC scores: the language model's likeliest."""

Text = tuple[int, ...]
"""Ids of generated tokens."""


class PieceLookup:
    """Maps tokens of the language model to the aligned tokens that spell them.

    Args:
        alignment: of the model.
        tokenizer: of the model.

    Attributes:
        blank: place of the blank among the competing tokens.
    """

    def __init__(self, alignment: Alignment, tokenizer: PreTrainedTokenizerBase) -> None:
        self._split = None if alignment.merges is None else ShortPieces(tokenizer, alignment.merges).split
        self._places = {token: place for place, token in enumerate(alignment.competing.tolist())}
        self.blank = self._places.pop(alignment.blank)
        self._known: dict[int, list[int] | None] = {}

    def places(self, token: int) -> list[int] | None:
        """Return the places of a token's pieces among the competing tokens; None if one of them does not compete."""
        if token not in self._known:
            pieces = [token] if self._split is None else self._split(torch.tensor([token])).tolist()
            known = all(piece in self._places for piece in pieces)
            self._known[token] = [self._places[piece] for piece in pieces] if known else None
        return self._known[token]


@dataclass(frozen=True)
class Prefixes:
    """Beginnings of transcripts, with the state of CTC's forward algorithm for each.

    Attributes:
        clips: number of each text's clip, `(texts,)`.
        token: `token[i, t]` is the log-probability of all paths over the first `t` vectors that spell text `i` and end
            in its last token, `(texts, vectors + 1)`.
        blank: the same for paths that end in a blank.
        last: place of the last token among the competing ones; -1 for the empty text, `(texts,)`.
        prefix: log-probability that the transcript begins with the text, `(texts,)`.
    """

    clips: torch.Tensor
    token: torch.Tensor
    blank: torch.Tensor
    last: torch.Tensor
    prefix: torch.Tensor

    def __getitem__(self, chosen: torch.Tensor) -> Prefixes:
        return Prefixes(*(value[chosen] for value in vars(self).values()))

    def whole(self) -> torch.Tensor:
        """Return the log-probability that each text is the whole transcript, `(texts,)`."""
        return torch.logaddexp(self.token[:, -1], self.blank[:, -1])


class PrefixScores:
    """Computes how likely a clip's transcript begins with a text, token by token.

    Args:
        log_probs: of each clip's vectors, `(vectors, competing)`, as `Alignment.log_probs` returns them.
        blank: place of the blank among the competing tokens.
    """

    def __init__(self, log_probs: Sequence[torch.Tensor], blank: int) -> None:
        clips = [clip.detach() for clip in log_probs]
        self._log_probs = nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=NEVER).clamp(min=NEVER)
        for clip, own in zip(self._log_probs, clips, strict=True):
            clip[len(own) :, blank] = 0.0  # beyond its end, a clip is certain to say nothing more
        self._blank = blank

    def empty(self, clips: torch.Tensor) -> Prefixes:
        """Return the empty text of each of these clips."""
        blank = self._sums(clips, torch.full_like(clips, self._blank))
        return Prefixes(
            clips, torch.full_like(blank, -torch.inf), blank, torch.full_like(clips, -1), torch.zeros_like(blank[:, 0])
        )

    def extended(self, texts: Prefixes, tokens: torch.Tensor) -> Prefixes:
        """Return each text with one token more.

        Args:
            texts: to go on from.
            tokens: places among the competing ones, `(texts,)`.
        """
        said = self._sums(texts.clips, tokens)
        silent = self._sums(texts.clips, torch.full_like(tokens, self._blank))
        repeated = (texts.last == tokens)[:, None]  # CTC merges equal tokens, unless a blank lies between them
        entering = torch.where(repeated, texts.blank, torch.logaddexp(texts.token, texts.blank))
        token = _forward(entering, said)
        first_said = entering[:, :-1] + said[:, 1:] - said[:, :-1]
        return Prefixes(texts.clips, token, _forward(token, silent), tokens, torch.logsumexp(first_said, 1))

    def written(self, texts: Prefixes, origins: torch.Tensor, tokens: Sequence[Sequence[int]]) -> Prefixes:
        """Return texts with several tokens more; beginnings that continuations share are computed once.

        Args:
            texts: to go on from.
            origins: which of them each result goes on from, `(results,)`.
            tokens: places of each result's new tokens.
        """
        lengths = torch.tensor([len(new) for new in tokens], device=origins.device)
        new = [torch.tensor(one, dtype=torch.long, device=origins.device) for one in tokens]
        padded = nn.utils.rnn.pad_sequence(new, batch_first=True)
        at, pool = origins.clone(), texts
        for place in range(padded.shape[1]):
            going_on = (lengths > place).nonzero()[:, 0]
            pairs = torch.stack([at[going_on], padded[going_on, place]])
            (source, token), inverse = pairs.unique(dim=1, return_inverse=True)
            at[going_on] = len(pool.clips) + inverse
            more = self.extended(pool[source], token)
            pool = Prefixes(*(torch.cat(both) for both in zip(vars(pool).values(), vars(more).values(), strict=True)))
        return pool[at]

    def _sums(self, clips: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the sums of tokens' log-probabilities over the first `t` vectors, `(texts, vectors + 1)`, double."""
        return nn.functional.pad(self._log_probs[clips, :, tokens].double().cumsum(1), (1, 0))


def _forward(entering: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Solve `r[t] = p[t] (r[t - 1] + entering[t - 1])`, `r[0] = 0`, for all t at once.

    Divided by the product of `p` up to `t`, the recursion is a sum.

    Args:
        entering: logarithms, `(texts, vectors + 1)`.
        sums: of `log p` up to t, `(texts, vectors + 1)`.

    Returns:
        Logarithms of `r`, `(texts, vectors + 1)`.
    """
    inner = torch.logcumsumexp(entering[:, :-1] - sums[:, :-1], 1)
    return nn.functional.pad(sums[:, 1:] + inner, (1, 0), value=-torch.inf)


@dataclass(frozen=True)
class _Step:
    """One hypothesis at one step of decoding.

    Attributes:
        row: its number in the batch.
        log_prob: its log-probability under the language model.
        tokens: ids of the candidates to follow.
        log_probs: their log-probabilities under the language model.
    """

    row: int
    log_prob: float
    tokens: list[int]
    log_probs: list[float]


class JointDecoding(LogitsProcessor):
    """Scores the next tokens of each hypothesis by the language model and by CTC.

    For one call of `generate`, with any number of beams. The scores along a hypothesis add up to `1 - weight` times
    its log-probability under the language model plus `weight` times that under CTC, its end included, so a length
    penalty is not needed. A token with a piece that does not compete, such as a letter that no transcript of the
    training has, is not written as long as there is another.

    Args:
        log_probs: of each clip's vectors, `(vectors, competing)`.
        lookup: maps tokens to aligned pieces.
        ends: ids of the tokens that end an answer.
        weight: of CTC, from 0 to 1.
    """

    def __init__(
        self, log_probs: Sequence[torch.Tensor], lookup: PieceLookup, ends: Sequence[int], weight: float
    ) -> None:
        self._lookup, self._weight, self._clips = lookup, weight, len(log_probs)
        # Double precision is needed, and MPS has none.
        self._device = log_probs[0].device if log_probs[0].is_cuda else torch.device("cpu")
        self._scores = PrefixScores([clip.to(self._device) for clip in log_probs], lookup.blank)
        self._ends = torch.tensor(ends, dtype=torch.long, device=self._device)
        self._prompt: int | None = None
        self._steps: dict[tuple[int, Text], _Step] = {}
        self._continued: Prefixes | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
        rows = len(input_ids)
        clips = torch.arange(rows, device=self._device) // (rows // self._clips)
        texts: list[Text] = [tuple(row) for row in input_ids[:, self._prompt :].tolist()]
        names = list(zip(clips.tolist(), texts, strict=True))
        states, written = self._states(clips, names)

        by_llm = scores.float().log_softmax(-1).to(self._device)
        likeliest = by_llm.topk(min(CANDIDATES, by_llm.shape[-1]), -1).indices
        tokens = torch.cat([likeliest, self._ends.expand(rows, -1)], 1)
        by_llm = by_llm.gather(1, tokens)

        origins = torch.arange(rows, device=self._device).repeat_interleave(tokens.shape[1])
        is_end = torch.isin(tokens, self._ends).flatten()
        pieces = [self._lookup.places(token) for token in tokens.flatten().tolist()]
        is_known = torch.tensor([piece is not None for piece in pieces], device=self._device)
        self._continued = self._scores.written(states, origins, [piece or () for piece in pieces])
        by_ctc = torch.where(is_end, states.whole()[origins], self._continued.prefix)
        possible = (by_ctc > NEVER / 2) & (is_end | is_known)
        gained = torch.where(possible, by_ctc - states.prefix[origins], PENALTY).view(tokens.shape)

        steps = zip(names, written, tokens.tolist(), by_llm.tolist(), strict=True)
        self._steps |= {name: _Step(row, *step) for row, (name, *step) in enumerate(steps)}
        joint = (1 - self._weight) * by_llm + self._weight * gained.float()
        possible = possible.view(tokens.shape)
        # If nothing is possible, as where no end is allowed, the language model's likeliest go on.
        allowed = possible | ~possible.any(1, keepdim=True)
        # Another rule of `generate` may forbid a token.
        joint = joint.where(allowed & (by_llm > -torch.inf), -torch.inf)
        everything = torch.full(scores.shape, -torch.inf, device=scores.device)
        return everything.scatter(1, tokens.to(scores.device), joint.to(scores.device))

    def log_prob(self, clip: int, text: Text) -> float:
        """Return the log-probability of a text under the language model alone, its end included if it has one.

        Args:
            clip: number of the clip.
            text: ids of what was generated.
        """
        step = self._steps[clip, text[:-1]]
        return step.log_prob + step.log_probs[step.tokens.index(text[-1])]

    def _states(self, clips: torch.Tensor, names: Sequence[tuple[int, Text]]) -> tuple[Prefixes, list[float]]:
        """Return CTC's states of the hypotheses, and their log-probabilities under the language model."""
        if self._continued is None:
            return self._scores.empty(clips), [0.0] * len(names)
        places, written = [], []
        for clip, text in names:
            step = self._steps[clip, text[:-1]]
            # `generate` appends padding to a text that has ended. Any state will do, since its score is not used.
            column = step.tokens.index(text[-1]) if text[-1] in step.tokens else 0
            places.append(step.row * len(step.tokens) + column)
            written.append(step.log_prob + step.log_probs[column])
        return self._continued[torch.tensor(places, device=self._device)], written


class JointDecoder:
    """Makes a `JointDecoding` for each generation of a model that was aligned by CTC.

    Args:
        model: the model.
        alignment: as `saved_alignment` returns it.
        tokenizer: of the model.
        weight: of CTC, above 0 and up to 1.
    """

    def __init__(
        self,
        model: LlasoForConditionalGeneration,
        alignment: Alignment,
        tokenizer: PreTrainedTokenizerBase,
        weight: float,
    ) -> None:
        self._model, self._alignment, self.weight = model, alignment, weight
        self._lookup = PieceLookup(alignment, tokenizer)

    @torch.no_grad()
    def project(self, inputs: MutableMapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """Replace the audio of a generation's inputs by its projection, which is then not computed again.

        Returns:
            The projected vectors of each row, `(audio_tokens, hidden_size)`.
        """
        names = ("input_features", "input_features_mask")
        audio = self._model.model.get_audio_embeds(*(inputs.pop(name, None) for name in names))
        assert audio is not None
        inputs["mm_encoder_outputs"] = {"audio": LlasoAudioOutput(pooler_output=audio)}
        return audio.split(inputs["input_ids"].eq(self._model.config.audio_token_id).sum(1).tolist())

    @torch.no_grad()
    def for_audio(self, clips: Sequence[torch.Tensor]) -> JointDecoding:
        """Return the logits processor of one generation.

        Args:
            clips: projected vectors of each row's clip, `(audio_tokens, hidden_size)`.

        Raises:
            ValueError: the scores of the audio are not finite.
        """
        log_probs = [self._alignment.log_probs(clip) for clip in clips]
        if not all(bool(clip.isfinite().all()) for clip in log_probs):
            raise ValueError(
                "CTC's scores of the audio are not finite: the weights are damaged, or the scale in ctc_alignment is "
                "out of range; set the CTC weight to 0 to decode without it"
            )
        return JointDecoding(log_probs, self._lookup, end_ids(self._model), self.weight)


def joint_decoder(
    model: LlasoForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, weight: float | None
) -> JointDecoder | None:
    """Return what decodes a model's transcripts jointly; None if the language model is to decode alone.

    Args:
        model: the model.
        tokenizer: of the model.
        weight: of CTC, from 0 to 1; None for `CTC_WEIGHT` if the model was aligned, else 0.

    Raises:
        ValueError: there is no such weight, or one is given but the model was not aligned by CTC.
    """
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(f"the CTC weight is {weight}; it is a number from 0 to 1")
    if weight == 0:
        return None
    alignment = saved_alignment(model)
    if alignment is None:
        if weight is None:
            return None
        raise ValueError(
            f"the CTC weight is {weight:g}, but this model was not aligned by CTC: its config.json has no "
            "ctc_alignment. Leave the weight out, or train with optimizer.ctc_weight"
        )
    return JointDecoder(model, alignment, tokenizer, CTC_WEIGHT if weight is None else weight)
