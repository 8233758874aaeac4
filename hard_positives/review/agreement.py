"""How far annotators agree: Krippendorff's alpha, with an interval by bootstrap over rows.

Plain functions on counts of judgments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hard_positives.review.judgments import JUDGMENTS, Judged
from hard_positives.review.rows import Row

_DRAWS = 2_000


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha and its 95 % interval; None where they are not defined.

    Attributes:
        alpha: 1 where all agree, 0 where they agree as often as by chance, below where less often.
        ci_low: The interval's lower end.
        ci_high: Its upper end.
        captions: How many captions two or more people judged; the others tell nothing.
        rows: Of how many rows these are.
    """

    alpha: float | None
    ci_low: float | None
    ci_high: float | None
    captions: int
    rows: int


def agreement_of(rows: Sequence[Row], judged: Judged) -> Agreement:
    """Measure how far people agree on the captions of rows, each row counted once.

    The interval takes rows as they come, with all their captions: captions of one row are judged at
    one look, so they are not independent.
    """
    places = {row.key: row for row in rows if row.key in judged}
    counts, clusters = [], []
    for key, row in places.items():
        for caption in row.asked:
            said = [of.get(caption) for of in judged[key].values()]
            of_caption = [said.count(judgment) for judgment in JUDGMENTS]
            if sum(of_caption) > 1:
                counts.append(of_caption)
                clusters.append(key)
    if not counts:
        return Agreement(None, None, None, 0, 0)
    table = np.array(counts)
    low, high = _interval(table, np.unique(clusters, return_inverse=True)[1])
    return Agreement(krippendorff_alpha(table), low, high, len(counts), len(set(clusters)))


def krippendorff_alpha(counts: np.ndarray) -> float | None:
    """Compute Krippendorff's alpha for categories without order.

    With o the share of unequal pairs among the values of one unit, each unit weighted by its number
    of values, and e that among all values whatever their unit: alpha = 1 - o / e.

    Args:
        counts: (U, C) how many annotators put each unit into each category. Units with fewer than
            two values do not count.

    Returns:
        At most 1, which is perfect; 0 is chance. None where all values are of one category, or no
        unit has two: then nothing tells agreement from chance.

    Examples:
        Two units on which both annotators agree, and one on which they do not:

        >>> round(krippendorff_alpha(np.array([[2, 0], [0, 2], [1, 1]])), 3)
        0.444

    Source:
        Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), sections B and C.
    """
    counts = counts[counts.sum(1) > 1]
    return _alpha(_disagreement(counts).sum(), counts.sum(0))


def _disagreement(counts: np.ndarray) -> np.ndarray:
    """(U,) the unequal pairs of values in each unit, by the number of values but one."""
    sizes = counts.sum(1)
    return (sizes**2 - (counts**2).sum(1)) / np.maximum(sizes - 1, 1)


def _alpha(disagreement: float, totals: np.ndarray) -> float | None:
    unequal = totals.sum() ** 2 - (totals**2).sum()
    return None if unequal == 0 else float(1 - (totals.sum() - 1) * disagreement / unequal)


def _interval(counts: np.ndarray, clusters: np.ndarray) -> tuple[float | None, float | None]:
    """Draw rows with replacement, and take the middle 95 % of what alpha is then."""
    number = clusters.max() + 1
    values = np.column_stack([_disagreement(counts), counts])
    of_row = np.zeros((number, values.shape[1]))
    np.add.at(of_row, clusters, values)
    random, alphas = np.random.default_rng(0), []
    for _ in range(_DRAWS):
        drawn = of_row[random.integers(number, size=number)].sum(0)
        alphas.append(_alpha(drawn[0], drawn[1:]))
    defined = [alpha for alpha in alphas if alpha is not None]
    if number < 2 or len(defined) < 0.95 * _DRAWS:
        return None, None
    low, high = np.quantile(defined, (0.025, 0.975))
    return float(low), float(high)
