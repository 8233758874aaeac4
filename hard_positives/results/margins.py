"""Where the true candidates of rows stand above or below the best false one, as a drawing.

Cells of equal darkness are one path each: few and short, whatever the number of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hard_positive_metric import OUTCOMES, row_outcomes
from hard_positives.results.result import EvaluationResult, num_positives, values_of

BINS, FRAME = 56, 280  # of a density, its side in cells and in units of the drawing
FULL_SIZE = 5000  # rows; with fewer, cells of twice the side
LEVELS = 7  # of darkness


@dataclass(frozen=True)
class Margins:
    """A density of (original - best negative, lowest other positive - best negative)."""

    label: str
    shares: dict[str, float]
    levels: list[dict[str, Any]]
    ticks: list[dict[str, Any]]


def margins_of(result: EvaluationResult) -> Iterator[Margins]:
    """Yield the drawing of each split that has rows with hard positives."""
    for split, figures in result.metrics["as_published"].items():
        rows = np.array(result.scores["split"].to_pylist()) == split
        rows &= num_positives(result.scores) > 1
        if rows.any():
            label = next(iter(figures["groups"])) if len(figures["groups"]) == 1 else split.upper()
            yield _draw(result.scores.filter(pa.array(rows)), label)


def _draw(scores: pa.Table, label: str) -> Margins:
    margins = _margins(scores)
    limit = float(np.quantile(np.abs(margins), 0.99)) or 1.0
    bins = BINS if len(margins) >= FULL_SIZE else BINS // 2
    edges = np.linspace(-limit, limit, bins + 1)
    counts, _, _ = np.histogram2d(margins[:, 0], margins[:, 1], bins=[edges, edges])
    found = row_outcomes(values_of(scores, "logits"), values_of(scores, "labels")).outcome
    shares = {outcome: float((found == outcome).mean()) for outcome in OUTCOMES}
    tick = float(f"{limit / 2:.1g}")
    ticks = [
        {"x": 180 + place, "y": 154 - place, "label": f"{value:g}"}
        for value in (-tick, 0, tick)
        for place in [round(FRAME / 2 * value / limit)]
    ]
    return Margins(label, shares, _levels(counts), ticks)


def _margins(scores: pa.Table) -> np.ndarray:
    """(N, 2): the original and the lowest other positive, each less the highest negative."""
    lists = [scores[name].combine_chunks() for name in ("logits", "labels")]
    logits, labels = (values.flatten().to_numpy(zero_copy_only=False) for values in lists)
    offsets = lists[0].offsets.to_numpy()
    starts = offsets[:-1] - offsets[0]
    logits = logits.astype(np.float64)
    best_negative = np.maximum.reduceat(np.where(labels, -np.inf, logits), starts)
    # The first positive of each row: the true ones before it in the row are none.
    before = np.cumsum(labels) - labels
    is_first = labels & (before == np.repeat(before[starts], np.diff(offsets)))
    others = np.minimum.reduceat(np.where(labels & ~is_first, logits, np.inf), starts)
    return np.stack([logits[is_first] - best_negative, others - best_negative], axis=1)


def _levels(counts: np.ndarray) -> list[dict[str, Any]]:
    darkness = np.ceil(LEVELS * np.log1p(counts) / np.log1p(max(counts.max(), 1))).astype(int)
    side = FRAME // len(counts)
    return [
        {
            "opacity": round(0.12 + 0.88 * level / LEVELS, 2),
            "path": "".join(
                f"M{40 + side * x} {10 + FRAME - side * (y + 1)}h{side}v{side}h-{side}z"
                for x, y in np.argwhere(darkness == level)
            ),
        }
        for level in range(1, LEVELS + 1)
        if (darkness == level).any()
    ]
