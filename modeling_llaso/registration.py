"""Registers LLaSO with transformers' Auto classes once they have been imported, and not before.

Importing the Auto classes takes seconds, which `llaso --help` should not wait for. So a finder watches for their
modules, and registers the LLaSO classes that belong to them as soon as nothing watched is still half imported: the
Auto modules import each other, and our own files import them, in either order.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_config(auto: ModuleType) -> None:
    from .configuration_llaso import LlasoConfig

    auto.AutoConfig.register(LlasoConfig.model_type, LlasoConfig, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    from .configuration_llaso import LlasoConfig
    from .modeling_llaso import LlasoForConditionalGeneration, LlasoModel

    auto.AutoModel.register(LlasoConfig, LlasoModel, exist_ok=True)
    auto.AutoModelForMultimodalLM.register(LlasoConfig, LlasoForConditionalGeneration, exist_ok=True)
    auto.AutoModelForSeq2SeqLM.register(LlasoConfig, LlasoForConditionalGeneration, exist_ok=True)


def _register_processor(auto: ModuleType) -> None:
    from .configuration_llaso import LlasoConfig
    from .processing_llaso import LlasoProcessor

    auto.AutoProcessor.register(LlasoConfig, LlasoProcessor, exist_ok=True)


REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processor,
}
OWN = tuple(f"{__package__}.{name}" for name in ("configuration_llaso", "modeling_llaso", "processing_llaso"))


class _Watcher:
    """A meta-path finder that finds nothing itself: it lets a watched module load as usual, then registers."""

    def __init__(self) -> None:
        self.under_way = 0  # watched modules that are being executed, one inside the other
        self.waiting: list[str] = []  # Auto modules that are whole and have not been registered with

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in REGISTRATIONS and name not in OWN:
            return None
        sys.meta_path.remove(self)  # so that the real finders answer
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            self.under_way += 1
            try:
                execute(module)
                if name in REGISTRATIONS:
                    self.waiting.append(name)
                while self.waiting and self.under_way == 1:
                    ready = self.waiting.pop(0)
                    REGISTRATIONS[ready](sys.modules[ready])
            finally:
                self.under_way -= 1

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_on_import() -> None:
    """Register what is imported already; watch for the rest."""
    for name, register in REGISTRATIONS.items():
        if name in sys.modules:
            register(sys.modules[name])
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
