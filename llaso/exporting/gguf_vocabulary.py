"""A tokenizer as llama.cpp reads it: a byte-level BPE with its pre-tokenizer by name, and what each token is for.

llama.cpp holds the regular expressions of pre-tokenizers in its own code and GGUF files name them. A name is given
here only to a tokenizer that splits text as llama.cpp does under that name; every other tokenizer is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from tokenizers.models import BPE

from modeling_llaso.processing_llaso import LlasoProcessor, turn_marks

LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN_2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = ("ByteLevel", False)
"""The step that writes text as bytes, without splitting it."""
WORDS = ("ByteLevel", True)
"""The step that splits text into words as GPT-2 does, and writes them as bytes."""
PRE_TOKENIZERS: dict[tuple[tuple, ...], tuple[str, bool]] = {
    (("Split", LLAMA_3_PATTERN), BYTES): ("llama-bpe", True),
    (("Split", QWEN_2_PATTERN), BYTES): ("qwen2", False),
    (("Split", TEKKEN_PATTERN), BYTES): ("tekken", True),
    (("Digits", True), WORDS): ("smollm", False),
    (WORDS,): ("gpt-2", False),
}
"""The steps of a pre-tokenizer; llama.cpp's name for it; whether llama.cpp then ignores merges for whole words."""
NO_MERGE = "<none> <none>"
"""The merge of a tokenizer that has none, since llama.cpp wants one. It never applies: nothing makes its parts."""
KNOWN = "those of Llama 3, Qwen 2 and 3, Mistral's Tekken, SmolLM and GPT-2"
MOST_ENDS = 3
"""Number of keys in a GGUF file that name a token which ends an answer: eos, eot and eom."""


@dataclass(frozen=True)
class GgufVocabulary:
    """Holds the fields of a GGUF file that describe a tokenizer.

    Attributes:
        pre: llama.cpp's name of the pre-tokenizer.
        tokens: texts by id, one for each row of the embeddings.
        types: what each token is for, as numbers of `gguf.TokenType`.
        merges: pairs of texts, the first to be merged first.
        begin: the token that begins every text, if any.
        ends: tokens that end an answer, the end of a turn first.
        suppressed: tokens that have a row and are never generated.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    begin: int | None
    ends: list[int]
    suppressed: list[int]


def gguf_vocabulary(processor: LlasoProcessor, rows: int, ends: list[int]) -> GgufVocabulary:
    """Describe a processor's tokenizer for a GGUF file.

    Args:
        processor: the model's.
        rows: number of rows of the model's embeddings.
        ends: ids at which generation ends, as in the generation config.

    Raises:
        ValueError: llaso knows no tested way to say this tokenizer in a GGUF file.
    """
    tokenizer = processor.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise ValueError(
            f"the tokenizer is a {'SentencePiece-like ' if model.get('byte_fallback') else ''}{model['type']}; the "
            f"export knows byte-level BPE only ({KNOWN})"
        )
    pre = _pre_tokenizer(tokenizer, state)
    added = {token["id"]: token for token in state["added_tokens"]}
    for token in added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise ValueError(
                f"the token {token['content']!r} takes blanks beside it (lstrip, rstrip or single_word), which "
                "llama.cpp does not do; save the tokenizer without these flags"
            )
    end_of_turn = tokenizer.convert_tokens_to_ids(turn_marks(tokenizer).assistant[1])
    ends = [end_of_turn, *(end for end in ends if end != end_of_turn)]
    if len(ends) > MOST_ENDS:
        raise ValueError(
            f"{len(ends)} tokens end an answer, the end of a turn and those in generation_config.json (eos_token_id), "
            f"and a GGUF file holds {MOST_ENDS}; leave out those the model never writes"
        )

    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for number in range(rows):
        if number not in texts:
            tokens.append(f"[UNUSED{number}]")
            types.append(TokenType.UNUSED)
            continue
        tokens.append(texts[number])
        special = number in added and added[number]["special"]
        types.append(TokenType.CONTROL if special else TokenType.USER_DEFINED if number in added else TokenType.NORMAL)
    placeholder = processor.audio_token_id
    if beyond := sorted(number for number in texts if number >= rows and number != placeholder):
        raise ValueError(
            f"the token {texts[beyond[0]]!r} has the id {beyond[0]}, but the embeddings have {rows} rows; the "
            "checkpoint's tokenizer and weights do not fit each other"
        )
    return GgufVocabulary(
        pre=pre,
        tokens=tokens,
        types=[int(kind) for kind in types],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]] or [NO_MERGE],
        begin=_begin(tokenizer),
        ends=ends,
        suppressed=[placeholder] if placeholder < rows else [],
    )


def _pre_tokenizer(tokenizer: Any, state: dict[str, Any]) -> str:
    """Find llama.cpp's name for the way that a tokenizer splits text.

    Raises:
        ValueError: it has none, or merges words differently.
    """
    found = state["pre_tokenizer"] or {"type": "no pre-tokenizer"}
    steps = tuple(map(_step, found["pretokenizers"] if found["type"] == "Sequence" else [found]))
    normalizer = (state["normalizer"] or {"type": None})["type"]
    if normalizer not in (None, "NFC") or steps not in PRE_TOKENIZERS:
        after = f" after {normalizer}" if normalizer else ""
        raise ValueError(
            f"the tokenizer splits text by {' and '.join(step[0] for step in steps)}{after} in a way for which the "
            f"export knows no pre-tokenizer of llama.cpp; it knows {KNOWN}"
        )
    name, ignores_merges = PRE_TOKENIZERS[steps]
    if bool(state["model"].get("ignore_merges")) != ignores_merges and not _merges_reach_all(state):
        does = "takes a word that is a token as that token, whatever the merges"
        raise ValueError(
            f"the tokenizer {'never ' if ignores_merges else ''}{does}, and llama.cpp does the opposite for "
            f"tokenizers that split text like {name}; some words would become other tokens"
        )
    return name


def _step(step: dict[str, Any]) -> tuple:
    """Reduce a step to a key of `PRE_TOKENIZERS`; a step with other settings gets a key that is not in it."""
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return "Split", step["pattern"].get("Regex")
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "ByteLevel", step["use_regex"]
    if step["type"] == "Digits":
        return "Digits", step["individual_digits"]
    return (json.dumps(step) if step["type"] in ("Split", "ByteLevel") else step["type"],)


def _merges_reach_all(state: dict[str, Any]) -> bool:
    """Tell whether every word of the vocabulary can be reached by merges alone."""
    model = state["model"]
    merges: Any = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    bpe = BPE(vocab=model["vocab"], merges=merges)
    added = {token["content"] for token in state["added_tokens"]}
    return all(len(bpe.tokenize(text)) == 1 for text in model["vocab"] if text not in added)


def _begin(tokenizer: Any) -> int | None:
    """The token that a tokenizer puts before a text, None if none.

    Raises:
        ValueError: it puts other tokens around a text.
    """
    ids, inner = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    if ids == inner:
        return None
    if ids[1:] != inner:
        raise ValueError(
            f"the tokenizer puts {len(ids) - len(inner)} special tokens around a text; the export knows tokenizers "
            "that begin a text with one token or with none"
        )
    return ids[0]
