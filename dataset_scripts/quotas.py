"""Divides a total into quotas by weight; no quota exceeds what is available, and the quotas add up to the total."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")


def allocate(total: int, weights: Mapping[K, float], available: Mapping[K, int]) -> dict[K, int]:
    """Share `total` among keys in proportion to their weights, as far as each has enough.

    What a key cannot supply goes to the others, again by weight; remainders go to the largest fractions, then to the
    earlier keys (largest-remainder method).

    Args:
        total: how many there are to share out.
        weights: weight of each key, above 0.
        available: the most that each key can take.

    Returns:
        Whole numbers by key, in the order of `weights`, that sum to min(total, sum of available).
    """
    quota = dict.fromkeys(weights, 0)
    left = min(total, sum(available[key] for key in weights))
    while left:
        open_keys = [key for key in weights if quota[key] < available[key]]
        scale = left / sum(weights[key] for key in open_keys)
        shares = {key: min(weights[key] * scale, available[key] - quota[key]) for key in open_keys}
        if any(weights[key] * scale > available[key] - quota[key] for key in open_keys):
            # Some are full: settle those first, and divide the rest again.
            for key, share in shares.items():
                if share == available[key] - quota[key]:
                    quota[key] += int(share)
                    left -= int(share)
            continue
        for key, share in shares.items():
            quota[key] += int(share)
            left -= int(share)
        by_fraction = sorted(open_keys, key=lambda key: int(shares[key]) - shares[key])  # stable: largest first
        for key in [key for key in by_fraction if quota[key] < available[key]][:left]:
            quota[key] += 1
            left -= 1
    return quota
