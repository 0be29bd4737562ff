"""Phoneme sequences: IPA strings cut into symbols, ARPAbet written as IPA, and the paper's letter mapping."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

STRESS_MARKS = frozenset("ˈˌ")
JOINED_MODIFIERS = frozenset("ːˑʰʲʷᵊ")
"""Length and secondary articulation: part of the symbol before them, as combining marks are."""

ARPABET_TO_IPA = {
    "AA": "ɑː", "AE": "æ", "AH": "ʌ", "AO": "ɔː", "AW": "aʊ", "AX": "ə", "AXR": "ɚ", "AY": "aɪ",
    "EH": "ɛ", "ER": "ɜː", "EY": "eɪ", "IH": "ɪ", "IX": "ᵻ", "IY": "iː", "OW": "oʊ", "OY": "ɔɪ",
    "UH": "ʊ", "UW": "uː", "UX": "ʉ",
    "B": "b", "CH": "tʃ", "D": "d", "DH": "ð", "DX": "ɾ", "EL": "əl", "EM": "əm", "EN": "ən", "F": "f",
    "G": "ɡ", "HH": "h", "H": "h", "JH": "dʒ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "NX": "ŋ",
    "P": "p", "Q": "ʔ", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "V": "v", "W": "w", "WH": "w",
    "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
"""ARPAbet (CMU and TIMIT) in the transcription espeak-ng uses for American English. `AH0` is the schwa."""

_ARPABET_TOKEN = re.compile(r"([A-Za-z]{1,3})([0-2])?")
_TOKEN_SEPARATORS = re.compile(r"[\s/,;.|\-]+")

TIMIT_61_TO_39 = {
    0: 3, 1: 1, 2: 5, 3: 3, 4: 4, 5: 5, 6: 5, 7: 22, 8: 8, 9: 9, 10: 27, 11: 11, 12: 12,
    13: 27, 14: 14, 15: 15, 16: 16, 17: 36, 18: 37, 19: 38, 20: 39, 21: 27, 22: 22, 23: 23, 24: 24, 25: 25,
}  # fmt: skip
"""The authors' map, which their script applies to the positions of the letters A-Z."""


def arpabet_to_ipa(text: str) -> str | None:
    """Return `text` as IPA if it is ARPAbet, else None.

    A text is ARPAbet if every token between blanks and separators is an ARPAbet symbol, none of them repeats
    more than one case, and at least one symbol has two letters; so no ordinary sentence is taken for it.
    """
    tokens = [token for token in _TOKEN_SEPARATORS.split(text.strip()) if token]
    letters = "".join(tokens)
    if len(tokens) < 2 or not (letters.isupper() or letters.islower()):
        return None
    symbols = []
    long_symbols = 0
    for token in tokens:
        match = _ARPABET_TOKEN.fullmatch(token)
        if match is None or match[1].upper() not in ARPABET_TO_IPA:
            return None
        name = match[1].upper()
        long_symbols += len(name) > 1
        symbols.append("ə" if name == "AH" and match[2] == "0" else ARPABET_TO_IPA[name])
    return "".join(symbols) if long_symbols else None


@lru_cache(maxsize=20_000)
def ipa_symbols(text: str) -> tuple[str, ...]:
    """Cut an IPA string into its symbols.

    NFD; white space, punctuation, symbols and stress marks are dropped; combining marks and the modifiers
    ː ˑ ʰ ʲ ʷ ᵊ join the symbol before them.
    """
    symbols: list[str] = []
    for character in unicodedata.normalize("NFD", text):
        category = unicodedata.category(character)
        if category.startswith("M") or character in JOINED_MODIFIERS:
            if symbols:
                symbols[-1] += character
        elif character in STRESS_MARKS or character.isspace() or category[0] in "PSZ":
            continue
        else:
            symbols.append(character)
    return tuple(symbols)


def paper_letters(text: str) -> tuple[int, ...]:
    """Return the authors' phoneme sequence: letters A-Z of the upper-cased text, mapped through TIMIT 61->39."""
    return tuple(TIMIT_61_TO_39[ord(letter) - ord("A")] for letter in text.upper() if "A" <= letter <= "Z")
