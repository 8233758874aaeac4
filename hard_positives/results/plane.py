"""Models in the plane of original accuracy and brittleness, so that no badge lies over another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

from hard_positives.results.figures import percent

LEFT, TOP, WIDTH, HEIGHT = 45, 10, 300, 270  # of the plane, in units of the drawing
OVERHANG = 10  # of a badge over the edge of the plane
BADGE_HEIGHT = 16
Box = tuple[float, float, float, float]  # centre, width, height


@dataclass(frozen=True)
class Mark:
    """A model in the plane.

    Attributes:
        text: On its badge.
        title: What the badge stands for, and its figures.
        x: Of its figures.
        y: Of its figures.
        badge: Centre, width and height: there if free, else near, with a line to it.
        across: The ends of the interval of original accuracy, or None.
        along: The ends of the interval of brittleness, or None.
    """

    text: str
    title: str
    x: float
    y: float
    badge: Box
    across: tuple[float, float] | None = None
    along: tuple[float, float] | None = None

    @property
    def is_moved(self) -> bool:
        """Whether the badge is elsewhere than the figures."""
        return self.badge[:2] != (self.x, self.y)


def at_x(accuracy: float) -> float:
    """Where an original accuracy is."""
    return round(LEFT + WIDTH * accuracy, 1)


def at_y(brittleness: float) -> float:
    """Where a brittleness is."""
    return round(TOP + HEIGHT * (1 - brittleness), 1)


def marks_of(
    figures: Sequence[tuple[str, str, dict[str, Any]]], free: Sequence[tuple[float, float]] = ()
) -> list[Mark]:
    """Place the badges of models, in their order.

    Args:
        figures: Of each its text, its title and its figures, with or without intervals.
        free: Places in the plane that no badge may cover.
    """
    taken: list[Box] = [(x, y, 12, 12) for x, y in free]
    marks = []
    for text, title, of_model in figures:
        x, y = at_x(of_model["original_accuracy"]), at_y(of_model["brittleness"])
        own = (x, y, BADGE_HEIGHT + 7.0 * (len(text) - 1), BADGE_HEIGHT)
        box = next((near for near in _near(own) if not _hits(near, taken)), own)  # no room left
        taken.append(box)
        ends = [_ends(of_model, "original_accuracy", at_x), _ends(of_model, "brittleness", at_y)]
        original, brittleness = (
            percent(of_model[name]) for name in ("original_accuracy", "brittleness")
        )
        at = f"at original accuracy {original} % and brittleness {brittleness} %"
        marks.append(Mark(text, f"{title} {at}", x, y, box, *ends))
    return marks


def _near(box: Box) -> Iterator[Box]:
    """Yield the box, then boxes ever farther around it, over the plane."""
    x, y, width, height = box
    yield box
    for distance in range(4, WIDTH, 4):
        for turn in range(16):
            angle = 2 * pi * turn / 16 - pi / 4
            near = round(x + distance * cos(angle), 1), round(y + distance * sin(angle), 1)
            if (
                abs(near[0] - LEFT - WIDTH / 2) <= WIDTH / 2 + OVERHANG - width / 2
                and abs(near[1] - TOP - HEIGHT / 2) <= HEIGHT / 2 + OVERHANG - height / 2
            ):
                yield (*near, width, height)


def _hits(box: Box, taken: Sequence[Box]) -> bool:
    x, y, width, height = box
    return any(
        abs(x - of[0]) <= (width + of[2]) / 2 and abs(y - of[1]) <= (height + of[3]) / 2
        for of in taken
    )


def _ends(
    figures: dict[str, Any], name: str, place: Callable[[float], float]
) -> tuple[float, float] | None:
    low, high = figures.get(f"{name}_ci_low"), figures.get(f"{name}_ci_high")
    return None if low is None or high is None else (place(low), place(high))
