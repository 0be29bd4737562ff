"""Splits tokens into the shorter pieces that the first merges of a tokenizer make.

A tokenizer of an LLM writes most words as one token each. A few hours of speech say most of these tokens once or
never, and a token that no training row has cannot be aligned with its sound. The first merges of byte-pair encoding
make the commonest pieces of words, so that a few hundred of them write every word, and each is heard often.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

MERGES_ALONE: dict[str, Any] = {
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
}
"""Takes everything out of a tokenizer except its merges, so that it takes a token as the vocabulary spells it."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A token that stands for one byte of a character that the vocabulary lacks."""


class ShortPieces:
    """Splits tokens into pieces of the same vocabulary, so that their text stays the same.

    Args:
        tokenizer: of the LLM.
        merges: how many pieces of two characters or more to use: the first that the tokenizer's merges make; 0 uses
            single characters.

    Attributes:
        merges: as given.

    Raises:
        ValueError: the tokenizer is not of byte-pair encoding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, merges: int) -> None:
        fast = isinstance(tokenizer, PreTrainedTokenizerFast)
        written = json.loads(tokenizer.backend_tokenizer.to_str()) if fast else {}
        model = written.get("model", {})
        if model.get("type") != "BPE":
            kind = model.get("type") or type(tokenizer).__name__
            raise ValueError(
                "optimizer.ctc_merges, which a checkpoint keeps as merges of its ctc_alignment, splits the tokens of "
                f"byte-pair encoding (BPE), but the LLM's tokenizer is {kind}; "
                "set optimizer.ctc_merges=null in a recipe, or give the checkpoint its own tokenizer"
            )
        self.merges = merges
        made = dict.fromkeys("".join(pair) for pair in model["merges"])  # several pairs may make one piece
        kept = set(itertools.islice(made, merges))
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) in kept]
        model["ignore_merges"] = False  # otherwise a token that is in the vocabulary stays whole
        added = {token["id"] for token in written["added_tokens"]}
        self._texts = {
            number: text
            for text, number in model["vocab"].items()
            if number not in added and not (model["byte_fallback"] and BYTE.fullmatch(text))
        }
        self._merger = Tokenizer.from_str(json.dumps(written | MERGES_ALONE))
        self._pieces: dict[int, list[int]] = {}

    def split(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the ids of the pieces of all tokens, in their order, `(pieces,)`.

        Special tokens, and tokens that stand for single bytes, stay whole.

        Args:
            tokens: ids, `(tokens,)`.
        """
        return torch.tensor(
            [piece for token in tokens.tolist() for piece in self._pieces_of(token)], dtype=tokens.dtype
        )

    def _pieces_of(self, token: int) -> list[int]:
        if token not in self._pieces:
            text = self._texts.get(token)
            pieces = [token] if text is None else self._merger.encode(text).ids
            same = "".join(self._texts.get(piece, "") for piece in pieces) == text
            self._pieces[token] = pieces if same else [token]
        return self._pieces[token]
