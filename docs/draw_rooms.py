"""Draws the rooms of the package and their imports into docs/rooms.svg, from the code itself.

python docs/draw_rooms.py
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "rooms.svg"
GROUND = ("checks", "types")  # every other room imports one of them: drawn without arrows
WIDTH, HEIGHT = 1.6, 0.62  # of a box


class Rooms(NamedTuple):
    """What the picture shows.

    Attributes:
      imports: the rooms that each room imports, sorted.
      floors: how many rooms a room stands above the ground, counted along the longest way.
      lines: lines of code of each room.
    """

    imports: dict[str, list[str]]
    floors: dict[str, int]
    lines: dict[str, int]


def read_rooms() -> Rooms:
    """Reads the rooms from the package, as the test of its imports does."""
    reading = runpy.run_path(str(ROOT / "tests" / "docs" / "test_imports.py"))
    sources = reading["package"]()
    imports = {
        room: sorted(below)
        for room, below in sorted(reading["arrows"](sources).items())
        if not room.startswith("_")
    }
    lines = dict.fromkeys(imports, 0)
    for module, source in sources.items():
        room = reading["room"](module)
        if room in lines:
            lines[room] += len(source.splitlines())
    floors: dict[str, int] = {}

    def floor(room: str) -> int:
        below = [name for name in imports[room] if name not in GROUND]
        floors.setdefault(room, 0 if room in GROUND else 1 + max(map(floor, below), default=0))
        return floors[room]

    for room in imports:
        floor(room)
    return Rooms(imports, floors, lines)


def reached_from(rooms: Rooms, room: str) -> set[str]:
    """Collects the rooms that a room imports, and those that these import, down to the ground."""
    below = set(rooms.imports[room])
    return below.union(*(reached_from(rooms, name) for name in below))


def place_rooms(rooms: Rooms) -> dict[str, tuple[float, float]]:
    """Places each room: its floor upwards, and sideways near the rooms that it imports."""
    places: dict[str, tuple[float, float]] = {}
    for level in range(1, 1 + max(rooms.floors.values())):
        wanted = []
        for room in (name for name, at in rooms.floors.items() if at == level):
            below = [places[name][0] for name in rooms.imports[room] if name in places]
            wanted.append((sum(below) / len(below) if below else 0.0, room))
        wanted.sort()
        for i, (x, room) in enumerate(wanted):
            beside = (i - (len(wanted) - 1) / 2) * 1.9
            places[room] = (beside if len(wanted) > 1 else x, 1.35 * level)
    return places


def draw(rooms: Rooms) -> Figure:
    """Draws the rooms as boxes, floor above floor, and an arrow for each import.

    An arrow is dotted where others lead to the same room on a longer way.
    """
    places = place_rooms(rooms)
    top = max(y for _, y in places.values()) + 1.0
    figure = Figure(figsize=(10, 8.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-6.6, 6.6)
    axes.set_ylim(-0.6, top)
    axes.axis("off")
    colours = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for i, (room, (x, y)) in enumerate(places.items()):
        colour = colours[2 * i % 20 + (2 * i // 20) % 2]
        axes.add_patch(_box(x - WIDTH / 2, y, WIDTH, HEIGHT, colour))
        _name(axes, x, y, room, rooms.lines[room])
        further = set().union(*(reached_from(rooms, name) for name in rooms.imports[room]))
        for below in rooms.imports[room]:
            if below not in GROUND:
                _arrow(axes, (x, y), places[below], colour, is_dotted=below in further)
    for x, room, told in zip((-2.85, 2.85), GROUND, ("needs no JAX", "stands on it"), strict=True):
        axes.add_patch(_box(x - 2.75, 0.0, 5.5, HEIGHT, "0.4"))
        _name(axes, x, 0, room, rooms.lines[room], f"; {told}; below every other room")
    return figure


def _box(x: float, y: float, width: float, height: float, colour: Any) -> FancyBboxPatch:
    style = "round,pad=0,rounding_size=0.08"
    return FancyBboxPatch(
        (x, y), width, height, boxstyle=style, facecolor="white", edgecolor=colour, lw=2, zorder=2
    )


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], colour: Any, is_dotted: bool
) -> None:
    aside = 0.5 * max(-1.0, min(1.0, (end[0] - start[0]) / 3))
    arrow = FancyArrowPatch(
        (start[0] + aside, start[1]),
        (end[0] - aside, end[1] + HEIGHT),
        arrowstyle="-|>",
        mutation_scale=9 if is_dotted else 14,
        color=colour,
        lw=0.8 if is_dotted else 1.8,
        linestyle=":" if is_dotted else "-",
        connectionstyle="arc3,rad=0.08" if is_dotted else "arc3",
        zorder=1,
    )
    axes.add_patch(arrow)


def _name(axes: Any, x: float, y: float, room: str, lines: int, more: str = "") -> None:
    options = {"ha": "center", "va": "center", "zorder": 3}
    axes.text(x, y + 0.40, room, weight="bold", size=11, **options)
    axes.text(x, y + 0.17, f"about {round(lines, -2) or lines:,} lines{more}", size=8, **options)


def main() -> None:
    """Draws the picture, and keeps in its description what it shows."""
    rooms = read_rooms()
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "rooms", "font.family": "sans-serif"}
    description = json.dumps(rooms._asdict(), sort_keys=True)
    draw(rooms).savefig(PICTURE, metadata={"Date": None, "Description": description})
    print(f"written: {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
