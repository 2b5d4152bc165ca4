"""Deep Q-learning research in pure JAX: many seeds at once, one readable file per algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purejaxdqn.storage.results import load as load
    from purejaxdqn.sweep.rerun import rerun as rerun

__all__ = ["load", "rerun"]


def __getattr__(name: str) -> Any:
    # Only when asked for, as they bring whole libraries with them.
    if name == "load":
        from purejaxdqn.storage.results import load

        return load
    if name == "rerun":
        from purejaxdqn.sweep.rerun import rerun

        return rerun
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
