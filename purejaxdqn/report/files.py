"""Writes the files of a report, each one wholly or not at all."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from plotly.graph_objects import Figure as Page

from purejaxdqn.runtime.console import make_console
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


def save_page(figure: Page, path: Path) -> Path:
    """Writes a page that needs no network, of some 5 MB, and returns its path."""
    with replace_file(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True, config={"displaylogo": False})
    return path


def save_report(
    folder: Path, facts: dict[str, Any], figures: dict[str, Figure], pages: dict[str, Page]
) -> None:
    """Writes a summary, and figures and pages by name; prints which files lie in the folder."""
    save_summary(facts, folder)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    for name, page in pages.items():
        save_page(page, folder / f"{name}.html")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    make_console().print(f"written to {folder}: {', '.join(names)}")
