"""The hard-positive metric tells a compositional model from one that is sensitive to any edit.

An image is scored against captions that are true of it (positives: the original caption and hard
positives) and captions that are false (hard negatives). Plain functions on NumPy arrays come first
and hold every formula; `HardPositiveMetric` at the end is their thin shell for the `evaluate`
library. No models, images or files here, and no percentages: every figure is a fraction.

`evaluate` copies this file alone into a cache and reads its dependencies line by line, hence one
plain module for each line that brings one in, no comment on those lines, and no use of anything
that stands beside this file.
"""

import collections
import dataclasses
import numbers
import statistics

import datasets
import evaluate
import numpy as np

OUTCOMES = (
    "all_above",
    "only_caption_above",
    "only_hard_positive_above",
    "none_above",
    "tied",
)
"""What can happen in a row, seen from its highest negative; `row_outcomes` gives definitions."""

# Figure -> the field of RowOutcomes whose mean it is.
_FIGURES = {
    "original_accuracy": "original_correct",
    "augmented_accuracy": "augmented_correct",
    "brittleness": "brittle",
    "drop": "dropped",
    "tie_rate": "tied",
}
# Figure -> the field of RowOutcomes whose rows add a half to it.
_HALF_CREDITS = {
    "original_accuracy": "original_tied",
    "augmented_accuracy": "augmented_tied",
    "brittleness": "brittle_tied",
}
_COUNTED = (
    "original_correct",
    "augmented_correct",
    "brittle",
    "original_tied",
    "augmented_tied",
    "brittle_tied",
)

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
    predictions: (N, K) logits or similarities, one row an image, one column a caption. Higher means
        a better match.
    references: (N, K) of 1 (the caption is true of the image) and 0 (false). The first 1 of a row
        is the original caption. Left out, K must be 3 and every row is [1, 1, 0]: caption, hard
        positive, hard negative.
    groups: N labels (str or int), such as the category; adds `groups` (every figure by label) and
        `macro` (their unweighted mean).
    clusters: N labels (str or int), such as the image id; rows that share one are not counted as
        independent.

Returns:
    A dict of floats (fractions) and ints (counts): `original_accuracy`, `augmented_accuracy`,
    `brittleness`, `drop`, `tie_rate`, each with `_standard_error`, `_ci_low` and `_ci_high`; the
    first three with `_half_credit`; and the counts that they are made from.

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
    >>> results["original_accuracy"]
    0.5
"""


@dataclasses.dataclass(frozen=True, eq=False)
class RowOutcomes:
    """What happened in each of N rows; every field is an (N,) array in the order of the rows.

    The means of the bool fields are the figures, their sums the counts. `row_outcomes` gives the
    definitions.
    """

    outcome: np.ndarray
    """One of `OUTCOMES`, as str."""
    original_correct: np.ndarray
    augmented_correct: np.ndarray
    brittle: np.ndarray
    tied: np.ndarray
    original_tied: np.ndarray
    augmented_tied: np.ndarray
    brittle_tied: np.ndarray

    def __len__(self) -> int:
        return len(self.outcome)

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
        predictions: (N, K) finite logits, lists, an array, a tensor or a data frame.
        references: (N, K) of 1 and 0, at least one of each in a row; may be left out for triples.

    Returns:
        The outcomes of the N rows.

    Raises:
        TypeError: An entry is not a number.
        ValueError: No rows, rows of different lengths, NaN or infinity, labels other than 0 and 1,
            a row without a positive or without a negative, `references` of another shape, or left
            out where K is not 3.

    Examples:
        >>> rows = row_outcomes([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [3.0, 1.0, 1.0]])
        >>> rows.outcome.tolist()
        ['all_above', 'only_caption_above', 'tied']
        >>> rows.original_correct.tolist(), rows.augmented_correct.tolist()
        ([True, True, True], [True, False, False])

    Source:
        The five counters of `run_eval.py` in github.com/amitakamath/hard_positives, commit 33addaa.
        There a tied row is never counted among the other four either. New here: any number of
        positives and negatives, half credit, and errors where NaN would have made a row vanish from
        all five counters.
    """
    return _judge(*_checked(predictions, references))


def _judge(logits: np.ndarray, positive: np.ndarray) -> RowOutcomes:
    every_row = np.arange(len(logits))
    first = positive.argmax(axis=1)
    others = positive.copy()
    others[every_row, first] = False

    caption = logits[every_row, first]
    worst_other = np.where(others, logits, np.inf).min(axis=1)
    worst_other = np.where(others.any(axis=1), worst_other, caption)
    worst_positive = np.minimum(caption, worst_other)
    best_positive = np.where(positive, logits, -np.inf).max(axis=1)
    best_negative = np.where(positive, -np.inf, logits).max(axis=1)

    low, high = worst_positive[:, None], best_positive[:, None]
    brittle = (~positive & (low < logits) & (logits < high)).any(axis=1)
    between_or_equal = (~positive & (low <= logits) & (logits <= high)).any(axis=1)
    tied = (best_negative == caption) | (best_negative == worst_other)
    caption_above, others_above = caption > best_negative, worst_other > best_negative
    # np.select takes the first that holds.
    conditions = {
        "tied": tied,
        "all_above": caption_above & others_above,
        "only_caption_above": caption_above,
        "only_hard_positive_above": others_above,
    }
    return RowOutcomes(
        outcome=np.select(list(conditions.values()), list(conditions), default="none_above"),
        original_correct=caption_above,
        augmented_correct=worst_positive > best_negative,
        brittle=brittle,
        tied=tied,
        original_tied=caption == best_negative,
        augmented_tied=worst_positive == best_negative,
        # "Two positives" means two columns: equal ones count, a single one does not.
        brittle_tied=between_or_equal & ~brittle & others.any(axis=1),
    )


def compute_metrics(predictions, references=None, *, groups=None, clusters=None) -> dict:
    """Compute all figures of N rows, with 95 % intervals, from their logits.

    The figures are shares of rows, in [0, 1]; `row_outcomes` defines what makes a row count:

    * `original_accuracy` (higher is better): the caption is above every negative. Alone it
      misleads: a model that merely dislikes edits gets it right.
    * `augmented_accuracy` (higher is better): every positive is above every negative. At most
      `original_accuracy`.
    * `brittleness` (lower is better): some negative lies strictly between two positives. It
      misleads alone: a model that ranks the negative above all is not brittle, only wrong.
    * `drop` = original - augmented (lower is better): rows that only the hard positives lose.
    * `tie_rate` (lower is better): the highest negative equals the caption or the worst other
      positive. A tie is never right. More than a few ties usually mean logits computed in half
      precision.
    * `..._half_credit` of the first three: each comparison counts 1, 0.5 at a tie, 0; an accuracy
      takes the minimum over its comparisons, so `original_accuracy_half_credit` =
      (num_original_correct + num_original_tied / 2) / N and likewise augmented. For brittleness a
      negative counts, for a pair of positives, the minimum of "below the one" and "above the
      other", and the row the best over negatives and pairs: (num_brittle + num_brittle_tied / 2) /
      N.

    Chance for triples of independent scores: 1/2, 1/3, 1/3. Every figure follows from the counts
    `num_...`, and these add up over parts of the data (`num_clusters` only where no cluster is in
    two parts).

    A figure is a weighted sum over rows, sum_i w_i x_i: w_i = 1 / N, and for `macro` over G groups
    w_i = 1 / (G N_g). With the residuals r_i = w_i (x_i - mean of the row's group), or overall
    mean, and C clusters,

        S = sum over clusters of (sum of r_i in the cluster)^2,
        standard_error^2 = C / (C - 1) * S,

    each row its own cluster where `clusters` is left out. The interval is `wilson_interval` of the
    figure p for the effective number of rows p (1 - p) / S, the number of independent rows with
    that error: N without clusters, C if rows of a cluster agree perfectly. It is at most N, and C
    where p is 0 or 1. With one cluster the standard error is undefined, so None, and the interval
    that of a single row. With few clusters (under 30, say) intervals are too narrow.

    Args:
        predictions: (N, K) finite logits, one row an image, one column a caption.
        references: (N, K) of 1 (true caption) and 0 (false); the first 1 of a row is the original
            caption. Left out, K must be 3 and every row is [1, 1, 0].
        groups: N labels, str or int.
        clusters: N labels, str or int, such as the image id; may cross groups.

    Returns:
        A flat dict of Python floats and ints: `num_examples`, `num_clusters`, `num_` + each of
        `OUTCOMES`, `num_original_correct`, `num_augmented_correct`, `num_brittle`,
        `num_original_tied`, `num_augmented_tied`, `num_brittle_tied`, each figure with
        `_standard_error` (or None), `_ci_low` and `_ci_high`, and three `_half_credit`. With
        `groups` also `groups`, a dict of such dicts by label in order of appearance, and `macro`,
        the unweighted mean of their figures with `num_examples`, `num_clusters` and `num_groups`.

    Raises:
        TypeError: As `row_outcomes`; or a label is neither str nor int.
        ValueError: As `row_outcomes`; or a label is missing, or there are not N of them.

    Examples:
        >>> metrics = compute_metrics([[3, 2, 1], [3, 1, 2], [1, 3, 2], [1, 2, 3]])
        >>> metrics["original_accuracy"], metrics["augmented_accuracy"], metrics["brittleness"]
        (0.5, 0.25, 0.5)
        >>> round(metrics["drop_ci_low"], 3), round(metrics["drop_ci_high"], 3)
        (0.046, 0.699)

        Two groups of unequal size; `macro` gives each the same weight:

        >>> metrics = compute_metrics([[3, 2, 1]] * 3 + [[1, 2, 3]], groups=["a", "a", "a", "b"])
        >>> metrics["original_accuracy"], metrics["macro"]["original_accuracy"]
        (0.75, 0.5)

    Source:
        Figures: Kamath et al., ECCV 2024, and `run_eval.py` of
        github.com/amitakamath/hard_positives, commit 33addaa, which prints counts for one file; its
        paper averages groups as `macro` does. Intervals are not in either. The clustered error is
        the sandwich of Liang and Zeger (Biometrika 1986) for a mean. Wilson's interval (JASA 1927)
        at an effective sample size follows the survey literature: Korn and Graubard (Survey
        Methodology 1998), Franco et al. (JSSAM 2019), who divide p (1 - p) by standard_error^2
        instead of S and so get N - 1 for independent rows, where this gives Wilson's own interval.
    """
    rows = row_outcomes(predictions, references)
    if clusters is None:
        cluster_codes = np.arange(len(rows))
    else:
        _, cluster_codes = _codes(clusters, "clusters", len(rows))

    metrics = _summary(rows, cluster_codes)
    if groups is None:
        return metrics
    labels, codes = _codes(groups, "groups", len(rows))
    # A stable sort keeps the order of rows within a group.
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    metrics["groups"] = {
        label: _summary(rows.take(member), cluster_codes[member])
        for label, member in zip(labels, members, strict=True)
    }
    metrics["macro"] = {
        "num_examples": len(rows),
        "num_clusters": metrics["num_clusters"],
        "num_groups": len(labels),
        **_figures(rows, codes, cluster_codes),
    }
    return metrics


def wilson_interval(share: float, num_rows: float) -> tuple[float, float]:
    """Compute the 95 % Wilson score interval of a share seen in so many independent rows.

    With z = 1.96: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). Unlike p -+
    1.96 standard errors it stays in [0, 1] and keeps a width at 0 and 1.

    Args:
        share: p, in [0, 1].
        num_rows: n, above 0; an effective number need not be whole.

    Returns:
        The lower and the upper end, in [0, 1].

    Examples:
        >>> low, high = wilson_interval(1.0, 100)
        >>> round(low, 3), high
        (0.963, 1.0)

    Source:
        Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22
        (1927).
    """
    z = statistics.NormalDist().inv_cdf(0.975)
    shrinkage = 1 + z**2 / num_rows
    centre = (share + z**2 / (2 * num_rows)) / shrinkage
    variance = share * (1 - share) / num_rows + z**2 / (4 * num_rows**2)
    margin = z * variance**0.5 / shrinkage
    # At 0 and 1 an end is exact, but for rounding.
    low = 0.0 if share == 0 else max(0.0, centre - margin)
    high = 1.0 if share == 1 else min(1.0, centre + margin)
    return low, high


def _summary(rows: RowOutcomes, clusters: np.ndarray) -> dict:
    """Count and average one set of rows."""
    outcomes = collections.Counter(rows.outcome.tolist())
    return {
        "num_examples": len(rows),
        "num_clusters": len(np.unique(clusters)),
        **{f"num_{outcome}": outcomes[outcome] for outcome in OUTCOMES},
        **{f"num_{field}": int(getattr(rows, field).sum()) for field in _COUNTED},
        **_figures(rows, np.zeros(len(rows), dtype=int), clusters),
    }


def _figures(rows: RowOutcomes, groups: np.ndarray, clusters: np.ndarray) -> dict:
    """Average over groups without weights; with a single group this is the plain mean."""
    _, clusters = np.unique(clusters, return_inverse=True)
    figures = {}
    for figure, field in _FIGURES.items():
        figures |= _estimate(figure, getattr(rows, field), groups, clusters)
    for figure, field in _HALF_CREDITS.items():
        values = getattr(rows, _FIGURES[figure]) + getattr(rows, field) / 2
        mean, _ = _mean_and_spread(values, groups, clusters)
        figures[f"{figure}_half_credit"] = mean
    return figures


def _estimate(figure: str, values: np.ndarray, groups: np.ndarray, clusters: np.ndarray) -> dict:
    """Estimate a share with its standard error and interval."""
    num_rows, num_clusters = len(values), int(clusters.max()) + 1
    share, spread = _mean_and_spread(values, groups, clusters)
    if num_clusters == 1 or share in (0, 1):
        effective_rows = num_clusters  # residuals that are all zero tell nothing of the error
    elif spread == 0:
        effective_rows = num_rows
    else:
        effective_rows = min(num_rows, share * (1 - share) / spread)
    low, high = wilson_interval(share, effective_rows)
    error = None
    if num_clusters > 1:
        error = (num_clusters / (num_clusters - 1) * spread) ** 0.5
    return {
        figure: share,
        f"{figure}_standard_error": error,
        f"{figure}_ci_low": low,
        f"{figure}_ci_high": high,
    }


def _mean_and_spread(values, groups, clusters) -> tuple[float, float]:
    """Compute the mean of the groups' means, and S of `compute_metrics`."""
    sizes = np.bincount(groups)
    means = np.bincount(groups, values) / sizes
    residuals = (values - means[groups]) / (len(sizes) * sizes[groups])
    return float(means.mean()), float(np.square(np.bincount(clusters, residuals)).sum())


def _codes(labels, name: str, num_rows: int) -> tuple[list, np.ndarray]:
    """List the labels in order of appearance, and each row's place among them."""
    if isinstance(labels, (str, bytes)) or not hasattr(labels, "__len__"):
        kind = type(labels).__name__
        raise TypeError(
            f"Expected {name} to be a list of labels, got {kind}. Pass one label a row."
        )
    labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    labels = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if len(labels) != num_rows:
        raise ValueError(
            f"Expected {name} to be {num_rows} labels, got {len(labels)}. Pass one label a row."
        )
    expected = f"every label of {name} to be a str or an int"
    missing = [row for row, label in enumerate(labels) if label is None or label != label]
    if missing:
        advice = "Fill the missing labels or leave the rows out."
        _refuse(expected, repr(labels[missing[0]]), missing, num_rows, advice)
    odd = [row for row, label in enumerate(labels) if type(label) not in (str, int)]
    if odd:
        got = repr(labels[odd[0]])
        _refuse(expected, got, odd, num_rows, "Convert the labels.", error=TypeError)
    places = {}
    codes = np.array([places.setdefault(label, len(places)) for label in labels])
    return list(places), codes


def _checked(predictions, references, *, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, K) float64 and which are positive (N, K) bool, or refuse them.

    `first_row` is the number of the first of these rows, for the errors.
    """
    logits = _matrix(predictions, "predictions", first_row)
    num_rows, num_captions = logits.shape
    bad = ~np.isfinite(logits)
    if bad.any():
        _refuse(
            "every logit of predictions to be finite",
            logits[bad][0],
            np.flatnonzero(bad.any(axis=1)),
            num_rows,
            "Look for a broken image or an overflow in the model.",
            first_row=first_row,
        )
    if references is None:
        if num_captions != 3:
            raise ValueError(
                "Expected predictions to be 3 columns (caption, hard positive, hard negative) where"
                f" references are left out, got {num_captions}. Pass references: 1 for a true"
                " caption, 0 for a false one."
            )
        return logits, np.tile([True, True, False], (num_rows, 1))

    labels = _matrix(references, "references", first_row)
    if labels.shape != logits.shape:
        raise ValueError(
            f"Expected references to be of the shape of predictions, {logits.shape}, got"
            f" {labels.shape}. Pass one label for every logit."
        )
    _check_labels(labels, first_row)
    return logits, labels == 1


def _check_labels(labels: np.ndarray, first_row: int) -> None:
    wrong = (labels != 0) & (labels != 1)
    if wrong.any():
        _refuse(
            "every label of references to be 1 or 0",
            labels[wrong][0],
            np.flatnonzero(wrong.any(axis=1)),
            len(labels),
            "Use 1 for a true caption and 0 for a false one.",
            first_row=first_row,
        )
    for kind, label in (("positive", 1), ("negative", 0)):
        without = np.flatnonzero(~(labels == label).any(axis=1))
        if len(without):
            _refuse(
                f"every row of references to be labels with at least one {kind} ({label})",
                labels[without[0]].astype(int).tolist(),
                without,
                len(labels),
                "Leave such rows out.",
                first_row=first_row,
            )


def _matrix(values, name: str, first_row: int) -> np.ndarray:
    """Make an (N, K) float64 array of lists, an array, a tensor or a data frame."""
    if isinstance(values, (list, tuple)):
        values = [row.tolist() if hasattr(row, "tolist") else row for row in values]
    elif not isinstance(values, np.ndarray) and hasattr(values, "tolist"):
        # A tensor, which NumPy refuses in bfloat16, with gradients or on a GPU.
        values = values.tolist()
    try:
        array = np.asarray(values)
    except ValueError:
        array = None  # rows of different lengths
    if array is not None and array.ndim == 2 and array.size and array.dtype.kind in "biuf":
        return array.astype(np.float64)

    if array is not None and array.ndim and not isinstance(values, list):
        values = array.tolist()
    return _matrix_of_lists(values, name, first_row)


def _matrix_of_lists(rows, name: str, first_row: int) -> np.ndarray:
    """Find out what is wrong with rows that NumPy makes no matrix of, or convert them slowly."""
    if not isinstance(rows, list):
        kind = type(rows).__name__
        raise TypeError(
            f"Expected {name} to be an (N, K) array of numbers, got {kind}."
            " Pass one row an image, one column a caption."
        )
    if not rows:
        raise ValueError(
            f"Expected {name} to be at least one row, got none. Pass one row an image."
        )

    def refuse(expected, got, bad, advice, error):
        _refuse(expected, got, bad, len(rows), advice, first_row=first_row, error=error)

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
    [(length, _)] = collections.Counter(map(len, rows)).most_common(1)
    ragged = [i for i, row in enumerate(rows) if len(row) != length or not row]
    if ragged:
        expected = f"every row of {name} to be {length or 'at least one'} long, as most are"
        advice = "Pass one column a caption, the same number in every row."
        refuse(expected, f"{len(rows[ragged[0]])} entries", ragged, advice, ValueError)
    return np.array(rows, dtype=np.float64)


def _is_number(value) -> bool:
    return isinstance(value, (numbers.Real, np.bool_))


def _refuse(expected, got, bad_rows, num_rows, advice, *, first_row=0, error=ValueError):
    """Raise `error`, naming the first few of the bad rows and their number."""
    named = ", ".join(str(first_row + row) for row in bad_rows[:5])
    named += ", ..." if len(bad_rows) > 5 else ""
    plural = "s" if len(bad_rows) > 1 else ""
    place = f"in row{plural} {named} ({len(bad_rows)} of {num_rows})"
    raise error(f"Expected {expected}, got {got} {place}. {advice}")


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS_DESCRIPTION)
class HardPositiveMetric(evaluate.Metric):
    """`compute_metrics` behind the `evaluate` interface.

    Rows are checked when they are added, so a NaN is refused in the batch that brings it and the
    rows before it are kept. With `num_process` above 1, process 0 alone computes, and passes the
    labels of all rows in `groups` and `clusters`, those of process 0 first.
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
        super().add(prediction=logits[0], reference=positive[0].astype(np.float64))

    def add_batch(self, *, predictions=None, references=None):
        """Add rows: (N, K) logits and, unless they are triples, (N, K) labels."""
        logits, positive = _checked(predictions, references, first_row=len(self))
        super().add_batch(predictions=logits, references=positive.astype(np.float64))

    def compute(self, *, predictions=None, references=None, groups=None, clusters=None):
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
                for name, labels in {"groups": groups, "clusters": clusters}.items():
                    if labels is not None:
                        _codes(labels, name, len(self))
        return super().compute(
            predictions=predictions, references=references, groups=groups, clusters=clusters
        )

    def _compute(self, predictions, references, groups=None, clusters=None):
        return compute_metrics(predictions, references, groups=groups, clusters=clusters)
