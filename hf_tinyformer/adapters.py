"""Tell PEFT which layers to adapt by default, whether it is imported before or after this package.

PEFT keeps the defaults in tables by `model_type` and offers no way to register one, so the tables
themselves get an entry. The projections have Llama's names, so Llama's defaults are ours.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig

TABLES = "peft.utils.constants"
"""The module of PEFT that holds the tables, one for each method."""

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""The linear layers of a block. A method whose defaults are other layers gets no entry."""


def _add_defaults(constants: ModuleType) -> None:
    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict):
            names = table.get("llama")
            if isinstance(names, list) and set(names) <= PROJECTIONS:
                table.setdefault(TinyFormerConfig.model_type, list(names))


class _TablesFinder(MetaPathFinder):
    """Waits for PEFT to import its tables, and adds to them once they are there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the tables' module as Python would; leave every other name to the next finder."""
        if fullname != TABLES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            fill = spec.loader.exec_module

            def fill_and_add(module: ModuleType) -> None:
                fill(module)
                _add_defaults(module)

            spec.loader.exec_module = fill_and_add  # type: ignore[method-assign]
        return spec


def register_with_peft() -> None:
    """Make `LoraConfig()` without `target_modules` work, now or once PEFT is imported.

    PEFT itself is not imported: it takes seconds, and most programs never need it.
    """
    if TABLES in sys.modules:
        _add_defaults(sys.modules[TABLES])
    elif not any(isinstance(finder, _TablesFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TablesFinder())
