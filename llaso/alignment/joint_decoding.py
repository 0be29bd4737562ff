"""Decodes with the language model and the alignment together, so that a transcript keeps to what was heard.

A language model alone writes what is likely: another word in place of a rare one, or one phrase for ever. Here each
hypothesis of a beam search also has the probability, by CTC, that the audio says it (Watanabe et al., 2017, "Hybrid
CTC/attention architecture for end-to-end speech recognition").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from .alignment import Alignment
from .short_pieces import ShortPieces

NEVER = -1e4
"""Log-probability of what the audio cannot say: finite, so that differences of two of them are."""
CANDIDATES = 40
"""Next tokens of each hypothesis, the language model's likeliest, that the audio is asked about."""


Text = tuple[int, ...]
"""Ids of generated tokens."""


class HeardTokens:
    """Tells which of an alignment's tokens write a token of the language model.

    Args:
        alignment: of the model.
        tokenizer: of the model.
    """

    def __init__(self, alignment: Alignment, tokenizer: PreTrainedTokenizerBase) -> None:
        merges = alignment.merges
        self._pieces = None if merges is None else ShortPieces(tokenizer, merges)
        places = {token: place for place, token in enumerate(alignment.competing.tolist())}
        self.blank = places.pop(alignment.blank)
        self._places = places
        self._known: dict[int, list[int] | None] = {}

    def places(self, token: int) -> list[int] | None:
        """Return the places of a token's pieces among the competing tokens; None if the audio cannot say it."""
        if token not in self._known:
            pieces = [token] if self._pieces is None else self._pieces.split(torch.tensor([token])).tolist()
            known = all(piece in self._places for piece in pieces)
            self._known[token] = [self._places[piece] for piece in pieces] if known else None
        return self._known[token]


@dataclass(frozen=True)
class Prefixes:
    """Texts that begin a transcript, with what CTC's forward algorithm knows of each.

    Attributes:
        clips: number of each text's clip, `(texts,)`.
        token: log-probability of all paths that have written the text by then and end in its last token, by number of
            vectors read, `(texts, vectors + 1)`.
        blank: the same of those that end in a blank.
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
    """Computes how likely the audio of some clips begins with a text, token by token.

    Args:
        log_probs: of each clip's vectors, `(vectors, competing)`, as `Alignment.log_probs` returns them.
        blank: place of the blank among the competing tokens.
    """

    def __init__(self, log_probs: Sequence[torch.Tensor], blank: int) -> None:
        doubles = [clip.detach().double() for clip in log_probs]
        padded = nn.utils.rnn.pad_sequence(doubles, batch_first=True, padding_value=NEVER).clamp(min=NEVER)
        for clip, own in zip(padded, log_probs, strict=True):
            clip[len(own) :, blank] = 0.0  # beyond its end a clip says nothing more, for certain
        self.blank = blank
        self._sums = nn.functional.pad(padded.cumsum(1), (0, 0, 1, 0))  # (clips, vectors + 1, competing)

    def empty(self, clips: torch.Tensor) -> Prefixes:
        """Return the empty text of each of these clips."""
        blank = self._sums[clips, :, self.blank]
        return Prefixes(
            clips, torch.full_like(blank, -torch.inf), blank, torch.full_like(clips, -1), torch.zeros_like(blank[:, 0])
        )

    def extended(self, texts: Prefixes, tokens: torch.Tensor) -> Prefixes:
        """Return each text with one token more.

        The recursion over vectors, `r[t] = p[t] (r[t - 1] + entering[t - 1])`, is solved at once: divided by the
        product of `p` up to `t`, it is a sum.

        Args:
            texts: to go on from.
            tokens: places among the competing ones, `(texts,)`.
        """
        said, silent = self._sums[texts.clips, :, tokens], self._sums[texts.clips, :, self.blank]
        repeated = (texts.last == tokens)[:, None]  # after the same token only a blank makes it heard twice
        entering = torch.where(repeated, texts.blank, torch.logaddexp(texts.token, texts.blank))
        token = _forward(entering, said)
        first_said = entering[:, :-1] + said[:, 1:] - said[:, :-1]
        return Prefixes(texts.clips, token, _forward(token, silent), tokens, torch.logsumexp(first_said, 1))

    def written(self, texts: Prefixes, origins: torch.Tensor, tokens: Sequence[Sequence[int]]) -> Prefixes:
        """Return texts with several tokens more; what continuations have in common is computed once.

        Args:
            texts: to go on from.
            origins: which of them each result goes on from, `(results,)`.
            tokens: places of each result's new tokens.
        """
        lengths = torch.tensor([len(new) for new in tokens], device=origins.device)
        new = [torch.tensor(one, dtype=torch.long, device=origins.device) for one in tokens]
        padded = nn.utils.rnn.pad_sequence(new, True)
        at, pool = origins.clone(), texts
        for place in range(padded.shape[1]):
            going_on = (lengths > place).nonzero()[:, 0]
            pairs = torch.stack([at[going_on], padded[going_on, place]])
            (source, token), inverse = pairs.unique(dim=1, return_inverse=True)
            at[going_on] = len(pool.clips) + inverse
            more = self.extended(pool[source], token)
            pool = Prefixes(*(torch.cat(both) for both in zip(vars(pool).values(), vars(more).values(), strict=True)))
        return pool[at]


def _forward(entering: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Solve `r[t] = p[t] (r[t - 1] + entering[t - 1])`, `r[0] = 0`, in logarithms; `sums[t]` is of `log p` up to t."""
    inner = torch.logcumsumexp(entering[:, :-1] - sums[:, :-1], 1)
    return nn.functional.pad(sums[:, 1:] + inner, (1, 0), value=-torch.inf)


@dataclass(frozen=True)
class _Step:
    """One hypothesis at one step of decoding.

    Attributes:
        place: its row in the batch.
        by_llm: its log-probability by the language model.
        tokens: ids of the candidates to follow.
        chances: their log-probabilities by the language model.
    """

    place: int
    by_llm: float
    tokens: list[int]
    chances: list[float]


class JointDecoding(LogitsProcessor):
    """Weighs the next tokens of each hypothesis by the language model and by what the audio says.

    For one call of `generate`, with beams or greedy. The scores along a hypothesis add up to `1 - weight` times its
    log-probability by the language model and `weight` times that by CTC, its end included; so there is no need for a
    length penalty. Tokens that the audio cannot say, such as letters that no transcript of the training has, are not
    written.

    Args:
        log_probs: of each clip's vectors, `(vectors, competing)`.
        heard: tells how the audio writes a token.
        ends: ids of the tokens that end an answer.
        weight: of what the audio says, from 0 to 1.
    """

    def __init__(
        self, log_probs: Sequence[torch.Tensor], heard: HeardTokens, ends: Sequence[int], weight: float
    ) -> None:
        self._heard, self._weight, self._clips = heard, weight, len(log_probs)
        # In double precision, which not every device has.
        self._device = torch.device("cuda" if log_probs[0].is_cuda else "cpu")
        self._scores = PrefixScores([clip.to(self._device) for clip in log_probs], heard.blank)
        self._ends = torch.tensor(ends, device=self._device)
        self._prompt: int | None = None
        self._steps: dict[tuple[int, Text], _Step] = {}
        self._continued: Prefixes | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
        rows = len(input_ids)
        clips = torch.arange(rows, device=self._device) // (rows // self._clips)
        texts: list[Text] = [tuple(row) for row in input_ids[:, self._prompt :].tolist()]
        named = list(zip(clips.tolist(), texts, strict=True))
        states, by_llm = self._states(clips, named)

        chances = scores.float().log_softmax(-1).to(self._device)
        likeliest = chances.topk(min(CANDIDATES, chances.shape[-1]), -1).indices
        tokens = torch.cat([likeliest, self._ends.expand(rows, -1)], 1)
        chances = chances.gather(1, tokens)

        origins = torch.arange(rows, device=self._device).repeat_interleave(tokens.shape[1])
        ends = torch.isin(tokens, self._ends).flatten()
        pieces = [self._heard.places(token) for token in tokens.flatten().tolist()]
        self._continued = self._scores.written(states, origins, [piece or () for piece in pieces])
        unheard = torch.tensor([piece is None for piece in pieces], device=self._device)
        said = torch.where(ends, states.whole()[origins], self._continued.prefix)
        possible = said.isfinite() & (ends | ~unheard)
        gained = torch.where(possible, said - states.prefix[origins], NEVER).view(tokens.shape).clamp(min=NEVER)

        self._steps |= {
            name: _Step(place, number, row, chance)
            for place, (name, number, row, chance) in enumerate(
                zip(named, by_llm, tokens.tolist(), chances.tolist(), strict=True)
            )
        }
        joint = (1 - self._weight) * chances + self._weight * gained.float()
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.to(scores.device), joint.to(scores))

    def log_prob(self, clip: int, text: Text) -> float:
        """Return the log-probability of a text, its end included if it has one, by the language model alone.

        Args:
            clip: number of the clip.
            text: ids of what was generated.
        """
        if not text:
            return 0.0
        step = self._steps[clip, text[:-1]]
        return step.by_llm + step.chances[step.tokens.index(text[-1])]

    def _states(self, clips: torch.Tensor, named: Sequence[tuple[int, Text]]) -> tuple[Prefixes, list[float]]:
        """Return what is known of the texts that the last call's have become, and their log-probabilities."""
        if self._continued is None:
            return self._scores.empty(clips), [0.0] * len(named)
        places, by_llm = [], []
        for clip, text in named:
            step = self._steps[clip, text[:-1]]
            # A hypothesis of no chance may have any token; what is known of it does not matter.
            column = step.tokens.index(text[-1]) if text[-1] in step.tokens else 0
            places.append(step.place * len(step.tokens) + column)
            by_llm.append(step.by_llm + step.chances[column])
        return self._continued[torch.tensor(places, device=self._device)], by_llm
