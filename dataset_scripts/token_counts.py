"""Counts the tokens of a row after audio expansion, by the processor of the model that is to read it.

Batches by length are planned from this column alone. It is 0 if no processor was named; the reader of the row then
estimates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from llaso_common.schema import Message, Row, clean_messages


class TokenCounter:
    """Counts with a processor that has `expanded_length(messages, durations)`, as LLaSO's has.

    The processor's class is found here and travels with this object, so that worker processes need not know where it
    is defined; each opens it when it first counts.

    Args:
        name: a checkpoint's folder or its id on the Hub.

    Raises:
        ValueError: there is no processor of that name, or it cannot count.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoProcessor

        self.name = str(Path(name).resolve()) if Path(name).is_dir() else name
        try:
            self._class = type(AutoProcessor.from_pretrained(self.name))
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: no processor to count lengths with: {error}") from error
        if not hasattr(self._class, "expanded_length"):
            raise ValueError(
                f"{name}: its processor, {self._class.__name__}, does not say how long a conversation gets "
                "(no expanded_length); name a LLaSO checkpoint"
            )
        self._processor: Any = None

    def __call__(self, messages: Sequence[Mapping[str, Any]], durations: Sequence[float]) -> int:
        """Count the tokens of a row.

        Args:
            messages: the row's.
            durations: seconds of each of its clips, in reading order.

        Raises:
            ValueError: the processor does not take the row: a special token typed as text, or audio too long for it.
        """
        if self._processor is None:
            self._processor = self._class.from_pretrained(self.name)
        row: Row = {"messages": cast("list[Message]", messages)}
        return self._processor.expanded_length(clean_messages(row), durations)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled for workers: not the processor itself."""
        return {**self.__dict__, "_processor": None}
