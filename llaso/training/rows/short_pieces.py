"""Splits tokens into the shorter pieces that the first merges of a tokenizer make.

A tokenizer of an LLM writes most words as one token each. A few hours of speech say most of these tokens once or
never, and a token that no training row has cannot be aligned with its sound. The first merges of byte-pair encoding
make the commonest pieces of words, so that a few hundred of them write every word, and each is heard often.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

NO_TEXT: dict[str, Any] = {
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
}
"""Leaves of a tokenizer what merges the characters of one token."""


class ShortPieces:
    """Splits tokens into pieces of the same vocabulary, so that their text stays the same.

    Args:
        tokenizer: of the LLM.
        merges: number of pieces of two characters or more that a transcript may have, the first that the tokenizer
            merges; 0 leaves single characters.

    Raises:
        ValueError: the tokenizer merges no pieces; it is no byte-pair encoding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, merges: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        written: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
        model: dict[str, Any] = written.get("model", {})
        if model.get("type") != "BPE":
            raise ValueError(
                f"optimizer.ctc_merges splits the tokens of byte-pair encoding (BPE), but the LLM's tokenizer is "
                f"{model.get('type') or type(tokenizer).__name__}; set optimizer.ctc_merges=null"
            )
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        made = list(dict.fromkeys("".join(pair) for pair in pairs))  # several pairs may make one piece
        kept = set(made[:merges])
        model["merges"] = [pair for pair in pairs if "".join(pair) in kept]
        model["ignore_merges"] = False  # otherwise a token that is in the vocabulary stays whole
        self._tokens = {number: token for token, number in model["vocab"].items()}
        self._merger = Tokenizer.from_str(json.dumps(written | NO_TEXT))
        self._pieces: dict[int, list[int]] = {}

    def split(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the ids of the pieces of all tokens, in their order, `(pieces,)`.

        Args:
            tokens: ids, `(tokens,)`.
        """
        return torch.tensor([piece for token in tokens.tolist() for piece in self._of(token)], dtype=tokens.dtype)

    def _of(self, token: int) -> list[int]:
        if token not in self._pieces:
            text = self._tokens.get(token)
            pieces = [] if text is None else self._merger.encode(text).ids
            whole = "".join(self._tokens[piece] for piece in pieces) == text
            self._pieces[token] = pieces if whole else [token]
        return self._pieces[token]
