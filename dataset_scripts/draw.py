"""Draws at random without a state: a draw depends on the seed, an id and the name of the draw only.

So a row comes out the same whatever was built before it, in whichever process, and however often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")
_BITS = 64


def integer(seed: int, id: str, what: str) -> int:
    """Draw a whole number from 0 to 2**64 - 1."""
    return int.from_bytes(blake2b(f"{seed}\0{what}\0{id}".encode(errors="surrogateescape"), digest_size=8).digest())


def unit(seed: int, id: str, what: str) -> float:
    """Draw a number in [0, 1)."""
    return (integer(seed, id, what) >> 11) / (1 << _BITS - 11)


def between(seed: int, id: str, what: str, low: float, high: float) -> float:
    """Draw a number in [low, high)."""
    return low + (high - low) * unit(seed, id, what)


def pick(seed: int, id: str, what: str, options: Sequence[T]) -> T:
    """Draw one of the options, all equally likely."""
    return options[integer(seed, id, what) % len(options)]


def weighted(seed: int, id: str, what: str, weights: Mapping[str, float]) -> str:
    """Draw one of the keys, in proportion to its weight."""
    assert weights, f"nothing to draw {what} of {id} from"
    point = unit(seed, id, what) * sum(weights.values())
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return key


def shuffled(seed: int, id: str, what: str, options: Sequence[T]) -> list[T]:
    """Return the options in a random order."""
    order = sorted(range(len(options)), key=lambda index: integer(seed, id, f"{what}/{index}"))
    return [options[index] for index in order]
