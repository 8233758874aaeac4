"""The hard-positive metric tells a compositional model from one that is sensitive to any edit.

An image is scored against captions that are true of it (positives: the original caption and hard
positives) and captions that are false (hard negatives); or a caption against images. Plain
functions on NumPy arrays come first and hold every formula; `HardPositiveMetric` at the end is
their thin shell for the `evaluate` library. No models, images or files here, and no percentages:
every figure is a fraction.

`evaluate` copies this file alone into a cache and reads its dependencies line by line, hence one
plain module for each line that brings one in, no comment on those lines, and no use of anything
that stands beside this file.
"""

import collections.abc
import dataclasses
import itertools
import math
import numbers
import statistics
import sys

import numpy as np
import pyarrow

OUTCOMES = (
    "all_above",
    "only_caption_above",
    "only_hard_positive_above",
    "none_above",
    "tied",
)
"""What can happen in a row, seen from its highest negative; `row_outcomes` gives definitions."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """What tables and comparisons have to know of a figure."""

    field: str | None
    """Of `RowOutcomes`: the figure is its mean. None for a figure of sets, see `set_outcomes`."""
    half_credit_field: str | None
    """Of `RowOutcomes`: rows that add a half to `_half_credit`; None where there is no such."""
    title: str
    better: str
    """Which way: higher or lower, in one word."""
    chance: collections.abc.Callable[[int, int], float] | None
    """The figure of a row with so many positives and so many negatives whose scores are independent
    and never tie. None for a figure of sets: it depends on how rows of a set share scores."""


def _chance_of_original(positives: int, negatives: int) -> float:
    return 1 / (1 + negatives)


def _chance_of_augmented(positives: int, negatives: int) -> float:
    return 1 / math.comb(positives + negatives, positives)


def _chance_of_brittleness(positives: int, negatives: int) -> float:
    # Positives that stand side by side have 1 + negatives places for their block.
    return 1 - (1 + negatives) / math.comb(positives + negatives, positives)


def _chance_of_drop(positives: int, negatives: int) -> float:
    return 1 / (1 + negatives) - 1 / math.comb(positives + negatives, positives)


def _chance_of_ties(positives: int, negatives: int) -> float:
    return 0.0


FIGURES = {
    "original_accuracy": Figure(
        "original_correct", "original_tied", "original", "higher", _chance_of_original
    ),
    "augmented_accuracy": Figure(
        "augmented_correct", "augmented_tied", "augmented", "higher", _chance_of_augmented
    ),
    "brittleness": Figure(
        "brittle", "brittle_tied", "brittleness", "lower", _chance_of_brittleness
    ),
    "drop": Figure("dropped", None, "drop", "lower", _chance_of_drop),
    "tie_rate": Figure("tied", None, "ties", "lower", _chance_of_ties),
    "set_accuracy": Figure(None, None, "sets", "higher", None),
}
"""Every figure in the order of tables; `compute_metrics` says which of them its dict holds."""

_OF_PAIRS = ("brittleness", "drop")  # of positives: absent where no row has two
_TRIPLE = (True, True, False)

_FEWEST_CLUSTERS = 4 - 1e-6  # effective; with fewer there is no interval
_AGREEING = 3  # rows added to what tells how alike rows of a cluster are
_RARE = 3  # rows, up to which Wilson's end is moved out
_ROUNDING = 1e-12
_EXACT = 2**53  # beyond, float64 leaves integers out
_LABEL_SCALARS = (np.str_, np.integer, np.bool_, np.floating)
_NORMAL = statistics.NormalDist()
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(100)

_DESCRIPTION = """\
Scores each image against captions that are true of it and captions that are false, and tells how
often the original caption wins (original accuracy), how often every true caption wins (augmented
accuracy), and how often a false one falls between two true ones (brittleness).
"""

_CITATION = """\
@inproceedings{kamath2024hard,
  title = {The Hard Positive Truth about Vision-Language Compositionality},
  author = {Kamath, Amita and Hsieh, Cheng-Yu and Chang, Kai-Wei and Krishna, Ranjay},
  booktitle = {European Conference on Computer Vision},
  year = {2024},
  url = {https://arxiv.org/abs/2409.17958},
}
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions: N rows of logits or similarities, one row an image, one entry a caption; rows may
        differ in length. Higher means a better match.
    references: N rows of 1 (the caption is true of the image) and 0 (false), as long as those of
        predictions. The first 1 of a row is the original caption. Left out, rows must be 3 long
        and every one is [1, 1, 0]: caption, hard positive, hard negative.
    groups: N labels (str or int), such as the category; adds `groups` (every figure by label) and
        `macro` (their unweighted mean).
    clusters: N labels (str or int), such as the image id; rows that share one are not counted as
        independent.
    sets: N labels (str or int); adds `set_accuracy`, the share of sets whose rows are all right.
    headline: Whether to return the figures alone, without intervals, half credit and counts: one
        number each, for a logger.

Returns:
    A dict of floats (fractions) and ints (counts): `original_accuracy`, `augmented_accuracy`,
    `brittleness`, `drop`, `tie_rate`, each with `_standard_error`, `_ci_low` and `_ci_high`; the
    first three with `_half_credit`; and the counts that they are made from. Brittleness and drop
    are left out where no row has two positives.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("hard_positive_metric")
    >>> logits = [[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]
    >>> results = metric.compute(predictions=logits)
    >>> results["original_accuracy"], results["augmented_accuracy"], results["brittleness"]
    (0.5, 0.25, 0.25)
    >>> results["num_tied"], results["original_accuracy_half_credit"]
    (1, 0.625)

    One positive and one negative a row is plain pairwise accuracy:

    >>> results = metric.compute(predictions=[[2.0, 1.0], [1.0, 2.0]], references=[[1, 0], [1, 0]])
    >>> results["original_accuracy"], "brittleness" in results
    (0.5, False)

    The figures alone, for a logger:

    >>> metric.compute(predictions=logits, headline=True)["brittleness"]
    0.25
"""


@dataclasses.dataclass(frozen=True, eq=False)
class RowOutcomes:
    """What happened in each of N rows; every field is an (N,) array in the order of the rows.

    The means of the bool fields are the figures, their sums the counts. `row_outcomes` gives the
    definitions.
    """

    outcome_code: np.ndarray
    """The outcome's place in `OUTCOMES`."""
    original_correct: np.ndarray
    augmented_correct: np.ndarray
    brittle: np.ndarray
    tied: np.ndarray
    original_tied: np.ndarray
    augmented_tied: np.ndarray
    brittle_tied: np.ndarray
    num_positives: np.ndarray
    num_negatives: np.ndarray

    def __len__(self) -> int:
        return len(self.outcome_code)

    @property
    def outcome(self) -> np.ndarray:
        """One of `OUTCOMES`, as str."""
        return np.array(OUTCOMES)[self.outcome_code]

    @property
    def dropped(self) -> np.ndarray:
        """Rows that only the hard positives lose: original right, augmented wrong."""
        return self.original_correct & ~self.augmented_correct

    def take(self, rows: np.ndarray) -> "RowOutcomes":
        """Pick rows by index or by a bool mask."""
        fields = dataclasses.fields(self)
        return RowOutcomes(**{field.name: getattr(self, field.name)[rows] for field in fields})


def row_outcomes(predictions, references=None) -> RowOutcomes:
    """Judge every row: what is right, what is brittle, what is tied.

    Let c be the original caption's logit (the first positive), w the lowest logit of the *other*
    positives (c itself where there are none), and n the highest logit of the negatives. On a
    triple, w is the hard positive and n the hard negative. Then

    * `original_correct`: c > n, `augmented_correct`: c > n and w > n;
    * `brittle`: some negative lies strictly between two positives, so never with a single positive;
    * `outcome`: `all_above` if c > n and w > n; `only_caption_above` if c > n > w;
      `only_hard_positive_above` if w > n > c; `none_above` if n > c and n > w; `tied` if n equals c
      or w. `tied` is also a field;
    * `original_tied`: c = n; `augmented_tied`: min(c, w) = n; `brittle_tied`: not brittle, but some
      negative lies between two positives when "between" includes equal. These rows earn a half in
      the `_half_credit` figures.

    A row is `augmented_correct` exactly if it is `all_above`. On a triple, a row is `brittle`
    exactly if it is `only_caption_above` or `only_hard_positive_above`, and `original_correct` if
    it is `all_above`, `only_caption_above` or tied with c > n = w: with no ties, the outcomes give
    every figure. With more captions a row of another outcome can be brittle too: a lower negative
    may lie between the positives, or a third positive stand above n.

    Args:
        predictions: N rows of finite logits, which may differ in length: lists, an array, a
            tensor, a data frame, or Arrow lists (`pyarrow`, lists of fixed size too).
        references: N rows of 1 and 0, as long as those of predictions, at least one of each in a
            row; may be left out for triples.

    Returns:
        The outcomes of the N rows.

    Raises:
        TypeError: An entry is not a number, or a tensor is sparse, quantised, nested or meta.
        ValueError: No rows, an empty row, NaN or infinity, labels other than 0 and 1, a row without
            a positive or without a negative, `references` of other lengths, or left out where a row
            is not 3 long.

    Examples:
        >>> rows = row_outcomes([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [3.0, 1.0, 1.0]])
        >>> rows.outcome.tolist()
        ['all_above', 'only_caption_above', 'tied']
        >>> rows.original_correct.tolist(), rows.augmented_correct.tolist()
        ([True, True, True], [True, False, False])

        Rows of other lengths: three positives; a positive and two negatives.

        >>> rows = row_outcomes([[3.0, 1.0, 4.0, 2.0], [2.0, 1.0, 3.0]], [[1, 1, 1, 0], [1, 0, 0]])
        >>> rows.outcome.tolist(), rows.brittle.tolist()
        (['only_caption_above', 'none_above'], [True, False])

    Source:
        The five counters of `run_eval.py` in github.com/amitakamath/hard_positives, commit 33addaa.
        There a tied row is never counted among the other four either. New here: any number of
        positives and negatives, half credit, and errors where NaN would have made a row vanish from
        all five counters.
    """
    return _judge(*_checked(predictions, references))


def _judge(logits: "_Lists", positive: np.ndarray) -> RowOutcomes:
    positives, negatives = _split(logits, positive)
    caption, several = positives.values[positives.first], positives.counts > 1
    worst_other = _worst_other(positives, caption)
    worst_positive = np.minimum(caption, worst_other)
    best_positive = positives.reduce(np.maximum, positives.values)
    best_negative = negatives.reduce(np.maximum, negatives.values)

    low, high = negatives.spread(worst_positive), negatives.spread(best_positive)
    between = (low < negatives.values) & (negatives.values < high)
    between_or_equal = (low <= negatives.values) & (negatives.values <= high)
    brittle = negatives.reduce(np.logical_or, between)
    caption_above, others_above = caption > best_negative, worst_other > best_negative
    tied = (best_negative == caption) | (best_negative == worst_other)
    # The places in OUTCOMES of what is above: 0 both, 1 the caption, 2 the others, 3 none.
    above = np.uint8(3) - 2 * caption_above.view(np.uint8) - others_above.view(np.uint8)
    return RowOutcomes(
        outcome_code=np.where(tied, np.uint8(OUTCOMES.index("tied")), above),
        original_correct=caption_above,
        augmented_correct=worst_positive > best_negative,
        brittle=brittle,
        tied=tied,
        original_tied=caption == best_negative,
        augmented_tied=worst_positive == best_negative,
        # "Two positives" means two candidates: equal ones count, a single one does not.
        brittle_tied=negatives.reduce(np.logical_or, between_or_equal) & ~brittle & several,
        num_positives=positives.counts,
        num_negatives=negatives.counts,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Scores:
    """The scores of every row's positives, or of its negatives, at least one in each row."""

    values: np.ndarray
    """(k, N) where every row has k, else flat: (sum of counts,), row by row."""
    counts: np.ndarray
    first: int | np.ndarray
    """Where in `values` every row's first one is."""

    def reduce(self, function: np.ufunc, values: np.ndarray) -> np.ndarray:
        """Reduce values in the places of these scores, row by row, to (N,)."""
        if values.ndim == 2:
            return function.reduce(values, axis=0) if len(values) > 1 else values[0]
        return function.reduceat(values, self.first)

    def spread(self, per_row: np.ndarray) -> np.ndarray:
        """Lay (N,) out so that it broadcasts with the values."""
        return per_row if self.values.ndim == 2 else np.repeat(per_row, self.counts)


def _worst_other(positives: _Scores, caption: np.ndarray) -> np.ndarray:
    """Find every row's lowest positive apart from the first; the first where it is alone."""
    if positives.values.ndim == 2:
        others = positives.values[1:]
        return positives.reduce(np.minimum, others) if len(others) else caption
    others = positives.values.copy()
    others[positives.first] = np.inf
    return np.where(positives.counts > 1, positives.reduce(np.minimum, others), caption)


def _split(logits: "_Lists", positive: np.ndarray) -> tuple[_Scores, _Scores]:
    """Take the positives and the negatives apart."""
    values, counts = logits.values, logits.count(positive)
    if logits.is_alike(positive):
        width = logits.width
        columns, masks = values.reshape(-1, width).T, (positive[:width], ~positive[:width])
        positives, negatives = (
            _Scores(
                np.ascontiguousarray(columns[mask]), np.broadcast_to(mask.sum(), len(logits)), 0
            )
            for mask in masks
        )
        return positives, negatives
    return _scores(values[positive], counts), _scores(values[~positive], logits.lengths - counts)


def _scores(values: np.ndarray, counts: np.ndarray) -> _Scores:
    if (counts == counts[0]).all():
        return _Scores(np.ascontiguousarray(values.reshape(-1, counts[0]).T), counts, 0)
    return _Scores(values, counts, np.cumsum(counts) - counts)


def compute_metrics(predictions, references=None, *, groups=None, clusters=None, sets=None) -> dict:
    """Compute all figures of N rows, with 95 % intervals, from their logits.

    The figures are shares of rows, in [0, 1]; `row_outcomes` defines what makes a row count:

    * `original_accuracy` (higher is better): the caption is above every negative. Alone it
      misleads: a model that merely dislikes edits gets it right.
    * `augmented_accuracy` (higher is better): every positive is above every negative. At most
      `original_accuracy`.
    * `brittleness` (lower is better): some negative lies strictly between two positives. It
      misleads alone: a model that ranks the negative above all is not brittle, only wrong.
    * `drop` = original - augmented (lower is better): rows that only the hard positives lose. A
      single positive can neither be brittle nor drop: where no row has two, all keys of these two
      figures are absent, not 0. Where some have, the others count as rows that are not.
    * `tie_rate` (lower is better): the highest negative equals the caption or the worst other
      positive. A tie is never right. More than a few ties usually mean logits computed in half
      precision.
    * `..._half_credit` of the first three: each comparison counts 1, 0.5 at a tie, 0; an accuracy
      takes the minimum over its comparisons, so `original_accuracy_half_credit` =
      (num_original_correct + num_original_tied / 2) / N and likewise augmented. For brittleness a
      negative counts, for a pair of positives, the minimum of "below the one" and "above the
      other", and the row the best over negatives and pairs: (num_brittle + num_brittle_tied / 2) /
      N.

    * `set_accuracy`, with `sets` (higher is better): the share of sets whose rows are all
      augmented-correct. It asks for more, the more rows a set has. In a group, a set is what of its
      rows lies there. So where two images and two captions make a set of four rows, each image
      among the captions and each caption among the images, and `groups` are these two directions,
      `groups[direction]["set_accuracy"]` is the text and the image score of Winoground, and
      `set_accuracy` its group score.

    Chance for triples of independent scores: 1/2, 1/3, 1/3; `FIGURES` has it for any row. Every
    figure follows from the counts `num_...`, and these add up over parts of the data
    (`num_clusters` and the counts of sets only where none of these is in two parts).

    A figure is a weighted sum over rows, sum_i w_i x_i: w_i = 1 / N, and for `macro` over G groups
    w_i = 1 / (G N_g). With the residuals r_i = w_i (x_i - mean of the row's group), or overall
    mean, and C clusters,

        S = sum over clusters of (sum of r_i in the cluster)^2,
        standard_error^2 = C / (C - 1) * S,

    each row its own cluster where `clusters` is left out; undefined, so None, with one cluster.

    The interval is `wilson_interval` of the figure p for n = N / D effective rows. The design
    effect D says how many times the variance of independent rows the figure has; 1 without
    clusters. With e_i = x_i - mean, Q = sum of (w_i e_i)^2 over rows, Q_j the same over cluster j
    of m_j rows, U_j = sum of w_i e_i in it, M the mean size of a row's cluster, and b = (max(p, 1 -
    p) / N)^2,

        correlation r = (sum of (U_j^2 - Q_j) / (m_j - 1) + 3 b) / (sum of Q_j + 3 b),
                        over clusters of several rows, cut to [0, 1];
        D = the larger of 1 + r (M - 1) and (S / k + 3 M b) / (Q + 3 b).

    The first takes rows of all clusters to be equally alike; the second does not, but hangs on the
    largest clusters. k corrects S for what residuals lack as the mean is made of them, too (1 for
    equal clusters). The terms in b add three rows whose clusters agree wholly: where few rows
    count, or few do not, they tell little of how alike rows are, and nothing at p = 0 or 1. With
    thousands of clusters these terms do not show.

    Few or unequal clusters tell little of S. Its degrees of freedom v = 2 E(S)^2 / Var(S)
    follow from the clusters' sizes, with correlation r: C - 1 for equal clusters, far fewer if a
    few hold most rows. The quantile is Student's t at v M / (M - 1), since for what a row
    varies by itself p (1 - p) is known. Fewer than 4 effective clusters (v < 3) give no interval:
    `_ci_low` and `_ci_high` are None. At 3 clusters it would be as wide as .9 of [0, 1].

    For `set_accuracy` all of this holds with sets in the place of rows.

    Args:
        predictions: N rows of finite logits, one row an image, one entry a caption; rows may differ
            in length.
        references: N rows of 1 (true caption) and 0 (false), as long as those of predictions; the
            first 1 of a row is the original caption. Left out, every row must be 3 long and is
            [1, 1, 0].
        groups: N labels, str or int.
        clusters: N labels, str or int, such as the image id; may cross groups. Left out where
            `sets` are given, every set is a cluster, for all figures.
        sets: N labels, str or int; rows that share one are right only together.

    Returns:
        A flat dict of Python floats and ints: `num_examples`, `num_clusters`, `num_` + each of
        `OUTCOMES`, `num_original_correct`, `num_augmented_correct`, `num_brittle`,
        `num_original_tied`, `num_augmented_tied`, `num_brittle_tied`, each figure with
        `_standard_error`, `_ci_low` and `_ci_high` (or None), and three `_half_credit`. Without a
        row of two positives, no key of `brittle...` or `drop`. With `sets` also `num_sets`,
        `num_sets_correct` and `set_accuracy`. With `groups` also `groups`, a dict of such dicts by
        label in order of appearance, and `macro`, the unweighted mean of the figures that all of
        them have, with `num_examples`, `num_clusters`, `num_sets` and `num_groups`.

    Raises:
        TypeError: As `row_outcomes`; or a label is neither str nor int.
        ValueError: As `row_outcomes`; or a label is missing, there are not N of them, or a set lies
            in several clusters.

    Examples:
        >>> metrics = compute_metrics([[3, 2, 1], [3, 1, 2], [1, 3, 2], [1, 2, 3]])
        >>> metrics["original_accuracy"], metrics["augmented_accuracy"], metrics["brittleness"]
        (0.5, 0.25, 0.5)
        >>> round(metrics["drop_ci_low"], 3), round(metrics["drop_ci_high"], 3)
        (0.018, 0.699)

        Two groups of unequal size; `macro` gives each the same weight:

        >>> metrics = compute_metrics([[3, 2, 1]] * 3 + [[1, 2, 3]], groups=["a", "a", "a", "b"])
        >>> metrics["original_accuracy"], metrics["macro"]["original_accuracy"]
        (0.75, 0.5)

        Two images and two captions: each caption prefers its image, but image 2 the wrong caption.
        Rows are image 1 and 2 among the captions, then caption 1 and 2 among the images.

        >>> metrics = compute_metrics(
        ...     [[9, 4], [6, 5], [9, 6], [4, 5]],
        ...     [[1, 0], [0, 1], [1, 0], [0, 1]],
        ...     groups=["image_to_text"] * 2 + ["text_to_image"] * 2,
        ...     sets=["pair"] * 4,
        ... )
        >>> {name: part["set_accuracy"] for name, part in metrics["groups"].items()}
        {'image_to_text': 0.0, 'text_to_image': 1.0}
        >>> metrics["set_accuracy"]
        0.0

    Source:
        Figures: Kamath et al., ECCV 2024, and `run_eval.py` of
        github.com/amitakamath/hard_positives, commit 33addaa, which prints counts for one file; its
        paper averages groups as `macro` does. Intervals are not in either. The clustered error is
        the sandwich of Liang and Zeger (Biometrika 1986) for a mean. Wilson's interval (JASA 1927)
        at an effective sample size follows the survey literature: Korn and Graubard (Survey
        Methodology 1998), Franco et al. (JSSAM 2019), who divide p (1 - p) by standard_error^2
        instead of S and so get N - 1 for independent rows, where this gives Wilson's own interval.
        Degrees of freedom: Satterthwaite (Biometrics Bulletin 1946) for clustered errors, after
        Bell and McCaffrey (Survey Methodology 2002); under full correlation 1 + v is near the
        effective number of clusters of Carter, Schnepel and Steigerwald (Review of Economics and
        Statistics 2017). New here: the larger of two design effects, and the three rows added: the
        fewest with which intervals covered .93 in every cell of `benchmarks/intervals.py`.
    """
    rows = row_outcomes(predictions, references)
    labels, groups, clusters, sets = _row_labels(len(rows), groups, clusters, sets)
    metrics = _summary(rows, clusters, sets)
    if groups is None:
        return metrics
    # In a small type a stable sort, which keeps the order of rows, is a radix sort.
    order = np.argsort(groups.astype(np.min_scalar_type(len(labels))), kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    limits = metrics["num_clusters"], metrics.get("num_sets")
    metrics["groups"] = {
        label: _summary(
            rows.take(member),
            _renumbered(clusters, member, limits[0]),
            _renumbered(sets, member, limits[1]),
        )
        for label, member in zip(labels, members, strict=True)
    }
    metrics["macro"] = _macro(rows, groups, clusters, sets, metrics)
    return metrics


@dataclasses.dataclass(frozen=True, eq=False)
class SetOutcomes:
    """Which of S sets are right; every field is in the order in which the sets appear."""

    labels: list
    correct: np.ndarray
    """(S,) bool: all rows of the set are augmented-correct. Its mean is `set_accuracy`."""
    first_row: np.ndarray
    """(S,) int: where the set first appears, which gives its group or cluster."""

    def __len__(self) -> int:
        return len(self.labels)


def set_outcomes(outcomes: RowOutcomes, sets) -> SetOutcomes:
    """Say which sets of rows are right as a whole.

    Args:
        outcomes: Of N rows.
        sets: N labels, str or int.

    Returns:
        A set is right if all its rows are `augmented_correct`; so a tie makes it wrong. For a
        paired difference between two models take the second's `correct` less the first's.

    Raises:
        TypeError: A label is neither str nor int.
        ValueError: A label is missing, or there are not N of them.

    Examples:
        >>> rows = row_outcomes([[3, 2, 1], [1, 2, 3], [3, 2, 1], [3, 2, 1]])
        >>> found = set_outcomes(rows, ["b", "a", "a", "b"])
        >>> found.labels, found.correct.tolist(), found.first_row.tolist()
        (['b', 'a'], [True, False], [0, 1])
    """
    if sets is None:
        raise TypeError("Expected sets to be a list of labels, got None. Pass one label a row.")
    labels, codes = _codes(sets, "sets", len(outcomes))
    return SetOutcomes(labels, _all_right(outcomes, codes), _first_rows(codes))


def wilson_interval(share: float, num_rows: float, *, dof: float = math.inf) -> tuple[float, float]:
    """Compute the 95 % Wilson score interval of a share seen in so many independent rows.

    With z = 1.96: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). Unlike p -+
    1.96 standard errors it stays in [0, 1] and keeps a width at 0 and 1. Where at most 3 rows count
    (or do not), Wilson's end on that side lies too far in; it is moved out to the one of Brown, Cai
    and DasGupta, the one-sided 95 % bound of so rare a count, by the cube root of Wilson and
    Hilferty: x (1 - 1 / 9x - 1.645 sqrt((1 - p) / 9x))^3 / n for x = p n.

    Args:
        share: p, in [0, 1].
        num_rows: n, above 0; an effective number need not be whole.
        dof: How many degrees of freedom n was estimated with, at least 3: Student's t quantiles
            stand in the place of 1.96 and 1.645.

    Returns:
        The lower and the upper end, in [0, 1].

    Examples:
        >>> low, high = wilson_interval(1.0, 100)
        >>> round(low, 3), high
        (0.963, 1.0)

    Source:
        Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22
        (1927). Brown, Cai and DasGupta, Interval Estimation for a Binomial Proportion, Statistical
        Science 16 (2001), section 4.1.1. Wilson and Hilferty (PNAS 1931).
    """
    z, one_sided = _t_quantile(0.975, dof), _t_quantile(0.95, dof)
    shrinkage = 1 + z**2 / num_rows
    centre = (share + z**2 / (2 * num_rows)) / shrinkage
    variance = share * (1 - share) / num_rows + z**2 / (4 * num_rows**2)
    margin = z * variance**0.5 / shrinkage
    # At 0 and 1 an end is exact, but for rounding.
    low = 0.0 if share == 0 else max(0.0, centre - margin)
    high = 1.0 if share == 1 else min(1.0, centre + margin)
    low = min(low, _rare_end(share, num_rows, one_sided))
    return low, max(high, 1 - _rare_end(1 - share, num_rows, one_sided))


def _rare_end(share: float, num_rows: float, one_sided: float) -> float:
    """Bound a share from below where at most 3 rows count; 1 where more do."""
    count = share * num_rows
    if count == 0 or count > _RARE:
        return float(count > 0)
    root = 1 - 1 / (9 * count) - one_sided * math.sqrt((1 - share) / (9 * count))
    return count * max(0.0, root) ** 3 / num_rows


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over rows, and how sure it is.

    The ends are None where the clusters leave fewer than 4 effective ones: too few to tell how much
    they differ, so that no interval could be trusted.
    """

    value: float
    standard_error: float | None
    """Clustered; None with a single cluster."""
    ci_low: float | None
    ci_high: float | None
    effective_clusters: float
    """1 + the degrees of freedom of the clustered error: the number of equal clusters that tell as
    much of it."""


@dataclasses.dataclass(frozen=True)
class PairedEstimate(Estimate):
    """A mean of differences within rows, and a test of whether it is 0."""

    p_value: float | None
    """Two-sided, in (0, 1]; None where the ends are."""


def share_of_rows(values, *, groups=None, clusters=None) -> Estimate:
    """Estimate the share of rows that count, with the interval of `compute_metrics`.

    Args:
        values: (N,) of 0 and 1.
        groups: N labels, str or int: then the unweighted mean of the groups' shares.
        clusters: N labels, str or int; rows that share one are not counted as independent.

    Returns:
        The share in [0, 1]; `compute_metrics` says what the ends mean.

    Raises:
        TypeError: A label is neither str nor int.
        ValueError: A value is not 0 or 1, there are none, or not one label for each.

    Examples:
        >>> share = share_of_rows([1, 1, 0, 1, 1, 0, 1, 1], clusters=[1, 1, 2, 3, 4, 5, 5, 6])
        >>> share.value, round(share.ci_low, 2), round(share.ci_high, 2)
        (0.75, 0.34, 0.97)
    """
    values = _values(values, (0, 1))
    layout = _given_layout(len(values), groups, clusters)
    return _share(_counts(values == 1, layout), layout)


def paired_difference(differences, *, groups=None, clusters=None) -> PairedEstimate:
    """Estimate the mean of differences within rows, and test whether it is 0.

    For two models on the same rows, d_i = x_i(second) - x_i(first) is -1, 0 or 1. The mean is that
    of d, with `groups` the unweighted mean of the groups' means. With the design effect D and the
    degrees of freedom v of `compute_metrics`, for d in the place of x, and n = N / D effective
    rows, its error for interval and test is

        e^2 = variance of d / n + 2 / n^2,

    the interval mean -+ t e with Student's 97.5 % quantile t at v degrees of freedom, and p the
    two-sided tail of Student's t beyond mean / e: below .05 exactly where the interval leaves out 0
    (but for rounding). The second term adds two effective rows that differ, one each way. It keeps
    a width where no row differs, and without clusters brings p near that of McNemar's exact test (9
    against 1 of 100: .020 and .021). That counts rows that share a cluster as independent: where
    they are alike, it finds a difference in up to 68 of 100 pairs of models that do not differ.

    Args:
        differences: (N,) of -1, 0 and 1.
        groups: N labels, str or int.
        clusters: N labels, str or int, such as the image id.

    Returns:
        The mean in [-1, 1]; its ordinary clustered `standard_error`, which is e without the second
        term for equal clusters; the interval and p-value.

    Raises:
        TypeError: A label is neither str nor int.
        ValueError: A difference is not -1, 0 or 1, there are none, or not one label for each.

    Examples:
        >>> paired = paired_difference([1] * 9 + [-1] + [0] * 90)
        >>> paired.value, round(paired.p_value, 3)
        (0.08, 0.02)
        >>> round(paired.ci_low, 3), round(paired.ci_high, 3)
        (0.013, 0.147)

    Source:
        McNemar (Psychometrika 1947). Two rows added: Bonett and Price, Adjusted Wald Confidence
        Interval for a Difference of Binomial Proportions Based on Paired Data (Journal of
        Educational and Behavioral Statistics 2012). Other cluster-robust forms of McNemar's test,
        without degrees of freedom: Obuchowski (1998) and Durkalski et al. (2003), both Statistics
        in Medicine.
    """
    values = _values(differences, (-1, 0, 1))
    return _paired(values, _given_layout(len(values), groups, clusters))


def _paired(values: np.ndarray, layout: "_Layout") -> PairedEstimate:
    counts = {value: _counts(values == value, layout) for value in (1, -1)}
    farthest = 1 + abs(_mean(counts[1] - counts[-1], layout))
    mean = _clustered_mean(counts, layout, farthest)
    if mean.effective_clusters < _FEWEST_CLUSTERS:
        return PairedEstimate(
            mean.value, mean.standard_error, None, None, mean.effective_clusters, None
        )
    num_effective = layout.num_equal / mean.design_effect
    variance = mean.design_effect * mean.independent / mean.unbiased
    error = math.sqrt(variance + 2 / num_effective**2)
    dof = mean.effective_clusters - 1
    margin = _t_quantile(0.975, dof) * error
    return PairedEstimate(
        value=mean.value,
        standard_error=mean.standard_error,
        ci_low=max(-1.0, mean.value - margin),
        ci_high=min(1.0, mean.value + margin),
        effective_clusters=mean.effective_clusters,
        p_value=min(1.0, 2 * _t_tail(abs(mean.value) / error, dof)),
    )


def _row_labels(num_rows: int, groups, clusters, sets) -> tuple:
    """Return the labels of groups, and each row's group, cluster and set as codes (or None)."""
    group_labels, groups = _codes(groups, "groups", num_rows)
    cluster_labels, clusters = _codes(clusters, "clusters", num_rows)
    set_labels, sets = _codes(sets, "sets", num_rows)
    if sets is not None and clusters is not None:
        homes = clusters[_first_rows(sets)]
        astray = np.flatnonzero(clusters != homes[sets])
        if len(astray):
            one = sets[astray[0]]
            found = [cluster_labels[cluster] for cluster in (homes[one], clusters[astray[0]])]
            _refuse(
                "every set to lie in one cluster",
                f"set {set_labels[one]!r} in the clusters {found[0]!r} and {found[1]!r}",
                astray,
                num_rows,
                "Pass clusters of whole sets, or leave clusters out: then a set is one.",
            )
    return group_labels, groups, sets if clusters is None else clusters, sets


def _first_rows(codes: np.ndarray) -> np.ndarray:
    first = np.empty(codes.max() + 1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # what is assigned last stays
    return first


def _distinct(codes: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct codes, which are below the limit, and each one's place among them."""
    if limit > 4 * len(codes):
        return np.unique(codes, return_inverse=True)
    is_there = np.zeros(limit, dtype=bool)
    is_there[codes] = True
    return np.flatnonzero(is_there), (np.cumsum(is_there) - 1)[codes]


def _renumbered(codes: np.ndarray | None, rows: np.ndarray, limit: int) -> np.ndarray | None:
    """Pick rows and number their codes without gaps again."""
    return None if codes is None else _distinct(codes[rows], limit)[1]


def _summary(rows: RowOutcomes, clusters: np.ndarray | None, sets: np.ndarray | None) -> dict:
    """Count and average one set of rows."""
    has_pairs = bool((rows.num_positives > 1).any())
    figures = {
        name: figure
        for name, figure in FIGURES.items()
        if figure.field and (has_pairs or name not in _OF_PAIRS)
    }
    halved = [figure for figure in figures.values() if figure.half_credit_field]
    counted = [figure.field for figure in halved] + [figure.half_credit_field for figure in halved]
    outcomes = np.bincount(rows.outcome_code, minlength=len(OUTCOMES)).tolist()
    layout = _layout(len(rows), None, clusters)
    summary = {
        "num_examples": len(rows),
        "num_clusters": layout.num_clusters,
        **{f"num_{outcome}": count for outcome, count in zip(OUTCOMES, outcomes, strict=True)},
        **{f"num_{field}": int(np.count_nonzero(getattr(rows, field))) for field in counted},
        **_figures(rows, layout, figures),
    }
    if sets is not None:
        correct, share = _share_of_sets(rows, None, clusters, sets)
        summary["num_sets"] = len(correct)
        summary["num_sets_correct"] = int(np.count_nonzero(correct))
        summary |= _keys("set_accuracy", share)
    return summary


def _macro(rows: RowOutcomes, groups, clusters, sets, metrics: dict) -> dict:
    """Average over groups without weights the figures that all of them have."""
    parts = metrics["groups"].values()
    figures = {
        name: figure
        for name, figure in FIGURES.items()
        if figure.field and all(name in part for part in parts)
    }
    sizes = ["num_examples", "num_clusters"] + ["num_sets"] * (sets is not None)
    macro = {name: metrics[name] for name in sizes} | {"num_groups": len(parts)}
    macro |= _figures(rows, _layout(len(rows), groups, clusters), figures)
    if sets is not None:
        macro |= _keys("set_accuracy", _share_of_sets(rows, groups, clusters, sets)[1])
    return macro


def _figures(rows: RowOutcomes, layout: "_Layout", figures: dict[str, Figure]) -> dict:
    """Average over groups without weights; with a single group this is the plain mean."""
    found, halves = {}, {}
    for name, figure in figures.items():
        counts = _counts(getattr(rows, figure.field), layout)
        found |= _keys(name, _share(counts, layout))
        if figure.half_credit_field:
            ties = _counts(getattr(rows, figure.half_credit_field), layout)
            halves[f"{name}_half_credit"] = _mean(counts + ties / 2, layout)
    return found | halves


def _keys(name: str, share: Estimate) -> dict:
    return {
        name: share.value,
        f"{name}_standard_error": share.standard_error,
        f"{name}_ci_low": share.ci_low,
        f"{name}_ci_high": share.ci_high,
    }


def _share_of_sets(rows: RowOutcomes, groups, clusters, sets) -> tuple[np.ndarray, Estimate]:
    """Say which sets, or what of them lies in a group, are right, and estimate the share."""
    if groups is not None:
        num_sets = sets.max() + 1
        _, sets = _distinct(groups * num_sets + sets, (groups.max() + 1) * num_sets)
    correct, first = _all_right(rows, sets), _first_rows(sets)
    layout = _layout(len(first), None if groups is None else groups[first], clusters[first])
    return correct, _share(_counts(correct, layout), layout)


def _all_right(rows: RowOutcomes, sets: np.ndarray) -> np.ndarray:
    return np.bincount(sets[~rows.augmented_correct], minlength=sets.max() + 1) == 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Layout:
    """What of the rows' groups and clusters every estimate needs, whatever the values.

    Rows are counted by cell, that is by what of a cluster lies in a group; where every row is a
    cluster of its own, by group.
    """

    num_rows: int
    num_clusters: int
    group_sizes: np.ndarray
    cells: np.ndarray | None
    """Each row's; None where there is a single one."""
    cell_sizes: np.ndarray
    cell_groups: np.ndarray
    cell_clusters: np.ndarray | None
    """None where every row is a cluster of its own."""
    cell_weights: np.ndarray
    """Of a row in the cell."""
    cluster_sizes: np.ndarray | None
    power_sums: list[np.ndarray]
    num_equal: float
    """How many rows of equal weight have the same sum of squared weights: N in a single group."""
    mean_size: float
    """Of a row's cluster, over rows: the design effect if rows of a cluster agree wholly."""


def _given_layout(num_rows: int, groups, clusters) -> _Layout:
    codes = {"groups": groups, "clusters": clusters}
    return _layout(num_rows, *(_codes(labels, name, num_rows)[1] for name, labels in codes.items()))


def _layout(num_rows: int, groups: np.ndarray | None, clusters: np.ndarray | None) -> _Layout:
    """Prepare codes of groups and of clusters, both from 0 and without gaps.

    None stands for a single group, and for rows that are clusters of their own.
    """
    num_clusters = num_rows if clusters is None else int(clusters.max()) + 1
    group_sizes = np.array([num_rows]) if groups is None else np.bincount(groups)
    group_weights = 1 / (len(group_sizes) * group_sizes)
    if num_clusters == num_rows:
        cell_groups, once = np.arange(len(group_sizes)), np.ones(len(group_sizes))
        squares: np.ndarray = group_sizes * group_weights**2
        sums = [_power_sums(group_weights, once, np.zeros_like(cell_groups), times=group_sizes)]
        if len(group_sizes) > 1:
            sums.append(_power_sums(1 / group_sizes, once, cell_groups, times=group_sizes))
        return _Layout(
            num_rows=num_rows,
            num_clusters=num_rows,
            group_sizes=group_sizes,
            cells=groups,
            cell_sizes=group_sizes,
            cell_groups=cell_groups,
            cell_clusters=None,
            cell_weights=group_weights,
            cluster_sizes=None,
            power_sums=sums,
            num_equal=float(1 / squares.sum()),
            mean_size=1.0,
        )
    cells, cell_clusters = clusters, np.arange(num_clusters)
    cell_groups = np.zeros_like(cell_clusters)
    if groups is not None:
        codes, limit = groups * num_clusters + clusters, len(group_sizes) * num_clusters
        distinct, cells = _distinct(codes, limit)
        cell_groups, cell_clusters = np.divmod(distinct, num_clusters)
    cell_sizes = np.bincount(cells).astype(np.float64)
    weights = group_weights[cell_groups]
    shares = np.bincount(cell_clusters, cell_sizes * weights)
    squares = np.bincount(cell_clusters, cell_sizes * weights**2)
    one_group = np.zeros(num_clusters, dtype=np.int64)
    sums = [_power_sums(shares, squares / np.square(shares), one_group)]
    if len(group_sizes) > 1:
        cell_shares = cell_sizes / group_sizes[cell_groups]
        sums.append(_power_sums(cell_shares, 1 / cell_sizes, cell_groups))
    return _Layout(
        num_rows=num_rows,
        num_clusters=num_clusters,
        group_sizes=group_sizes,
        cells=cells,
        cell_sizes=cell_sizes,
        cell_groups=cell_groups,
        cell_clusters=cell_clusters,
        cell_weights=weights,
        cluster_sizes=np.bincount(clusters),
        power_sums=sums,
        num_equal=float(1 / squares.sum()),
        mean_size=float(np.square(shares).sum() / squares.sum()),
    )


def _counts(is_one: np.ndarray, layout: _Layout) -> np.ndarray:
    """Count the rows that are so, by cell."""
    if layout.cells is None:
        return np.array([np.count_nonzero(is_one)])
    return np.bincount(layout.cells[is_one], minlength=len(layout.cell_sizes))


def _mean(cell_sums: np.ndarray, layout: _Layout) -> float:
    """Compute the mean of the groups' means."""
    return float((np.bincount(layout.cell_groups, cell_sums) / layout.group_sizes).mean())


def _share(counts: np.ndarray, layout: _Layout) -> Estimate:
    """Estimate the share of rows that are counted, with its standard error and interval."""
    share = _mean(counts, layout)
    mean = _clustered_mean({1: counts}, layout, farthest=max(share, 1 - share))
    known = (mean.value, mean.standard_error)
    # Rows of their own vary as p (1 - p): nothing is estimated but what clusters add to it.
    is_clustered = layout.mean_size > 1
    if is_clustered and mean.effective_clusters < _FEWEST_CLUSTERS:
        return Estimate(*known, None, None, mean.effective_clusters)
    dof = math.inf
    if is_clustered:
        dof = (mean.effective_clusters - 1) * layout.mean_size / (layout.mean_size - 1)
    num_rows = share * (1 - share) / mean.independent if mean.independent else layout.num_equal
    num_effective = min(layout.num_rows, num_rows / mean.design_effect)
    return Estimate(
        *known, *wilson_interval(share, num_effective, dof=dof), mean.effective_clusters
    )


@dataclasses.dataclass(frozen=True)
class _ClusteredMean:
    value: float
    standard_error: float | None
    independent: float
    """The mean's variance if rows were independent."""
    unbiased: float
    """What share of the variance the residuals from the mean keep, on average."""
    design_effect: float
    effective_clusters: float


def _clustered_mean(counts: dict, layout: _Layout, farthest: float) -> _ClusteredMean:
    """Estimate a mean as `compute_metrics` says.

    Args:
        counts: Value -> how many rows of each cell have it; all others are 0.
        farthest: A value can lie from the mean.
    """
    sums = sum(value * count for value, count in counts.items())
    means = np.bincount(layout.cell_groups, sums) / layout.group_sizes
    centres = means[layout.cell_groups]
    squares = (layout.cell_sizes - sum(counts.values())) * np.square(centres)
    squares += sum(count * np.square(value - centres) for value, count in counts.items())
    squares *= np.square(layout.cell_weights)
    spread = independent = float(squares.sum())

    # By the size of the weights.
    added = _AGREEING * (farthest / layout.num_equal) ** 2
    correlation = 1.0
    if layout.cell_clusters is not None:
        residuals = layout.cell_weights * (sums - layout.cell_sizes * centres)
        agreement = np.square(np.bincount(layout.cell_clusters, residuals))
        spread = float(agreement.sum())
        squares = np.bincount(layout.cell_clusters, squares)
        several = layout.cluster_sizes > 1
        agreement = (agreement - squares)[several] / (layout.cluster_sizes[several] - 1)
        correlation = (agreement.sum() + added) / (squares[several].sum() + added)
        correlation = float(np.clip(correlation, 0, 1))
    kept, unbiased, dof = _expected_spread(layout, correlation)
    effect = 1 + correlation * (layout.mean_size - 1)
    if layout.mean_size > 1 and dof > 0:
        seen = (spread * unbiased / kept + layout.mean_size * added) / (independent + added)
        effect = max(effect, seen)
    standard_error = None
    if layout.num_clusters > 1:
        standard_error = (layout.num_clusters / (layout.num_clusters - 1) * spread) ** 0.5
    return _ClusteredMean(
        value=float(means.mean()),
        standard_error=standard_error,
        independent=independent,
        unbiased=unbiased,
        design_effect=effect,
        effective_clusters=1 + dof,
    )


def _power_sums(shares, inverse_sizes, groups, times=1) -> np.ndarray:
    """Sum a^k / m^l over the clusters of a group, for k = 2 to 5 and l = 0 to 2: (4, 3, G)."""
    sums, powers = [], times * np.square(shares)
    for _ in range(4):
        products = (powers, powers * inverse_sizes, powers * np.square(inverse_sizes))
        sums.append([np.bincount(groups, product) for product in products])
        powers = powers * shares
    return np.array(sums)


def _expected_spread(layout: _Layout, correlation: float) -> tuple[float, float, float]:
    """Work out what S is on average, and how sure, if rows of a cluster correlate so.

    Clusters that cross groups are taken whole and group by group; the less favourable counts, which
    is exact where they cross all groups alike, or none.

    Returns:
        E(S) / variance of the mean; the share of its variance that a row's residual keeps; the
        degrees of freedom 2 E(S)^2 / Var(S).
    """
    views = [_traces(sums, correlation) for sums in layout.power_sums]
    return tuple(min(parts) for parts in zip(*views, strict=True))


def _traces(power_sums: np.ndarray, correlation: float) -> tuple[float, float, float]:
    """Work out `_expected_spread` with groups that no cluster crosses.

    A cluster with the share a of its group's rows has a mean of variance v = correlation + (1 -
    correlation) / m, in units of a row's. S is a quadratic form of these means; its expectation
    and, for normal means, its variance are traces, and these are sums of a^k v^l over clusters.
    """
    (squares, *_), *_ = power_sums
    at, apart = correlation, 1 - correlation
    linear = at * power_sums[:, 0] + apart * power_sums[:, 1]
    quadratic = at**2 * power_sums[:, 0] + 2 * at * apart * power_sums[:, 1]
    quadratic += apart**2 * power_sums[:, 2]
    variance, cubes, fourths = linear[0], linear[1], linear[2]
    expected = (variance * (1 + squares) - 2 * cubes).sum()
    every_pair = (variance * squares) ** 2 + 2 * squares * quadratic[2] + 2 * cubes**2
    every_pair -= 4 * variance * squares * cubes
    diagonal = quadratic[2] - 4 * quadratic[3] + 2 * variance * fourths
    dof = expected**2 / (every_pair + diagonal).sum() if expected > _ROUNDING else 0.0
    unbiased = 1 - np.square(variance).sum() / variance.sum()
    return float(expected / variance.sum()), float(unbiased), float(dof)


def _t_quantile(share: float, dof: float) -> float:
    """Student's t, by Cornish and Fisher's series; at 3 degrees of freedom 0.2 % too small.

    Source:
        Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.5.
    """
    z = _NORMAL.inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / dof**power for power, term in enumerate(terms, 1))


def _t_tail(t: float, dof: float) -> float:
    """Student's t above `t`, by Gauss's rule from there to infinity."""
    scale = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - math.log(dof * math.pi) / 2
    x = t + (1 + _NODES) / (1 - _NODES)
    density = np.exp(scale - (dof + 1) / 2 * np.log1p(np.square(x) / dof))
    return float((_NODE_WEIGHTS * density * 2 / np.square(1 - _NODES)).sum())


def _values(values, allowed: tuple[int, ...]) -> np.ndarray:
    """Return (N,) numbers among those allowed as float64, or refuse them."""
    row = _read([values], "values", 0).values.astype(np.float64, copy=False)
    wrong = ~np.isin(row, allowed)
    if wrong.any():
        expected = f"every value to be one of {', '.join(map(str, allowed))}"
        _refuse(expected, row[wrong][0], np.flatnonzero(wrong), len(row), "Look at these rows.")
    return row


def _codes(labels, name: str, num_rows: int) -> tuple[list | None, np.ndarray | None]:
    """List the labels in order of appearance, and each row's place among them; or None twice."""
    if labels is None:
        return None, None
    is_array = type(labels) is np.ndarray and labels.ndim == 1 and labels.dtype.kind in "iu"
    labels = labels if is_array else _label_list(labels, name)
    if len(labels) != num_rows:
        raise ValueError(
            f"Expected {name} to be {num_rows} labels, got {len(labels)}. Pass one label a row."
        )
    if is_array:  # the same, ten times as fast
        distinct, first, codes = np.unique(labels, return_index=True, return_inverse=True)
        order = first.argsort()
        return distinct[order].tolist(), order.argsort()[codes]
    if not set(map(type, labels)) <= {str, int}:
        labels = [label.item() if isinstance(label, _LABEL_SCALARS) else label for label in labels]
        if not set(map(type, labels)) <= {str, int}:
            _refuse_labels(labels, name)
    places = collections.defaultdict(itertools.count().__next__)
    codes = np.fromiter(map(places.__getitem__, labels), dtype=np.int64, count=num_rows)
    return list(places), codes


def _label_list(labels, name: str) -> list:
    is_sequence = hasattr(labels, "__len__") and getattr(labels, "ndim", 1) == 1
    if not is_sequence or isinstance(labels, (str, bytes, dict, set, frozenset)):
        kind = type(labels).__name__
        raise TypeError(
            f"Expected {name} to be a list of labels, got {kind}. Pass one label a row."
        )
    if isinstance(labels, (pyarrow.Array, pyarrow.ChunkedArray)):
        return labels.to_pylist()
    return _listed(labels, name) if hasattr(labels, "tolist") else list(labels)


def _refuse_labels(labels: list, name: str) -> None:
    expected = f"every label of {name} to be a str or an int"
    missing = [row for row, label in enumerate(labels) if _is_missing(label)]
    if missing:
        advice = "Fill the missing labels or leave the rows out."
        _refuse(expected, repr(labels[missing[0]]), missing, len(labels), advice)
    odd = [row for row, label in enumerate(labels) if type(label) not in (str, int)]
    got = repr(labels[odd[0]])
    _refuse(expected, got, odd, len(labels), "Convert the labels.", error=TypeError)


def _is_missing(label) -> bool:
    # pandas.NA is neither equal to itself nor unequal.
    return label is None or (isinstance(label, float) and label != label) or str(label) == "<NA>"


@dataclasses.dataclass(frozen=True, eq=False)
class _Lists:
    """Numbers in N rows, which may differ in length."""

    values: np.ndarray
    """Flat, row by row; float32 or float64."""
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int | None:
        """The length of all rows; None where they differ."""
        return int(self.lengths[0]) if (self.lengths == self.lengths[0]).all() else None

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    def is_alike(self, mask: np.ndarray) -> bool:
        """Whether a flat mask of the entries is the same in every row."""
        width = self.width
        return width is not None and np.array_equal(mask[width:], mask[:-width])

    def count(self, mask: np.ndarray) -> np.ndarray:
        """Count the entries of every row that a flat mask picks."""
        if self.is_alike(mask):
            return np.broadcast_to(np.count_nonzero(mask[: self.width]), len(self))
        return np.add.reduceat(mask, self.starts, dtype=np.int64)

    def rows_of(self, entries: np.ndarray) -> np.ndarray:
        """List the rows of some entries, given as a bool mask."""
        places = np.flatnonzero(entries)
        return np.unique(np.searchsorted(self.starts, places, side="right") - 1)

    def apart(self, values: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """Lay values out in rows as these are."""
        width = self.width
        return values.reshape(-1, width) if width else np.split(values, self.starts[1:])


def _checked(predictions, references, *, first_row: int = 0) -> tuple[_Lists, np.ndarray]:
    """Return the logits, and which of them are positive as flat bool, or refuse them.

    `first_row` is the number of the first of these rows, for the errors.
    """
    logits = _read(predictions, "predictions", first_row)
    is_finite = np.isfinite(logits.values)
    if not is_finite.all():
        _refuse(
            "every logit of predictions to be finite",
            logits.values[~is_finite][0],
            logits.rows_of(~is_finite),
            len(logits),
            "Look for a broken image or an overflow in the model.",
            first_row=first_row,
        )
    if references is None:
        odd = np.flatnonzero(logits.lengths != len(_TRIPLE))
        if len(odd):
            _refuse(
                "every row of predictions to be 3 long (caption, hard positive, hard negative) "
                "where references are left out",
                f"{logits.lengths[odd[0]]} logits",
                odd,
                len(logits),
                "Pass references: 1 for a true caption, 0 for a false one.",
                first_row=first_row,
            )
        return logits, np.tile(_TRIPLE, len(logits))

    labels = _read(references, "references", first_row)
    if len(labels) != len(logits):
        raise ValueError(
            f"Expected references to be {len(logits)} rows, as predictions are, got {len(labels)}."
            " Pass one label for every logit."
        )
    odd = np.flatnonzero(labels.lengths != logits.lengths)
    if len(odd):
        _refuse(
            "every row of references to be as long as that of predictions",
            f"{labels.lengths[odd[0]]} labels for {logits.lengths[odd[0]]} logits",
            odd,
            len(logits),
            "Pass one label for every logit.",
            first_row=first_row,
        )
    positive = labels.values == 1
    _check_labels(labels, positive, first_row)
    return logits, positive


def _check_labels(labels: _Lists, positive: np.ndarray, first_row: int) -> None:
    wrong = ~positive & (labels.values != 0)
    if wrong.any():
        _refuse(
            "every label of references to be 1 or 0",
            labels.values[wrong][0],
            labels.rows_of(wrong),
            len(labels),
            "Use 1 for a true caption and 0 for a false one.",
            first_row=first_row,
        )
    counts = labels.count(positive)
    for kind, label, fewest in (("positive", 1, 0), ("negative", 0, labels.lengths)):
        without = np.flatnonzero(counts == fewest)
        if len(without):
            _refuse(
                f"every row of references to be labels with at least one {kind} ({label})",
                [1 - label] * int(labels.lengths[without[0]]),
                without,
                len(labels),
                "Leave such rows out.",
                first_row=first_row,
            )


def _read(values, name: str, first_row: int) -> _Lists:
    """Read rows of numbers from lists, an array, a tensor, a data frame or Arrow's lists."""
    if isinstance(values, (pyarrow.Array, pyarrow.ChunkedArray)):
        flat, lengths = _flat_arrow(values)
    else:
        values = _plain(values, name, first_row)
        flat, lengths = _flat_lists(values) if isinstance(values, list) else _flat_array(values)
    if flat is not None and flat.dtype.kind in "biuf" and flat.dtype.itemsize <= 8:
        array = flat if flat.dtype == np.float32 else flat.astype(np.float64, copy=False)
        # Up to 2^53 no integer is rounded, and no list hid one that NumPy has rounded.
        are_floats = not isinstance(values, list) and flat.dtype.kind == "f"
        if are_floats or not np.nanmax(np.abs(array), initial=0) >= _EXACT:
            return _Lists(array, lengths)
    if isinstance(values, (pyarrow.Array, pyarrow.ChunkedArray)):
        values = values.to_pylist()
    elif isinstance(values, np.ndarray) and values.ndim:
        # As a list, a time in nanoseconds would be an int.
        values = list(values) if values.dtype.kind in "mM" else values.tolist()
    return _read_slowly(values, name, first_row)


def _plain(values, name: str, first_row: int):
    """Make a list of rows, or an array, of whatever holds rows; leave alone what holds none."""
    if isinstance(values, np.ma.MaskedArray):
        values = _unmasked(values, name, first_row)
    elif not isinstance(values, np.ndarray) and hasattr(values, "tolist"):
        # A tensor, which NumPy refuses in bfloat16, with gradients or on a GPU.
        values = _listed(values, name)
    elif not isinstance(values, np.ndarray) and hasattr(values, "__array__"):
        values = np.asarray(values)
    if isinstance(values, np.ndarray):
        holds_rows = values.ndim == 1 and values.dtype == object
    else:
        holds_rows = isinstance(values, collections.abc.Sequence)
    if not holds_rows or isinstance(values, (str, bytes)):
        return values
    values = list(values)
    if set(map(type, values)) <= {list, tuple, np.ndarray}:
        return values
    return [_unpacked(row, name, first_row + place) for place, row in enumerate(values)]


def _flat_lists(rows: list) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Chain rows, unless one of them is odd."""
    kinds = set(map(type, rows))
    if not rows or not kinds <= {list, tuple, np.ndarray}:
        return None, None
    try:
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        is_arrays = kinds == {np.ndarray}
        flat = (
            np.concatenate(rows)
            if is_arrays
            else np.array(list(itertools.chain.from_iterable(rows)))
        )
    except Exception:  # whatever an entry raises
        return None, None
    return (flat, lengths) if lengths.all() and flat.ndim == 1 else (None, None)


def _flat_array(array) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.size:
        return None, None
    return array.reshape(-1), np.broadcast_to(array.shape[1], len(array))


def _flat_arrow(rows) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Take the numbers of Arrow's lists as they lie there, unless anything is missing."""
    if isinstance(rows, pyarrow.ChunkedArray):
        rows = rows.combine_chunks()
    kinds = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
    if not any(is_kind(rows.type) for is_kind in kinds) or not len(rows) or rows.null_count:
        return None, None
    flat, lengths = rows.flatten(), rows.value_lengths().to_numpy()
    is_number = pyarrow.types.is_boolean(flat.type) or pyarrow.types.is_primitive(flat.type)
    if not is_number or flat.null_count or not lengths.all():
        return None, None
    return flat.to_numpy(zero_copy_only=False), lengths


def _unpacked(row, name: str, place: int):
    if isinstance(row, np.ma.MaskedArray):
        row = _unmasked(row[None], name, place)[0]
    return row if isinstance(row, np.ndarray) or not hasattr(row, "tolist") else _listed(row, name)


def _unmasked(values: np.ma.MaskedArray, name: str, first_row: int) -> np.ndarray:
    masked = np.ma.getmaskarray(values)
    if masked.any():
        _refuse(
            f"every entry of {name} to be unmasked",
            "masked entries",
            np.flatnonzero(masked.reshape(len(masked), -1).any(axis=1)),
            len(masked),
            "Fill them or leave the rows out.",
            first_row=first_row,
        )
    return values.data


def _listed(values, name: str) -> list:
    """Convert a tensor or the like, unless it has no entries that can be listed one by one."""
    kinds = {
        "is_sparse": ("sparse", "to_dense()"),
        "is_sparse_csr": ("sparse", "to_dense()"),
        "is_nested": ("nested", "to_padded_tensor()"),
        "is_quantized": ("quantised", "dequantize()"),
        "is_meta": ("meta, without entries", "the tensor itself"),
    }
    for attribute, (kind, remedy) in kinds.items():
        if getattr(values, attribute, False) is True:
            raise TypeError(
                f"Expected {name} to be numbers one by one, got {type(values).__name__} "
                f"({kind}). Pass {remedy}."
            )
    try:
        return values.tolist()
    except Exception as error:  # whatever the library raises
        raise TypeError(
            f"Expected {name} to be numbers one by one, got {type(values).__name__} ({error})."
            " Pass an array or lists."
        ) from error


def _read_slowly(rows, name: str, first_row: int) -> _Lists:
    """Find out what is wrong with rows that NumPy makes no numbers of, or convert them slowly."""
    if not isinstance(rows, list):
        kind = type(rows).__name__
        advice = "Pass one row an image, one column a caption."
        if hasattr(rows, "toarray"):
            advice = "Pass toarray()."
        raise TypeError(f"Expected {name} to be N rows of numbers, got {kind}. {advice}")
    if not rows:
        raise ValueError(
            f"Expected {name} to be at least one row, got none. Pass one row an image."
        )

    def refuse(expected, got, bad, advice, error):
        _refuse(expected, got, bad, len(rows), advice, first_row=first_row, error=error)

    rows = [list(row) if isinstance(row, np.ndarray) and row.ndim else row for row in rows]
    flat = [i for i, row in enumerate(rows) if not isinstance(row, (list, tuple))]
    if flat:
        got = rows[flat[0]]
        error = ValueError if _is_number(got) else TypeError
        advice = "Pass one row an image."
        refuse(f"every row of {name} to be a list", repr(got), flat, advice, error)
    odd = [i for i, row in enumerate(rows) if not all(map(_is_number, row))]
    if odd:
        got = next(entry for entry in rows[odd[0]] if not _is_number(entry))
        advice = "Convert the entries or leave the rows out."
        refuse(f"every entry of {name} to be a number", repr(got), odd, advice, TypeError)
    empty = [i for i, row in enumerate(rows) if not row]
    if empty:
        expected = f"every row of {name} to be at least one long"
        refuse(expected, "0 entries", empty, "Leave such rows out.", ValueError)
    rounded = [i for i, row in enumerate(rows) if not all(map(_is_exact, row))]
    if rounded:
        got = next(entry for entry in rows[rounded[0]] if not _is_exact(entry))
        expected = f"every entry of {name} to be one that float64 holds exactly"
        advice = "Rounded, it could tie with its neighbour: scale the entries, or convert them."
        refuse(expected, repr(got), rounded, advice, ValueError)
    values = np.array([float(entry) for row in rows for entry in row], dtype=np.float64)
    return _Lists(values, np.array([len(row) for row in rows]))


def _is_number(value) -> bool:
    return isinstance(value, (numbers.Real, np.bool_)) and not isinstance(value, np.timedelta64)


def _is_exact(value) -> bool:
    if isinstance(value, (float, np.floating)) and value != value:
        return True  # NaN has an error of its own
    if isinstance(value, np.integer):
        value = int(value)  # NumPy would compare as float64
    try:
        return float(value) == value
    except OverflowError:
        return False


def _refuse(expected, got, bad_rows, num_rows, advice, *, first_row=0, error=ValueError):
    """Raise `error`, naming the first few of the bad rows and their number."""
    named = ", ".join(str(first_row + row) for row in bad_rows[:5])
    named += ", ..." if len(bad_rows) > 5 else ""
    plural = "s" if len(bad_rows) > 1 else ""
    place = f"in row{plural} {named} ({len(bad_rows)} of {num_rows})"
    raise error(f"Expected {expected}, got {got} {place}. {advice}")


def _define_metric():
    """Define `HardPositiveMetric`, as a name of this module.

    Apart, since importing `evaluate` takes seconds, and no formula needs it.
    """
    global HardPositiveMetric
    import datasets
    import evaluate

    @evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS_DESCRIPTION)
    class HardPositiveMetric(evaluate.Metric):
        """`compute_metrics` behind the `evaluate` interface.

        Rows are checked when they are added, so a NaN is refused in the batch that brings it and
        the rows before it are kept. With `num_process` above 1, process 0 alone computes, and
        passes the labels of all rows in `groups`, `clusters` and `sets`, those of process 0 first.
        """

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=_DESCRIPTION,
                citation=_CITATION,
                inputs_description=_INPUTS_DESCRIPTION,
                # float32 would make ties of float64 logits that differ.
                features=datasets.Features(
                    {
                        "predictions": datasets.Sequence(datasets.Value("float64")),
                        "references": datasets.Sequence(datasets.Value("float64")),
                    }
                ),
                codebase_urls=["https://github.com/amitakamath/hard_positives"],
                reference_urls=["https://arxiv.org/abs/2409.17958"],
            )

        def add(self, *, prediction=None, reference=None, predictions=None, references=None):
            """Add one row: K logits and, unless it is a triple, K labels.

            `evaluate.combine` says `predictions` and `references` for one row, too.
            """
            row = predictions if prediction is None else prediction
            labels = references if reference is None else reference
            labels = None if labels is None else [labels]
            logits, positive = _checked([row], labels, first_row=len(self))
            super().add(prediction=logits.values, reference=positive.astype(np.float64))

        def add_batch(self, *, predictions=None, references=None):
            """Add rows: N lists of logits and, unless they are triples, N lists of labels."""
            logits, positive = _checked(predictions, references, first_row=len(self))
            labels = positive.astype(np.float64)
            super().add_batch(
                predictions=logits.apart(logits.values), references=logits.apart(labels)
            )

        def compute(
            self,
            *,
            predictions=None,
            references=None,
            groups=None,
            clusters=None,
            sets=None,
            headline=False,
        ):
            """Compute the figures of the rows added so far and of these; then forget the rows.

            Wrong labels for rows that were added before are refused first, and the rows kept.
            """
            if predictions is None and references is None:
                if len(self) == 0:
                    raise ValueError(
                        "Expected rows to be added before compute, got none."
                        " Pass predictions, or call add or add_batch first."
                    )
                if self.num_process == 1:
                    _row_labels(len(self), groups, clusters, sets)
            settings = {"groups": groups, "clusters": clusters, "sets": sets, "headline": headline}
            return super().compute(predictions=predictions, references=references, **settings)

        def _compute(
            self, predictions, references, groups=None, clusters=None, sets=None, headline=False
        ):
            metrics = compute_metrics(
                predictions, references, groups=groups, clusters=clusters, sets=sets
            )
            if not headline:
                return metrics
            return {name: metrics[name] for name in FIGURES if name in metrics}


def __getattr__(name):
    if name != "HardPositiveMetric":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _define_metric()
    return globals()[name]


if "evaluate" in sys.modules:  # `evaluate.load` looks for the class among the names that are there
    _define_metric()
