"""Registers LLaSO with transformers' Auto classes once they have been imported, and not before.

Importing the Auto classes takes seconds, which `llaso --help` should not wait for. So a finder watches transformers'
modules, and registers the LLaSO classes as soon as their Auto module is whole and nothing watched is still half
imported: transformers' modules import each other, and our own files import them, in any order.
"""

from __future__ import annotations

import sys
import threading
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


class _Watcher(threading.local):
    """A meta-path finder that finds nothing itself: it lets a watched module load as usual, then registers.

    Of two threads that import at a time, each counts its own modules.
    """

    def __init__(self) -> None:
        self.under_way = 0  # watched modules that are being executed, one inside the other
        self.waiting: list[str] = []  # Auto modules that are whole and have not been registered with

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("transformers.") and name not in OWN:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
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
