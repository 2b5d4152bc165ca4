"""Makes dataclasses pytrees, also those that are declared, or made, before JAX is imported."""

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)
_waiting: list[tuple[type, Sequence[str], Sequence[str]]] = []


def register_pytree(kind: Kind, leaves: Sequence[str], static: Sequence[str]) -> Kind:
    """Makes a dataclass a pytree whose leaves are some of its fields, and returns it.

    Without JAX it waits: as soon as somebody imports JAX, the class is a pytree. So settings can be
    declared and checked without JAX, and whoever has JAX finds their leaves.
    """
    _waiting.append((kind, leaves, static))
    if hasattr(sys.modules.get("jax"), "tree_util"):
        _register_all()
    return kind


def _register_all() -> None:
    import jax  # it is there already

    while _waiting:
        kind, leaves, static = _waiting.pop()
        jax.tree_util.register_dataclass(kind, data_fields=leaves, meta_fields=static)


class _AtImport:
    """Finds JAX where Python does, for the first of all to import it, and registers after that."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        found = importlib.machinery.PathFinder.find_spec(name, path) if name == "jax" else None
        loader: Any = None if found is None else found.loader
        if loader is not None:
            load = loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register_all()

            loader.exec_module = load_and_register
        return found


if "jax" not in sys.modules:
    sys.meta_path.insert(0, _AtImport)  # type: ignore[arg-type]
