"""Reports progress and the time left: of training, the encoder cache and the quickstart."""

from __future__ import annotations

import time
from collections.abc import Callable

Report = Callable[[str], None]
"""Takes one line of progress."""


def time_in_words(seconds: float) -> str:
    """Write a duration as `45 s`, `3 min 10 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def progress_report(what: str, report: Report, every: float) -> Callable[[int, int], None]:
    """Return a function of (done, total) that reports a line at most every `every` seconds, and one at the end.

    The time left follows from the speed since the first call: what was done before, and the start, do not count.
    """
    last = time.perf_counter()
    first: tuple[int, float] | None = None

    def show(done: int, total: int) -> None:
        nonlocal last, first
        now = time.perf_counter()
        first = first or (done, now)
        if done and (done >= total or now - last >= every):
            last = now
            since, seconds = done - first[0], now - first[1]
            left = f"  {time_in_words(seconds / since * (total - done))} left" if since and done < total else ""
            report(f"{what} {done:,}/{total:,}{left}")

    return show
