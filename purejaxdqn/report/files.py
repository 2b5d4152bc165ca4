"""Writes the files of a report, each one wholly or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from plotly import graph_objects
from rich.console import Console

from purejaxdqn.storage.files import replace_file


def save_summary(facts: dict[str, Any], folder: Path) -> Path:
    """Writes `summary.json` into a folder, and returns its path."""
    path = folder / "summary.json"
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n")
    return path


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Writes `stem.png` and `stem.svg`, and returns their paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        with replace_file(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return paths


def save_page(figure: graph_objects.Figure, path: Path) -> Path:
    """Writes a page that needs no network, of some 5 MB, and returns its path."""
    with replace_file(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True, config={"displaylogo": False})
    return path


def print_files(folder: Path, console: Console) -> None:
    """Prints which files lie in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    console.print(f"written to {folder}: {', '.join(names)}")
