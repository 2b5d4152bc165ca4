"""Writes the files of a report, each one wholly or not at all."""

from __future__ import annotations

import gzip
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purejaxdqn.runtime.console import make_console
from purejaxdqn.storage.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as Page

FILM_NAME = "policy.gif"
_BUNDLE = Path(__file__).parent / "assets" / "plotly-basic.min.js.gz"
_BASIC = {"scatter", "bar", "pie"}  # what it draws


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
    """Writes a page that needs no network, and returns its path.

    Lines, bars and pies are drawn by plotly's basic bundle, of 1.2 MB; a page with other charts
    holds all of plotly, of 4.8 MB.
    """
    is_basic = {trace.type for trace in figure.data} <= _BASIC
    page = figure.to_html(include_plotlyjs=not is_basic, config={"displaylogo": False})
    head = f"<title>{html.escape(figure.layout.title.text or path.stem)}</title>"
    if is_basic:
        head += f"<script>{gzip.decompress(_BUNDLE.read_bytes()).decode()}</script>"
    with replace_file(path) as temporary:
        temporary.write_text(page.replace("</head>", f"{head}</head>", 1), "utf-8")
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
