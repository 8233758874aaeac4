"""Comparisons that no model can get right, or that repeat, by their texts alone.

For datasets that do not say so themselves in a column `flaws`, as the published benchmark does
(`hard_positives_dataset.flaws`, whose names these are). Spaces and the case of letters make no
difference. Nothing here looks at an image; which images are the same file is known.
"""

from itertools import pairwise

import numpy as np

from hard_positives.suite.comparisons import Comparisons
from hard_positives_dataset.flaws import said


def flaws_of(comparisons: Comparisons) -> list[list[str]]:
    """Find what is wrong with each comparison.

    Returns:
        For each of N comparisons its flaws, mostly none: `negative_equals_caption` or
        `negative_equals_hard_positive`, a false candidate is the first or another true one;
        `contradicted`, one is true of the same anchor in another comparison; `duplicate`, an
        earlier comparison has the same anchor and candidates.

    Examples:
        >>> from datasets import Dataset
        >>> from hard_positives import Columns
        >>> from hard_positives.suite.comparisons import read_comparisons
        >>> rows = Dataset.from_dict({"text": ["a cat"], "same": ["one cat"], "other": ["A  cat"]})
        >>> columns = Columns(positives=["text", "same"], negatives=["other"], text_only=True)
        >>> flaws_of(read_comparisons(rows, columns))
        [['negative_equals_caption'], ['negative_equals_hard_positive']]
    """
    true_of, false_of = _pairs_by_label(comparisons)
    all_true = set().union(*true_of)
    flaws, seen = [], set()
    for true, false in zip(true_of, false_of, strict=True):
        known = (tuple(true), frozenset(false))
        flaws.append(_text_flaws(true, set(false), all_true) + ["duplicate"] * (known in seen))
        seen.add(known)
    return flaws


def _text_flaws(true: list[tuple], false: set[tuple], all_true: set[tuple]) -> list[str]:
    if true[0] in false:
        return ["negative_equals_caption"]
    if false.intersection(true):
        return ["negative_equals_hard_positive"]
    return ["contradicted"] if false & all_true else []


def _pairs_by_label(comparisons: Comparisons) -> tuple[list[list[tuple]], list[list[tuple]]]:
    """The true and the false pairs of each comparison, equal where they say the same.

    Of captions with captions, the anchor itself is true, too.
    """
    first: dict[str, int] = {}
    same = np.array(
        [first.setdefault(said(text), at) for at, text in enumerate(comparisons.captions)]
    )
    among_texts = np.repeat(comparisons.directions == 2, np.diff(comparisons.offsets))
    left = np.where(
        among_texts, -1 - same[comparisons.pairs[:, 0] * among_texts], comparisons.pairs[:, 0]
    )
    pairs = list(zip(left.tolist(), same[comparisons.pairs[:, 1]].tolist(), strict=True))
    true_of, false_of = [], []
    for start, stop in pairwise(comparisons.offsets.tolist()):
        labelled = list(zip(pairs[start:stop], comparisons.labels[start:stop], strict=True))
        anchor = [(pairs[start][0], -1 - pairs[start][0])] if pairs[start][0] < 0 else []
        true_of.append(anchor + [pair for pair, label in labelled if label])
        false_of.append([pair for pair, label in labelled if not label])
    return true_of, false_of
