"""Libraries that only some commands need, asked for by name before any work is done."""

import importlib.util
from collections.abc import Sequence

from hf_tinyformer.errors import ExportError


def require_libraries(modules: Sequence[str], *, extra: str, purpose: str) -> None:
    """Refuse, before any work is done, if a library is missing.

    Args:
        modules: Names to import.
        extra: Name of the optional dependencies in pyproject.toml that bring them.
        purpose: What needs them, as the user typed it.

    Raises:
        ExportError: If one of them is not installed.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ExportError(
            f"{purpose} needs {', '.join(modules)}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed. "
            f"Run: pip install 'hf-tinyformer[{extra}]'"
        )
