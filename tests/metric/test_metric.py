"""The metric: figures, errors of the figures, and the `evaluate` shell around them."""

import decimal
import doctest
import fractions
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pandas
import pyarrow as pa
import pytest
import torch
from scipy import sparse, stats

from attacks.metric import metric_inputs
from attacks.trials import run_attack
from hard_positive_metric import (
    FIGURES as TABLE,
)
from hard_positive_metric import (
    OUTCOMES,
    compute_metrics,
    paired_difference,
    row_outcomes,
    set_outcomes,
    share_of_rows,
    wilson_interval,
)
from hard_positive_metric import hard_positive_metric as metric_file

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "hard_positive_metric"
FIGURES = ("original_accuracy", "augmented_accuracy", "brittleness", "drop", "tie_rate")
ENDINGS = ("", "_standard_error", "_ci_low", "_ci_high")
HALF_CREDITS = tuple(f"{figure}_half_credit" for figure in FIGURES[:3])
COUNTS = (
    "num_examples",
    *(f"num_{outcome}" for outcome in OUTCOMES),
    *("num_original_correct", "num_augmented_correct", "num_brittle"),
    *("num_original_tied", "num_augmented_tied", "num_brittle_tied"),
)
LOGITS = [[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Examples load the metric by its bare name, a folder of the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path / "cache"))


def random_rows(seed, num_rows=200, num_captions=5, levels=4):
    """Scores with many ties, and labels with at least one positive and one negative a row."""
    random = np.random.default_rng(seed)
    logits = random.integers(0, levels, (num_rows, num_captions)).astype(float)
    num_positives = random.integers(1, num_captions, (num_rows, 1))
    references = (np.arange(num_captions) < num_positives).astype(int)
    return logits, random.permuted(references, axis=1)


# --- The definitions ------------------------------------------------------------------------------

# Every weak ordering of three scores: caption, hard positive, hard negative. Then what is expected:
# outcome, and original, augmented, brittle as 1, 0, or 0.5 (wrong, but a half in half credit).
WEAK_ORDERINGS = [
    # c  p  n   outcome                    orig  aug  brittle
    ((3, 2, 1), "all_above", 1, 1, 0),
    ((2, 3, 1), "all_above", 1, 1, 0),
    ((2, 2, 1), "all_above", 1, 1, 0),
    ((3, 1, 2), "only_caption_above", 1, 0, 1),
    ((1, 3, 2), "only_hard_positive_above", 0, 0, 1),
    ((2, 1, 3), "none_above", 0, 0, 0),
    ((1, 2, 3), "none_above", 0, 0, 0),
    ((1, 1, 2), "none_above", 0, 0, 0),
    ((2, 1, 1), "tied", 1, 0.5, 0.5),
    ((1, 2, 1), "tied", 0.5, 0.5, 0.5),
    ((2, 1, 2), "tied", 0.5, 0, 0.5),
    ((1, 2, 2), "tied", 0, 0, 0.5),
    ((1, 1, 1), "tied", 0.5, 0.5, 0.5),
]


@pytest.mark.parametrize(("scores", "outcome", "original", "augmented", "brittle"), WEAK_ORDERINGS)
def test_each_weak_ordering_of_three_scores_is_judged_as_the_table_says(
    scores, outcome, original, augmented, brittle
):
    metrics = compute_metrics([scores])
    assert row_outcomes([scores]).outcome.tolist() == [outcome]
    assert [metrics[f"num_{name}"] for name in OUTCOMES] == [name == outcome for name in OUTCOMES]
    assert [metrics[figure] for figure in FIGURES] == [
        original == 1,
        augmented == 1,
        brittle == 1,
        original == 1 and augmented != 1,
        outcome == "tied",
    ]
    assert [metrics[figure] for figure in HALF_CREDITS] == [original, augmented, brittle]


def test_the_table_holds_all_thirteen_weak_orderings():
    ranks = {tuple(np.unique(row[0], return_inverse=True)[1]) for row in WEAK_ORDERINGS}
    assert len(WEAK_ORDERINGS) == len(ranks) == 13


def published_counters(rows):
    """The five numbers that the published script prints, in its order."""
    both = between = swapped = neither = tie = 0
    for c, p, n in rows:
        both += n < p and n < c
        between += c > n and n > p
        swapped += p > n and n > c
        neither += n > p and n > c
        tie += n in (p, c)
    return [both, between, swapped, neither, tie]


def test_counts_agree_with_the_published_script_on_a_thousand_score_sets_with_ties():
    random = np.random.default_rng(0)
    ties = 0
    for _ in range(1000):
        logits = random.integers(0, random.integers(2, 9), (random.integers(1, 30), 3))
        metrics = compute_metrics(logits)
        assert [metrics[f"num_{outcome}"] for outcome in OUTCOMES] == published_counters(logits)
        ties += metrics["num_tied"]
    assert ties > 1000


def naive_row(scores, labels):
    """The figures of one row by loops over pairs of captions: (strict, half credit) of each."""
    positives = [score for score, label in zip(scores, labels, strict=True) if label]
    negatives = [score for score, label in zip(scores, labels, strict=True) if not label]

    def credit(a, b):
        return 1 if a > b else 0.5 if a == b else 0

    original = min(credit(positives[0], n) for n in negatives)
    augmented = min(credit(p, n) for p in positives for n in negatives)
    brittle = max(
        (
            min(credit(above, n), credit(n, below))
            for i, above in enumerate(positives)
            for j, below in enumerate(positives)
            for n in negatives
            if i != j
        ),
        default=0,
    )
    others = positives[1:] or positives
    return original, augmented, brittle, max(negatives) in (positives[0], min(others))


@pytest.mark.parametrize("num_captions", [2, 3, 4, 6])
def test_figures_agree_with_plain_loops_for_any_number_of_captions(num_captions):
    logits, references = random_rows(num_captions, num_rows=500, num_captions=num_captions)
    metrics = compute_metrics(logits, references)
    naive = [naive_row(*row) for row in zip(logits, references, strict=True)]
    original, augmented, brittle, tied = np.array(naive, dtype=float).T
    expected = {
        "original_accuracy": (original == 1).mean(),
        "augmented_accuracy": (augmented == 1).mean(),
        "brittleness": (brittle == 1).mean(),
        "drop": ((original == 1) & (augmented != 1)).mean(),
        "tie_rate": tied.mean(),
        "original_accuracy_half_credit": original.mean(),
        "augmented_accuracy_half_credit": augmented.mean(),
        "brittleness_half_credit": brittle.mean(),
    }
    if num_captions == 2:  # a single positive
        expected = {name: share for name, share in expected.items() if not is_of_pairs(name)}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "labels", "outcome", "brittle"),
    [
        ([2, 1], [1, 0], "all_above", False),
        ([1, 2], [1, 0], "none_above", False),
        ([1, 1], [1, 0], "tied", False),
        ([1, 2, 3], [0, 1, 1], "all_above", False),
        ([5, 3, 4, 1], [0, 1, 1, 0], "none_above", False),
        ([5, 4, 2, 3], [0, 1, 1, 0], "none_above", True),  # a lower negative separates them
        ([1, 1, 9, 5], [1, 1, 1, 0], "none_above", True),  # only the best of three is above
        ([9, 1, 5, 5], [1, 1, 1, 0], "only_caption_above", True),
        ([1, 9, 8, 5], [1, 1, 1, 0], "only_hard_positive_above", True),
    ],
)
def test_outcomes_with_other_numbers_of_captions_follow_their_definition(
    scores, labels, outcome, brittle
):
    rows = row_outcomes([scores], [labels])
    assert (rows.outcome[0], rows.brittle[0]) == (outcome, brittle)


def is_of_pairs(key):
    """Whether a key is of a figure that takes two positives."""
    return "brittle" in key or key.startswith("drop")


def random_lists(seed, num_rows, most_positives=5, most_negatives=8):
    """Rows that differ in length, with many ties."""
    random = np.random.default_rng(seed)
    logits, references = [], []
    for _ in range(num_rows):
        counts = random.integers(1, most_positives + 1), random.integers(1, most_negatives + 1)
        labels = random.permutation(np.repeat([1, 0], counts)).tolist()
        logits.append(random.integers(0, 2 * len(labels), len(labels)).astype(float).tolist())
        references.append(labels)
    return logits, references


def naive_outcome(scores, labels):
    positives = [score for score, label in zip(scores, labels, strict=True) if label]
    highest = max(score for score, label in zip(scores, labels, strict=True) if not label)
    first, worst = positives[0], min(positives[1:], default=positives[0])
    if highest in (first, worst):
        return "tied"
    if first > highest:
        return "all_above" if worst > highest else "only_caption_above"
    return "only_hard_positive_above" if worst > highest else "none_above"


def test_rows_of_1_to_5_positives_and_1_to_8_negatives_are_judged_as_one_row_at_a_time():
    logits, references = random_lists(0, 20_000)
    rows = row_outcomes(logits, references)
    naive = [naive_row(*row) for row in zip(logits, references, strict=True)]
    original, augmented, brittle, tied = np.array(naive, dtype=float).T
    for credit, strict, half in (
        (original, rows.original_correct, rows.original_tied),
        (augmented, rows.augmented_correct, rows.augmented_tied),
        (brittle, rows.brittle, rows.brittle_tied),
    ):
        assert strict.tolist() == (credit == 1).tolist()
        assert half.tolist() == (credit == 0.5).tolist()
        assert half.sum() > 300
    assert rows.tied.tolist() == (tied == 1).tolist()
    naive_outcomes = [naive_outcome(*row) for row in zip(logits, references, strict=True)]
    assert rows.outcome.tolist() == naive_outcomes
    assert set(naive_outcomes) == set(OUTCOMES)
    assert rows.num_positives.tolist() == [sum(labels) for labels in references]
    assert rows.num_negatives.tolist() == [labels.count(0) for labels in references]


def test_rows_that_differ_in_length_count_like_the_same_rows_sorted_by_length():
    logits, references = random_lists(1, 400)
    groups, clusters = [len(row) for row in logits], [place % 150 for place in range(400)]
    metrics = compute_metrics(logits, references, groups=groups, clusters=clusters)
    for width, part in metrics["groups"].items():
        rows = [place for place, row in enumerate(logits) if len(row) == width]
        matrix, labels = (np.array([of[row] for row in rows]) for of in (logits, references))
        expected = compute_metrics(matrix, labels, clusters=[clusters[row] for row in rows])
        assert rounded(part) == rounded(expected)
    whole = {name: sum(part.get(name, 0) for part in metrics["groups"].values()) for name in COUNTS}
    assert {name: metrics[name] for name in COUNTS} == whole


ARROW_TYPES = {
    "float32": (pa.list_(pa.float32()), pa.list_(pa.bool_())),
    "float64, large": (pa.large_list(pa.float64()), pa.large_list(pa.int8())),
    "float16": (pa.list_(pa.float16()), pa.list_(pa.float32())),
    "ints": (pa.list_(pa.int64()), pa.list_(pa.uint8())),
}


@pytest.mark.parametrize("kinds", ARROW_TYPES.values(), ids=ARROW_TYPES)
def test_arrow_lists_count_like_the_same_python_lists(kinds):
    logits, references = random_lists(2, 300)
    expected = compute_metrics(logits, references)
    arrays = [
        pa.array([np.asarray(row, dtype=kind.value_type.to_pandas_dtype()) for row in rows], kind)
        for rows, kind in zip((logits, references), kinds, strict=True)
    ]
    assert compute_metrics(*arrays) == expected
    chunked = [pa.chunked_array([array[:7], array[7:7], array[7:]]) for array in arrays]
    assert compute_metrics(*chunked) == expected
    sliced = [array[100:200] for array in arrays]
    assert compute_metrics(*sliced) == compute_metrics(logits[100:200], references[100:200])


def test_arrow_lists_of_a_fixed_size_and_arrow_labels_are_taken():
    fixed = pa.array(LOGITS, pa.list_(pa.float32(), 3))
    labels = pa.array(["a", "a", "b", "b", "c"]), pa.chunked_array([[1, 1], [2, 3, 4]])
    options = [
        {"groups": groups, "clusters": clusters}
        for groups, clusters in (labels, [column.to_pylist() for column in labels])
    ]
    assert compute_metrics(fixed, **options[0]) == compute_metrics(LOGITS, **options[1])
    assert compute_metrics(fixed[2:]) == compute_metrics(LOGITS[2:])


def test_figures_of_two_positives_are_absent_where_no_row_has_two():
    pairs = compute_metrics([[2, 1], [1, 2], [1, 1]], [[1, 0]] * 3)
    assert [key for key in pairs if is_of_pairs(key)] == []
    assert pairs["original_accuracy_half_credit"] == pytest.approx(1 / 2)

    logits, references = [[2, 1], [3, 2, 1], [3, 1, 2]], [[1, 0], [1, 1, 0], [1, 1, 0]]
    mixed = compute_metrics(logits, references, groups=["one", "two", "two"])
    assert mixed["brittleness"] == pytest.approx(1 / 3)  # the pair counts as not brittle
    assert mixed["groups"]["two"]["brittleness"] == 1 / 2
    for part in (mixed["groups"]["one"], mixed["macro"]):
        assert [key for key in part if is_of_pairs(key)] == []
        assert "augmented_accuracy_ci_low" in part
    both = compute_metrics(logits[1:], references[1:], groups=["one", "two"])
    assert both["macro"]["brittleness"] == 1 / 2


# --- Chance ---------------------------------------------------------------------------------------

ROW_FIGURES = [name for name, figure in TABLE.items() if figure.field]


def test_the_table_of_figures_has_titles_directions_and_fields():
    assert list(TABLE) == [*FIGURES, "set_accuracy"]
    better = [figure.better for figure in TABLE.values()]
    assert better == ["higher", "higher", "lower", "lower", "lower", "higher"]
    titles = ["original", "augmented", "brittleness", "drop", "ties", "sets"]
    assert [figure.title for figure in TABLE.values()] == titles
    rows, metrics = row_outcomes(LOGITS), compute_metrics(LOGITS)
    for name in ROW_FIGURES:
        assert getattr(rows, TABLE[name].field).mean() == metrics[name]
    assert TABLE["set_accuracy"].field is TABLE["set_accuracy"].chance is None


@pytest.mark.parametrize(
    ("positives", "negatives"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2), (3, 4)]
)
def test_chance_is_the_mean_over_all_orders_of_the_scores(positives, negatives):
    num_candidates = positives + negatives
    orders = list(itertools.permutations(range(num_candidates)))
    rows = row_outcomes(orders, [[1] * positives + [0] * negatives] * len(orders))
    for name in ROW_FIGURES:
        expected = getattr(rows, TABLE[name].field).mean()
        assert TABLE[name].chance(positives, negatives) == pytest.approx(expected, abs=1e-12), name


def test_chance_for_triples_is_a_half_and_two_thirds_in_thirds():
    assert [TABLE[name].chance(2, 1) for name in ROW_FIGURES] == pytest.approx(
        [1 / 2, 1 / 3, 1 / 3, 1 / 6, 0]
    )


def test_chance_is_what_independent_scores_give_in_rows_of_any_length():
    random = np.random.default_rng(3)
    _, references = random_lists(3, 20_000)
    logits = [random.normal(size=len(labels)) for labels in references]
    metrics = compute_metrics(logits, references)
    for name in ROW_FIGURES:
        chance = TABLE[name].chance
        expected = np.mean([chance(sum(labels), labels.count(0)) for labels in references])
        assert metrics[name] == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(20_000))
    assert TABLE["augmented_accuracy"].chance(600, 900) == pytest.approx(0, abs=1e-300)


# --- Sets -----------------------------------------------------------------------------------------


def two_by_two(matrices):
    """Rows of benchmarks of two images and two captions: (M, 2, 2) scores of image, caption."""
    logits = np.concatenate([matrices, matrices.transpose(0, 2, 1)], axis=1).reshape(-1, 2)
    return {
        "predictions": logits,
        "references": np.tile(np.eye(2), (2 * len(matrices), 1)),
        "groups": ["image_to_text", "image_to_text", "text_to_image", "text_to_image"]
        * len(matrices),
        "sets": np.repeat(np.arange(len(matrices)), 4),
    }


def winoground(matrices):
    """The text, image and group score, as the paper has them: one example at a time."""
    text, image, group = [], [], []
    for (c0_i0, c1_i0), (c0_i1, c1_i1) in matrices.tolist():
        text.append(c0_i0 > c1_i0 and c1_i1 > c0_i1)
        image.append(c0_i0 > c0_i1 and c1_i1 > c1_i0)
        group.append(text[-1] and image[-1])
    return np.array([text, image, group])


def test_sets_by_direction_are_the_three_scores_of_winoground():
    matrices = np.random.default_rng(4).integers(0, 6, (20_000, 2, 2)).astype(float)
    expected = winoground(matrices)
    metrics = compute_metrics(**two_by_two(matrices))
    parts = [metrics["groups"]["image_to_text"], metrics["groups"]["text_to_image"], metrics]
    for part, correct in zip(parts, expected, strict=True):
        assert part["num_sets"] == part["num_clusters"] == 20_000
        assert part["num_sets_correct"] == correct.sum()
        assert part["set_accuracy"] == correct.mean()
        share = share_of_rows(correct)
        assert part["set_accuracy_standard_error"] == share.standard_error
        assert part["set_accuracy_ci_low"] == share.ci_low
        assert part["set_accuracy_ci_high"] == share.ci_high
    assert metrics["macro"]["num_sets"] == 20_000
    # Both directions of a set are one cluster.
    macro = share_of_rows(
        expected[:2].reshape(-1), groups=[0] * 20_000 + [1] * 20_000, clusters=[*range(20_000)] * 2
    )
    ends = [metrics["macro"][f"set_accuracy{end}"] for end in ENDINGS]
    assert ends == pytest.approx(
        [macro.value, macro.standard_error, macro.ci_low, macro.ci_high], abs=1e-12
    )
    assert [key for key in metrics if is_of_pairs(key)] == []


def test_set_outcomes_are_the_sets_behind_the_share_in_order_of_appearance():
    logits, references = random_lists(5, 500, most_positives=2, most_negatives=2)
    sets = [f"set {place}" for place in np.random.default_rng(5).integers(0, 200, 500)]
    rows = row_outcomes(logits, references)
    found = set_outcomes(rows, sets)
    labels = list(dict.fromkeys(sets))
    assert found.labels == labels and len(found) == len(labels)
    assert found.first_row.tolist() == [sets.index(label) for label in labels]
    right = dict.fromkeys(labels, True)
    for label, is_right in zip(sets, rows.augmented_correct.tolist(), strict=True):
        right[label] &= is_right
    assert found.correct.tolist() == list(right.values())
    metrics = compute_metrics(logits, references, sets=sets)
    assert metrics["set_accuracy"] == found.correct.mean()
    assert metrics["num_sets_correct"] == found.correct.sum() > 10


def test_rows_of_a_set_are_one_cluster_where_clusters_are_left_out():
    logits, references = random_lists(6, 300)
    sets = (np.arange(300) // 3).tolist()
    metrics = compute_metrics(logits, references, sets=sets)
    clustered = compute_metrics(logits, references, clusters=sets)
    assert {name: metrics[name] for name in clustered} == clustered
    assert set(metrics) - set(clustered) == {
        *("num_sets", "num_sets_correct"),
        *(f"set_accuracy{end}" for end in ENDINGS),
    }


def test_sets_lie_in_clusters_which_widen_the_interval_of_the_share_of_sets():
    logits, references = random_lists(7, 400)
    sets = np.arange(400) // 2
    images = sets // 10  # 20 clusters of 10 sets
    metrics = compute_metrics(logits, references, sets=sets, clusters=images)
    found = set_outcomes(row_outcomes(logits, references), sets)
    share = share_of_rows(found.correct, clusters=images[found.first_row])
    ends = [metrics[f"set_accuracy{end}"] for end in ENDINGS]
    assert ends == [share.value, share.standard_error, share.ci_low, share.ci_high]
    assert metrics["num_clusters"] == 20


def test_a_set_in_several_clusters_is_refused_and_loses_nothing(metric):
    options = {"sets": [1, 1, 2, 2, 1], "clusters": list("aabcb")}
    message = r"set 2 in the clusters 'b' and 'c' in rows 3, 4 \(2 of 5\)\. Pass clusters of whole"
    with pytest.raises(
        ValueError, match=f"^Expected every set to lie in one cluster, got {message}"
    ):
        compute_metrics(LOGITS, **options)
    metric.add_batch(predictions=LOGITS)
    with pytest.raises(ValueError, match=message):
        metric.compute(**options)
    assert metric.compute(sets=options["sets"]) == compute_metrics(LOGITS, sets=options["sets"])


def test_left_out_references_mean_caption_hard_positive_hard_negative():
    logits, _ = random_rows(0, num_captions=3)
    assert compute_metrics(logits) == compute_metrics(logits, [[1, 1, 0]] * len(logits))
    assert compute_metrics(logits) != compute_metrics(logits, [[1, 0, 1]] * len(logits))


# --- Laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_figure_follows_from_the_counts(seed):
    metrics = compute_metrics(*random_rows(seed))
    n = metrics["num_examples"]
    assert n == sum(metrics[f"num_{outcome}"] for outcome in OUTCOMES)
    assert metrics["num_augmented_correct"] == metrics["num_all_above"]
    assert metrics["drop"] * n == pytest.approx(
        metrics["num_original_correct"] - metrics["num_augmented_correct"]
    )
    assert metrics["tie_rate"] == metrics["num_tied"] / n
    for figure, stem in zip(FIGURES, ("original", "augmented", "brittle"), strict=False):
        count = metrics.get(f"num_{stem}_correct", metrics["num_brittle"])
        assert metrics[figure] == count / n
        assert metrics[f"{figure}_half_credit"] == (count + metrics[f"num_{stem}_tied"] / 2) / n


def test_on_triples_without_ties_the_outcomes_give_every_figure():
    metrics = compute_metrics(np.random.default_rng(0).normal(size=(500, 3)))
    both, caption, hard_positive, _, tied = (metrics[f"num_{name}"] for name in OUTCOMES)
    assert tied == 0
    assert metrics["original_accuracy"] == (both + caption) / 500
    assert metrics["augmented_accuracy"] == both / 500
    assert metrics["brittleness"] == (caption + hard_positive) / 500
    assert metrics["drop"] == pytest.approx(caption / 500)


@pytest.mark.parametrize("seed", range(5))
def test_augmented_accuracy_is_at_most_original_accuracy(seed):
    metrics = compute_metrics(*random_rows(seed))
    assert metrics["augmented_accuracy"] < metrics["original_accuracy"]
    assert metrics["augmented_accuracy_half_credit"] < metrics["original_accuracy_half_credit"]


@pytest.mark.parametrize("increasing", [np.exp, np.cbrt, lambda x: 100 * x - 7, lambda x: x**3])
def test_an_increasing_map_of_the_logits_changes_nothing(increasing):
    logits, references = random_rows(1)
    expected = compute_metrics(logits, references)
    assert compute_metrics(increasing(logits), references) == expected
    assert compute_metrics(-logits, references) != expected


def test_the_order_of_rows_changes_nothing():
    logits, references = random_rows(2)
    order = np.random.default_rng(0).permutation(len(logits))
    groups, clusters = np.arange(200) % 3, np.arange(200) // 4
    expected = compute_metrics(logits, references, groups=groups, clusters=clusters)
    metrics = compute_metrics(
        logits[order], references[order], groups=groups[order], clusters=clusters[order]
    )
    assert rounded(metrics) == rounded(expected)


def rounded(figures):
    if isinstance(figures, dict):
        return {str(key): rounded(value) for key, value in figures.items()}
    return round(figures, 10) if isinstance(figures, float) else figures


def test_columns_may_change_places_as_long_as_the_first_positive_stays_first():
    logits, references = random_rows(3)
    mirrored = compute_metrics(logits[:, ::-1], references[:, ::-1])
    positives_first = np.argsort(-references, axis=1, kind="stable")
    moved = [np.take_along_axis(array, positives_first, 1) for array in (logits, references)]
    expected = compute_metrics(logits, references)
    assert compute_metrics(*moved) == expected
    assert mirrored["augmented_accuracy"] == expected["augmented_accuracy"]
    assert mirrored["original_accuracy"] != expected["original_accuracy"]  # another caption first


def test_counts_add_up_over_parts_of_the_rows():
    logits, references = random_rows(4)
    parts = [
        compute_metrics(logits[rows], references[rows]) for rows in np.split(np.arange(200), 4)
    ]
    whole = compute_metrics(logits, references)
    assert {name: whole[name] for name in COUNTS} == {
        name: sum(part[name] for part in parts) for name in COUNTS
    }


def test_row_outcomes_are_the_rows_behind_the_counts():
    logits, references = random_rows(5)
    rows, metrics = row_outcomes(logits, references), compute_metrics(logits, references)
    assert len(rows) == metrics["num_examples"]
    for field in ("original_correct", "augmented_correct", "brittle", "tied", "brittle_tied"):
        assert getattr(rows, field).sum() == metrics[f"num_{field}"]
    assert rows.dropped.sum() / len(rows) == pytest.approx(metrics["drop"])
    some = rows.take(np.flatnonzero(rows.dropped))
    assert some.original_correct.all() and not some.augmented_correct.any()


# --- Standard errors and intervals ----------------------------------------------------------------


def textbook_standard_error(values, weights, means, clusters):
    """The sandwich as a sum over all pairs of rows that share a cluster."""
    residuals = weights * (values - means)
    variance = sum(
        residuals[i] * residuals[j]
        for i in range(len(values))
        for j in range(len(values))
        if clusters[i] == clusters[j]
    )
    num_clusters = len(set(clusters))
    return math.sqrt(num_clusters / (num_clusters - 1) * variance)


@pytest.mark.parametrize("figure", ["original_accuracy", "augmented_accuracy", "drop"])
def test_standard_errors_agree_with_the_textbook_for_micro_macro_and_each_group(figure):
    logits, references = random_rows(6, num_rows=60)
    random = np.random.default_rng(6)
    groups = random.choice(["a", "b", "c"], 60, p=[0.6, 0.3, 0.1]).tolist()
    clusters = random.integers(0, 20, 60).tolist()  # they cross the groups
    metrics = compute_metrics(logits, references, groups=groups, clusters=clusters)
    rows = row_outcomes(logits, references)
    fields = {"original_accuracy": "original_correct", "augmented_accuracy": "augmented_correct"}
    values = getattr(rows, fields.get(figure, "dropped")).astype(float)
    key = f"{figure}_standard_error"

    micro = textbook_standard_error(values, np.full(60, 1 / 60), values.mean(), clusters)
    assert metrics[key] == pytest.approx(micro)

    members = {label: np.array(groups) == label for label in metrics["groups"]}
    means = sum(mask * values[mask].mean() for mask in members.values())
    weights = sum(mask / (3 * mask.sum()) for mask in members.values())
    macro = textbook_standard_error(values, weights, means, clusters)
    assert metrics["macro"][key] == pytest.approx(macro)
    assert metrics["macro"][figure] == pytest.approx((weights * values).sum())

    for label, mask in members.items():
        part, n = values[mask], mask.sum()
        own = textbook_standard_error(
            part, np.full(n, 1 / n), part.mean(), np.array(clusters)[mask]
        )
        assert metrics["groups"][label][key] == pytest.approx(own)


def test_without_clusters_the_standard_error_is_that_of_independent_rows():
    logits, references = random_rows(7)
    metrics = compute_metrics(logits, references)
    correct = row_outcomes(logits, references).original_correct
    assert metrics["original_accuracy_standard_error"] == pytest.approx(stats.sem(correct))
    alone = compute_metrics(logits, references, clusters=[f"image {i}" for i in range(200)])
    assert alone == metrics


def test_repeating_every_row_within_its_cluster_changes_no_error_and_hardly_the_interval():
    logits, references = random_rows(8)
    once = compute_metrics(logits, references)
    thrice = compute_metrics(
        np.repeat(logits, 3, 0), np.repeat(references, 3, 0), clusters=np.repeat(range(200), 3)
    )
    careless = compute_metrics(np.repeat(logits, 3, 0), np.repeat(references, 3, 0))
    for figure in FIGURES:
        for end in ("_standard_error", "_ci_low", "_ci_high"):
            assert thrice[figure + end] == pytest.approx(once[figure + end], abs=1e-3)
        widths = [part[f"{figure}_ci_high"] - part[f"{figure}_ci_low"] for part in (once, thrice)]
        # How alike the rows of a cluster are is now estimated, with 298 degrees of freedom.
        assert widths[0] < widths[1] < 1.005 * widths[0]
        assert careless[f"{figure}_standard_error"] < 0.6 * once[f"{figure}_standard_error"]


def test_a_macro_average_over_one_group_is_the_micro_average():
    logits, references = random_rows(9)
    metrics = compute_metrics(logits, references, groups=["all"] * 200, clusters=range(100, 300))
    macro, groups = metrics.pop("macro"), metrics.pop("groups")
    assert groups == {"all": metrics}
    assert macro == {"num_groups": 1} | {name: metrics[name] for name in macro if name in metrics}


@pytest.mark.parametrize(("hits", "num_rows"), [(0, 7), (4, 8), (13, 40), (40, 40), (990, 1000)])
def test_the_interval_without_clusters_is_that_of_wilson(hits, num_rows):
    expected = stats.binomtest(hits, num_rows).proportion_ci(method="wilson")
    assert wilson_interval(hits / num_rows, num_rows) == pytest.approx(tuple(expected))
    metrics = compute_metrics([[3, 2, 1]] * hits + [[1, 2, 3]] * (num_rows - hits))
    ends = metrics["original_accuracy_ci_low"], metrics["original_accuracy_ci_high"]
    assert ends == pytest.approx(tuple(expected))


@pytest.mark.parametrize("num_rows", [20, 50, 200])
@pytest.mark.parametrize("share", [0.005, 0.01, 0.03, 0.3, 0.99])
def test_a_rare_share_is_covered_too(share, num_rows):
    counts = np.arange(num_rows + 1)
    ends = np.array([wilson_interval(count / num_rows, num_rows) for count in counts])
    held = (ends[:, 0] <= share) & (share <= ends[:, 1])
    assert stats.binom.pmf(counts, num_rows, share)[held].sum() > 0.925  # Wilson's alone: .90
    assert (np.diff(ends, axis=0) > -1e-12).all()


def textbook_interval(values, clusters):
    """Design effect and degrees of freedom as the docstring says, by loops and whole matrices."""
    num_rows, names = len(values), sorted(set(clusters))
    share = values.mean()
    members = [np.flatnonzero(np.array(clusters) == name) for name in names]
    sizes = np.array([len(rows) for rows in members])
    residuals = (values - share) / num_rows
    sums = np.array([residuals[rows].sum() for rows in members])
    squares = np.array([(residuals[rows] ** 2).sum() for rows in members])
    added = 3 * (max(share, 1 - share) / num_rows) ** 2
    several = sizes > 1
    alike = ((sums**2 - squares)[several] / (sizes - 1)[several]).sum() + added
    correlation = min(1, max(0, alike / (squares[several].sum() + added)))

    # Residuals of the clusters' means from the mean of all, as a matrix.
    shares = sizes / num_rows
    centring = np.diag(shares) @ (np.eye(len(sizes)) - shares[None].repeat(len(sizes), 0))
    covariance = centring @ np.diag(correlation + (1 - correlation) / sizes) @ centring.T
    dof = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    variance = (shares**2 * (correlation + (1 - correlation) / sizes)).sum()
    correction = np.trace(covariance) / variance / (1 - variance)

    mean_size = (sizes**2).sum() / num_rows
    seen = ((sums**2).sum() / correction + mean_size * added) / (squares.sum() + added)
    effect = max(1 + correlation * (mean_size - 1), seen)
    quantiles = dof * mean_size / (mean_size - 1)
    return wilson_interval(share, min(num_rows, num_rows / effect), dof=quantiles), dof


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_with_clusters_is_that_of_the_docstring_by_loops_and_matrices(seed):
    random = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(25), random.integers(1, 3 + 4 * seed, 25))
    values = random.random(len(clusters)) < random.random(25)[clusters]
    share = share_of_rows(values, clusters=clusters)
    (low, high), dof = textbook_interval(values.astype(float), clusters)
    assert (share.ci_low, share.ci_high) == pytest.approx((low, high))
    assert share.effective_clusters == pytest.approx(1 + dof)


def test_rows_that_differ_by_more_than_chance_in_a_cluster_never_count_for_more_than_they_are():
    values, clusters = np.arange(200) < 100, np.arange(200) % 100  # one of each in every cluster
    share = share_of_rows(values, clusters=clusters)
    assert share.standard_error == 0
    assert share.ci_high - share.ci_low > np.ptp(wilson_interval(0.5, 200))


def test_students_t_agrees_with_scipy():
    for dof in (3, 3.7, 5, 12.5, 200, 1e5, math.inf):
        for share in (0.95, 0.975):
            expected = stats.t.ppf(share, dof)
            assert metric_file._t_quantile(share, dof) == pytest.approx(expected, rel=2e-3)
    for dof in (3, 3.7, 12.5, 200, 1e5):
        for t in (0, 0.5, 2, 10, 40):
            assert metric_file._t_tail(t, dof) == pytest.approx(stats.t.sf(t, dof), rel=1e-8)


def test_equal_clusters_have_one_degree_of_freedom_fewer_and_unequal_ones_far_fewer():
    values = np.arange(120) % 3 == 0
    equal = share_of_rows(values, clusters=np.arange(120) // 10)
    assert equal.effective_clusters == pytest.approx(12)
    # Twelve clusters again; one has half of the rows, all of them alike.
    unequal = share_of_rows(np.arange(120) < 60, clusters=np.maximum(0, np.arange(120) - 59) // 6)
    assert 1 < unequal.effective_clusters < 3


@pytest.mark.parametrize(
    ("sizes", "has_interval"),
    [([30], False), ([10] * 3, False), ([10] * 4, True), ([90, 5, 5, 5, 5], False)],
    ids=["one", "three", "four", "five, but one holds nearly all"],
)
def test_too_few_effective_clusters_give_no_interval_and_no_test(sizes, has_interval):
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    values = np.arange(len(clusters)) % 5 == 0
    share = share_of_rows(values, clusters=clusters)
    paired = paired_difference(values.astype(int), clusters=clusters)
    assert share.value == paired.value == values.mean()
    assert (share.standard_error is None) == (len(sizes) == 1)
    found = [share.ci_low, share.ci_high, paired.ci_low, paired.ci_high, paired.p_value]
    assert [end is not None for end in found] == [has_interval] * 5


@pytest.mark.parametrize(
    ("sizes", "correlation", "share"),
    [
        ([20] * 10, 0.5, 0.5),  # before: .88
        ([20] * 50, 0.5, 0.95),  # .90
        ([400] + [40] * 20 + [1] * 100, 1.0, 0.9),  # few hold most rows
    ],
)
def test_intervals_cover_the_truth_with_few_or_unequal_clusters(sizes, correlation, share):
    random = np.random.default_rng(14)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    layout = metric_file._given_layout(len(clusters), None, clusters.tolist())
    counts = metric_file._counts
    strength, held, given = 1 / correlation - 1, 0, 0
    for _ in range(600):
        easy = random.random(len(sizes)) < share
        if strength:
            easy = random.beta(share * strength, (1 - share) * strength, len(sizes))
        values = random.random(len(clusters)) < np.asarray(easy, dtype=float)[clusters]
        estimate = metric_file._share(counts(values, layout), layout)
        if estimate.ci_low is not None:
            given += 1
            held += estimate.ci_low <= share <= estimate.ci_high
    assert held >= 0.92 * given


def test_intervals_cover_the_truth_about_95_times_in_100_with_clusters():
    random = np.random.default_rng(11)
    clusters, covered = np.repeat(range(60), 4), 0
    for _ in range(400):
        easy = np.repeat(random.random(60), 4)  # rows of an image are alike; half are right
        right = random.random(240) < easy
        metrics = compute_metrics(
            np.where(right, [[2], [1]], [[1], [2]]).T, [[1, 0]] * 240, clusters=clusters
        )
        covered += metrics["original_accuracy_ci_low"] < 0.5 < metrics["original_accuracy_ci_high"]
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize(
    ("logits", "options", "expected"),
    [
        ([[3, 2, 1]] * 12, {"clusters": np.arange(12) // 2}, wilson_interval(1.0, 6, dof=10)),
        ([[1, 2, 3]] * 12, {}, wilson_interval(0.0, 12)),
        (
            [[3, 2, 1], [1, 2, 3]] * 6,
            {"clusters": np.arange(12) // 2},
            wilson_interval(0.5, 12, dof=10),
        ),
        ([[3, 2, 1]] * 6 + [[1, 2, 3]] * 6, {"groups": list("aaaaaabbbbbb")}, (0.254, 0.746)),
    ],
    ids=["all right", "all wrong", "clusters that balance", "groups that do not vary"],
)
def test_the_interval_has_a_width_where_the_standard_error_is_zero(logits, options, expected):
    metrics = compute_metrics(logits, **options)
    metrics = metrics.get("macro", metrics)
    assert metrics["original_accuracy_standard_error"] == 0
    ends = metrics["original_accuracy_ci_low"], metrics["original_accuracy_ci_high"]
    assert ends == pytest.approx(expected, abs=1e-3)
    assert ends[1] - ends[0] > 0.2


def test_one_cluster_has_neither_standard_error_nor_interval_but_one_row_has_an_interval():
    metrics = compute_metrics([[3, 2, 1], [1, 2, 3]] * 4, clusters=["one image"] * 8)
    assert metrics["original_accuracy"] == 0.5
    ends = ("_standard_error", "_ci_low", "_ci_high")
    assert [metrics[f"original_accuracy{end}"] for end in ends] == [None] * 3
    row = compute_metrics([[3, 2, 1]])
    assert (row["original_accuracy_ci_low"], row["original_accuracy_ci_high"]) == pytest.approx(
        wilson_interval(1.0, 1)
    )


# --- Differences between two models ---------------------------------------------------------------


def mcnemar(won, lost):
    return stats.binomtest(won, won + lost).pvalue if won + lost else 1.0


def differences_of(won, lost, num_rows=200):
    return [1] * won + [-1] * lost + [0] * (num_rows - won - lost)


def test_without_clusters_p_is_near_that_of_mcnemars_exact_test():
    for won in range(30):
        for lost in range(won + 1):
            p, exact = paired_difference(differences_of(won, lost)).p_value, mcnemar(won, lost)
            assert p < 0.05 or exact > 0.034
            assert exact < 0.066 or p > 0.05  # the exact test's level is below what it says
            assert p <= exact + 0.01


@pytest.mark.parametrize("seed", range(20))
def test_p_is_below_5_percent_exactly_where_the_interval_leaves_out_no_difference(seed):
    random = np.random.default_rng(seed)
    differences = random.choice([-1, 0, 1], 90, p=[0.1, 0.6, 0.3])
    paired = paired_difference(
        differences,
        groups=random.integers(0, 1 + seed % 3, 90).tolist(),
        clusters=random.integers(0, 10 + 5 * seed, 90).tolist(),
    )
    assert (paired.p_value < 0.05) == (paired.ci_low > 0 or paired.ci_high < 0)
    turned = paired_difference(-differences)
    assert turned.p_value == pytest.approx(paired_difference(differences).p_value)


@pytest.mark.parametrize("size", [1, 5, 20])
def test_the_paired_test_errs_in_at_most_5_of_100_where_rows_of_a_cluster_are_alike(size):
    random, num_clusters, found, careless = np.random.default_rng(15), 60, 0, 0
    clusters = np.repeat(np.arange(num_clusters), size)
    for _ in range(400):
        differences = random.choice([-1, 0, 1], num_clusters, p=[0.2, 0.6, 0.2])[clusters]
        found += paired_difference(differences, clusters=clusters).p_value < 0.05
        careless += mcnemar(int((differences == 1).sum()), int((differences == -1).sum())) < 0.05
    assert found / 400 <= 0.07
    assert careless / 400 > 0.2 or size == 1


def test_the_paired_error_for_equal_clusters_is_the_clustered_one_but_for_the_rows_added():
    random = np.random.default_rng(16)
    differences = random.choice([-1, 0, 1], 8000, p=[0.15, 0.6, 0.25])
    paired = paired_difference(differences, clusters=np.arange(8000) // 4)
    margin = stats.t.ppf(0.975, 1999) * paired.standard_error
    assert paired.ci_high - paired.value == pytest.approx(margin, rel=0.01)


def test_models_that_never_differ_are_not_said_to_be_surely_equal():
    same = paired_difference([0] * 20)
    assert (same.value, same.standard_error, same.p_value) == (0, 0, pytest.approx(1))
    assert -0.2 < same.ci_low < -0.1 and 0.1 < same.ci_high < 0.2


@pytest.mark.parametrize("bad", [[0, 2, 1], [0, 0.5, 1], [0, float("nan"), 1]])
def test_differences_other_than_minus_one_zero_and_one_are_refused(bad):
    with pytest.raises(ValueError, match=r"one of -1, 0, 1, got .* in row 1 \(1 of 3\)"):
        paired_difference(bad)


# --- Groups ---------------------------------------------------------------------------------------


def test_groups_give_every_figure_by_label_and_their_unweighted_mean():
    logits, references = random_rows(12)
    groups = ["relation"] * 150 + ["attribute"] * 50
    metrics = compute_metrics(logits, references, groups=groups)
    parts = metrics["groups"]
    assert list(parts) == ["relation", "attribute"]
    assert parts["relation"] == compute_metrics(logits[:150], references[:150])
    assert parts["attribute"] == compute_metrics(logits[150:], references[150:])
    for figure in FIGURES + HALF_CREDITS:
        mean = (parts["relation"][figure] + parts["attribute"][figure]) / 2
        assert metrics["macro"][figure] == pytest.approx(mean)
    sizes = [metrics["macro"][name] for name in ("num_examples", "num_clusters", "num_groups")]
    assert sizes == [200, 200, 2]


@pytest.mark.parametrize(
    "labels",
    [
        [2, 1, 2, 1, 7],
        np.array([2, 1, 2, 1, 7]),
        torch.tensor([2, 1, 2, 1, 7]),
        range(5),
        tuple("abcba"),
    ],
    ids=["list", "array", "tensor", "range", "tuple of str"],
)
def test_labels_may_be_ints_or_strings_in_any_sequence(labels):
    metrics = compute_metrics(LOGITS, groups=labels, clusters=labels)
    distinct = list(dict.fromkeys(np.asarray(labels).tolist()))
    assert list(metrics["groups"]) == distinct
    assert metrics["num_clusters"] == len(distinct)


def test_results_are_plain_python_numbers_that_json_gives_back():
    metrics = compute_metrics(np.float32(LOGITS), groups=list("aabbc"), clusters=[1, 1, 1, 2, 3])
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    parts = [metrics, metrics["macro"], *metrics["groups"].values()]
    flat = [value for part in parts for value in part.values() if not isinstance(value, dict)]
    assert {type(value) for value in flat} == {int, float, type(None)}


def test_the_keys_are_these():
    metrics = compute_metrics(LOGITS, groups=list("aabbc"))
    shares = [
        f"{figure}{end}"
        for figure in FIGURES
        for end in ("", "_standard_error", "_ci_low", "_ci_high")
    ]
    keys = {*COUNTS, "num_clusters", *shares, *HALF_CREDITS}
    assert set(metrics) == keys | {"groups", "macro"}
    assert set(metrics["groups"]["a"]) == keys
    assert set(metrics["macro"]) == {
        *("num_examples", "num_clusters", "num_groups"),
        *shares,
        *HALF_CREDITS,
    }
    assert set(compute_metrics(LOGITS)) == keys


# --- Bad input ------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
ROW_1 = "in row 1 (1 of 2)."
UNMASKED = "of predictions to be unmasked, got masked entries in row 1"
LABELS = [[1, 1, 0]] * 5
BAD_PREDICTIONS = [
    ([*LOGITS, [1.0, NAN, 2.0]], ValueError, "to be finite, got nan in row 5 (1 of 6)."),
    ([[INF, 1, 2], *LOGITS, [1, 2, -INF]], ValueError, "got inf in rows 0, 6 (2 of 7)."),
    ([[NAN] * 3] * 9, ValueError, "got nan in rows 0, 1, 2, 3, 4, ... (9 of 9)."),
    (
        [*LOGITS, [1.0, 2.0]],
        ValueError,
        "left out, got 2 logits in row 5 (1 of 6). Pass references",
    ),
    ([*LOGITS, []], ValueError, "got 0 entries in row 5 (1 of 6)."),
    ([], ValueError, "predictions to be at least one row, got none."),
    (np.zeros((0, 3)), ValueError, "predictions to be at least one row, got none."),
    ([[], []], ValueError, "to be at least one long, got 0 entries in rows 0, 1"),
    ([1.0, 2.0, 3.0], ValueError, "row of predictions to be a list, got 1.0 in rows 0, 1, 2"),
    ([*LOGITS, None], TypeError, "row of predictions to be a list, got None in row 5 (1 of 6)."),
    ([*LOGITS, [1.0, None, 2.0]], TypeError, "to be a number, got None in row 5 (1 of 6)."),
    ([*LOGITS, [1.0, "2", 3.0]], TypeError, "to be a number, got '2' in row 5 (1 of 6)."),
    (np.zeros((2, 3), dtype=complex), TypeError, "to be a number, got 0j in rows 0, 1 (2 of 2)."),
    (np.zeros((2, 3, 1)), TypeError, "to be a number, got [0.0] in rows 0, 1 (2 of 2)."),
    ("logits", TypeError, "predictions to be N rows of numbers, got str."),
    (None, TypeError, "predictions to be N rows of numbers, got NoneType."),
    ({"a": 1}, TypeError, "predictions to be N rows of numbers, got dict."),
    (np.ma.array([[3, 2, 1]] * 3, mask=[[0] * 3, [0, 1, 0], [0] * 3]), ValueError, UNMASKED),
    ([np.ma.array([3, 2, 1]), np.ma.array([3, 2, 1], mask=[1, 0, 0])], ValueError, UNMASKED),
    ([[3, 2, 1], [2**53 + 2, 2**53 + 1, 2**53]], ValueError, f"exactly, got {2**53 + 1} {ROW_1}"),
    (np.array([[3, 2, 1], [1, -(2**53) - 1, 0]]), ValueError, f"{-(2**53) - 1} {ROW_1}"),
    (np.array([[3, 2, 1], [2**64 - 1, 2**64 - 2, 0]], np.uint64), ValueError, ROW_1),
    ([[3, 2, 1], [2**53 + 1, 1.5, 1]], ValueError, f"exactly, got {2**53 + 1} {ROW_1}"),
    ([[3, 2, 1], [np.int64(2**53 + 1), 2, 1]], ValueError, ROW_1),
    ([[3, 2, 1], [10**400, 2, 1]], ValueError, ROW_1),
    ([[3, 2, 1], [fractions.Fraction(1, 3), 2, 1]], ValueError, f"Fraction(1, 3) {ROW_1}"),
    ([[3, 2, 1], [decimal.Decimal("0.5"), 2, 1]], TypeError, f"Decimal('0.5') {ROW_1}"),
    (pandas.DataFrame({"a": [1, 2], "b": [1, None]}, dtype="Int64"), TypeError, f"<NA> {ROW_1}"),
    (torch.eye(3).to_sparse(), TypeError, "got Tensor (sparse). Pass to_dense()"),
    (torch.eye(3).to_sparse_csr(), TypeError, "got Tensor (sparse). Pass to_dense()"),
    ([torch.ones(3).to_sparse()], TypeError, "got Tensor (sparse)"),
    (sparse.csr_matrix([[3, 2, 1]]), TypeError, "got csr_matrix. Pass toarray()"),
    (torch.eye(3, device="meta"), TypeError, "got Tensor (meta, without entries)."),
    (torch.ones(2, 3, dtype=torch.complex64), TypeError, "to be a number, got (1+0j) in rows 0, 1"),
    (np.ones((2, 3), "m8[ns]"), TypeError, "in rows 0, 1 (2 of 2)."),
    (np.ones((2, 3), "M8[ns]"), TypeError, "in rows 0, 1 (2 of 2)."),
    (pa.array([*LOGITS, None]), TypeError, "row of predictions to be a list, got None in row 5 (1"),
    (
        pa.array([*LOGITS, [1.0, None, 2.0]]),
        TypeError,
        "to be a number, got None in row 5 (1 of 6).",
    ),
    (
        pa.array([*LOGITS, []]),
        ValueError,
        "to be at least one long, got 0 entries in row 5 (1 of 6).",
    ),
    (pa.array([*LOGITS, [1.0, NAN, 2.0]]), ValueError, "to be finite, got nan in row 5 (1 of 6)."),
    (pa.array([[3, 2, 1], [2**53 + 1, 1, 0]]), ValueError, f"exactly, got {2**53 + 1} {ROW_1}"),
    (pa.array([["1", "2", "3"]]), TypeError, "to be a number, got '1' in row 0 (1 of 1)."),
    (
        pa.array([[decimal.Decimal(1)] * 3]),
        TypeError,
        "to be a number, got Decimal('1') in row 0 (1",
    ),
    (pa.array([[1, 2, 3]], pa.list_(pa.duration("s"))), TypeError, "in row 0 (1 of 1)."),
    (pa.array([1.0, 2.0]), ValueError, "row of predictions to be a list, got 1.0 in rows 0, 1 (2"),
    (pa.array([], pa.list_(pa.float32())), ValueError, "to be at least one row, got none."),
    (np.zeros((4, 2)), ValueError, "where references are left out, got 2 logits in rows 0, 1"),
    (np.zeros((4, 4)), ValueError, "where references are left out, got 4 logits in rows 0, 1"),
]
BAD_REFERENCES = [
    (LABELS[:4], ValueError, "references to be 5 rows, as predictions are, got 4."),
    ([[1, 0]] * 5, ValueError, "got 2 labels for 3 logits in rows 0, 1, 2, 3, 4 (5"),
    ([*LABELS[:4], [1, 2, 0]], ValueError, "to be 1 or 0, got 2.0 in row 4 (1 of 5)."),
    ([*LABELS[:4], [1, 0.5, 0]], ValueError, "to be 1 or 0, got 0.5 in row 4 (1 of 5)."),
    ([*LABELS[:4], [1, NAN, 0]], ValueError, "to be 1 or 0, got nan in row 4 (1 of 5)."),
    ([*LABELS[:4], [-1, 1, 0]], ValueError, "to be 1 or 0, got -1.0 in row 4 (1 of 5)."),
    ([*LABELS[:4], [0, 0, 0]], ValueError, "at least one positive (1), got [0, 0, 0] in row 4"),
    ([*LABELS[:4], [1, 1, 1]], ValueError, "at least one negative (0), got [1, 1, 1] in row 4"),
    (
        [*LABELS[:4], [1, 0]],
        ValueError,
        "as that of predictions, got 2 labels for 3 logits in row 4",
    ),
    ([*LABELS[:4], [1, None, 0]], TypeError, "of references to be a number, got None in row 4"),
    ([*LABELS[:4], ["1", "1", "0"]], TypeError, "of references to be a number, got '1' in row 4"),
    ([1, 1, 0], ValueError, "row of references to be a list, got 1 in rows 0, 1, 2 (3 of 3)."),
]
BAD_LABELS = [
    (
        pandas.array([1, 2, 3, 4, None]),
        ValueError,
        "to be a str or an int, got <NA> in row 4 (1 of 5). Fill",
    ),
    (
        np.ma.array([1] * 5, mask=[0, 0, 0, 0, 1]),
        ValueError,
        "to be a str or an int, got None in row 4 (1",
    ),
    (torch.ones(5).to_sparse(), TypeError, "to be numbers one by one, got Tensor (sparse)."),
    (set("abcde"), TypeError, "to be a list of labels, got set. Pass one label a row."),
    (dict.fromkeys("abcde"), TypeError, "to be a list of labels, got dict."),
    (np.ones((5, 1), int), TypeError, "to be a list of labels, got ndarray."),
    (list("abcd"), ValueError, "to be 5 labels, got 4. Pass one label a row."),
    ([*"abcd", None], ValueError, "to be a str or an int, got None in row 4 (1 of 5). Fill"),
    ([1, 2, 3, 4, NAN], ValueError, "to be a str or an int, got nan in row 4 (1 of 5). Fill"),
    ([1, 2, 3, 4, 5.0], TypeError, "to be a str or an int, got 5.0 in row 4 (1 of 5)."),
    ([True] * 5, TypeError, "to be a str or an int, got True in rows 0, 1, 2, 3, 4 (5 of 5)."),
    ([[1]] * 5, TypeError, "to be a str or an int, got [1] in rows 0, 1, 2, 3, 4 (5 of 5)."),
    ("abcde", TypeError, "to be a list of labels, got str. Pass one label a row."),
    (7, TypeError, "to be a list of labels, got int. Pass one label a row."),
]


@pytest.mark.parametrize(("predictions", "error", "message"), BAD_PREDICTIONS)
def test_bad_predictions_are_refused_with_their_rows(predictions, error, message, metric):
    for compute in (compute_metrics, row_outcomes, lambda rows: metric.add_batch(predictions=rows)):
        with pytest.raises(error, match=rf"^Expected .*{re.escape(message)}.*\.$"):
            compute(predictions)
    assert len(metric) == 0


@pytest.mark.parametrize(("references", "error", "message"), BAD_REFERENCES)
def test_bad_references_are_refused_with_their_rows(references, error, message, metric):
    with pytest.raises(error, match=rf"^Expected .*{re.escape(message)}.*\.$"):
        compute_metrics(LOGITS, references)
    with pytest.raises(error, match=rf"^Expected .*{re.escape(message)}.*\.$"):
        metric.compute(predictions=LOGITS, references=references)


@pytest.mark.parametrize("name", ["groups", "clusters", "sets"])
@pytest.mark.parametrize(("labels", "error", "message"), BAD_LABELS)
def test_bad_groups_clusters_and_sets_are_refused_with_their_rows(name, labels, error, message):
    with pytest.raises(error, match=rf"^Expected .*{name} {re.escape(message)}"):
        compute_metrics(LOGITS, **{name: labels})


def test_the_valid_neighbours_of_bad_input_are_accepted():
    expected = compute_metrics(LOGITS)
    kinds = [
        np.ma.array(LOGITS, mask=False),
        [[fractions.Fraction(entry) for entry in row] for row in LOGITS],
        np.array(LOGITS, dtype=np.longdouble),
        [[2**60 * int(entry) for entry in row] for row in LOGITS],
        tuple(map(tuple, LOGITS)),
        np.array(LOGITS, dtype=np.float16),
        np.array(LOGITS, dtype=int),
        np.array(LOGITS, dtype=object),
        [np.array(row) for row in LOGITS],
        torch.tensor(LOGITS, dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(row) for row in LOGITS],
        pandas.DataFrame(LOGITS, columns=["caption", "hard_positive", "hard_negative"]),
    ]
    for predictions in kinds:
        assert compute_metrics(predictions) == expected
    for references in (np.array(LABELS, bool), torch.tensor(LABELS), [[True, 1.0, 0]] * 5):
        assert compute_metrics(LOGITS, references) == expected
    assert compute_metrics(LOGITS, groups=list("abcde"), clusters=[1, 1, 2, 2, 2])["groups"]
    assert compute_metrics([[1e308, -1e308, 0.0]])["num_only_caption_above"] == 1


def test_two_thousand_inputs_of_every_kind_are_taken_rightly_or_refused_in_a_sentence(tmp_path):
    tally = run_attack(metric_inputs(2000, 2000), range(2000), seed=1, jobs=0, scratch=tmp_path)
    assert tally.wrong == []
    assert min(tally.verdicts["right"], tally.verdicts["refused"]) > 500


# --- The evaluate shell ---------------------------------------------------------------------------


def test_every_way_of_adding_rows_gives_the_plain_functions_result(metric):
    logits, references = random_rows(13, num_rows=20)
    logits = logits + np.random.default_rng(0).normal(scale=1e-12, size=logits.shape)
    expected = compute_metrics(logits, references)
    assert metric.compute(predictions=logits, references=references) == expected
    for convert in (np.asarray, torch.tensor, np.ndarray.tolist):
        for start in range(0, 20, 6):
            rows = slice(start, start + 6)
            metric.add_batch(
                predictions=convert(logits[rows]), references=convert(references[rows])
            )
        assert metric.compute() == expected
        for row, labels in zip(logits, references, strict=True):
            metric.add(prediction=convert(row), reference=convert(labels))
        assert metric.compute() == expected


def test_references_may_be_left_out_of_every_call(metric):
    expected = compute_metrics(LOGITS)
    assert metric.compute(predictions=LOGITS) == expected
    metric.add_batch(predictions=LOGITS[:2])
    metric.add(prediction=LOGITS[2])
    metric.add_batch(predictions=LOGITS[3:], references=LABELS[3:])
    assert metric.compute(clusters=[1, 2, 3, 4, 5]) == expected


def test_groups_and_clusters_reach_the_formulas(metric):
    options = {"groups": list("aabbb"), "clusters": [1, 2, 1, 2, 3]}
    expected = compute_metrics(LOGITS, **options)
    assert metric.compute(predictions=LOGITS, **options) == expected


def test_a_refused_batch_is_named_by_its_place_among_all_rows_and_loses_nothing(metric):
    metric.add_batch(predictions=LOGITS)
    with pytest.raises(ValueError, match=r"got nan in row 6 \(1 of 2\)"):
        metric.add_batch(predictions=[[1.0, 2.0, 3.0], [1.0, 2.0, NAN]])
    with pytest.raises(ValueError, match=r"got inf in row 5 \(1 of 1\)"):
        metric.add(prediction=[1.0, 2.0, INF])
    assert metric.compute() == compute_metrics(LOGITS)


def test_wrong_labels_for_rows_added_before_are_refused_and_lose_nothing(metric):
    metric.add_batch(predictions=LOGITS)
    for name in ("groups", "clusters", "sets"):
        with pytest.raises(ValueError, match=f"Expected {name} to be 5 labels, got 4"):
            metric.compute(**{name: list("abcd")})
    assert metric.compute(groups=list("aabbb")) == compute_metrics(LOGITS, groups=list("aabbb"))


@pytest.mark.parametrize("keep_in_memory", [True, False])
def test_computing_without_rows_is_refused(keep_in_memory, tmp_path):
    metric = evaluate.load(str(FOLDER), cache_dir=str(tmp_path), keep_in_memory=keep_in_memory)
    with pytest.raises(ValueError, match="Expected rows to be added before compute, got none"):
        metric.compute()
    assert metric.compute(predictions=LOGITS) == compute_metrics(LOGITS)


def test_rows_that_differ_in_length_can_be_added_in_every_way(metric):
    logits, references = random_lists(17, 30)
    sets = [place // 3 for place in range(30)]
    expected = compute_metrics(logits, references, sets=sets)
    assert metric.compute(predictions=logits, references=references, sets=sets) == expected
    arrow = [pa.array(rows[:10]) for rows in (logits, references)]
    metric.add_batch(predictions=arrow[0], references=arrow[1])
    metric.add_batch(
        predictions=[np.float32(row) for row in logits[10:20]], references=references[10:20]
    )
    for row, labels in zip(logits[20:], references[20:], strict=True):
        metric.add(prediction=row, reference=labels)
    assert metric.compute(sets=sets) == expected


def test_batches_of_different_widths_are_rows_of_one_input(metric):
    metric.add_batch(predictions=LOGITS)
    metric.add_batch(predictions=[[2.0, 1.0]], references=[[1, 0]])
    assert metric.compute() == compute_metrics([*LOGITS, [2.0, 1.0]], [*LABELS, [1, 0]])


def test_the_file_loads_when_it_is_copied_alone(tmp_path):
    alone = tmp_path / "hard_positive_metric.py"
    shutil.copy(FOLDER / "hard_positive_metric.py", alone)
    metric = evaluate.load(str(alone), cache_dir=str(tmp_path / "cache"), keep_in_memory=True)
    assert metric.compute(predictions=LOGITS) == compute_metrics(LOGITS)
    logits, references = random_lists(18, 20)
    for rows in (slice(0, 8), slice(8, 20)):
        metric.add_batch(predictions=logits[rows], references=references[rows])
    assert metric.compute() == compute_metrics(logits, references)


SECOND_METRIC = """
import datasets
import evaluate


class MeanLogit(evaluate.Metric):
    def _info(self):
        rows = {name: datasets.Sequence(datasets.Value("float64")) for name in
                ("predictions", "references")}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(rows))

    def _compute(self, predictions, references, groups=None):
        return {"mean_logit": sum(map(sum, predictions)), "num_examples": len(predictions)}
"""


def test_it_combines_with_another_metric(metric, tmp_path):
    (tmp_path / "mean_logit.py").write_text(SECOND_METRIC)
    other = evaluate.load(str(tmp_path / "mean_logit.py"), cache_dir=str(tmp_path / "cache"))
    both = evaluate.combine([metric, other])
    expected = compute_metrics(LOGITS)
    num_examples = expected.pop("num_examples")
    expected |= {"mean_logit": 30.0, "mean_logit_num_examples": num_examples}
    expected |= {"hard_positive_metric_num_examples": num_examples}
    assert both.compute(predictions=LOGITS, references=LABELS) == expected
    both.add_batch(predictions=LOGITS[:2], references=LABELS[:2])
    for row in LOGITS[2:]:
        both.add(prediction=row, reference=[1, 1, 0])
    assert both.compute() == expected
    assert both.compute(predictions=LOGITS, references=LABELS, groups=list("aabbb"))["macro"]
    logits, references = random_lists(19, 20)
    both.add_batch(predictions=logits, references=references)
    found, expected = both.compute(), compute_metrics(logits, references)
    del expected["num_examples"]
    assert {name: found[name] for name in expected} == expected


WORKER = """
import json
import pathlib
import sys
import time
import evaluate

folder, cache, rank = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
rows = [[[3.0, 2.0, 1.0]] * 2, [[3.0, 1.0, 2.0]] * 3][rank]


def wait_for_the_other(step):
    (cache / f"{step}-{rank}").touch()
    while not (cache / f"{step}-{1 - rank}").exists():
        time.sleep(0.01)


alone = evaluate.load(folder, cache_dir=str(cache))
alone.add_batch(predictions=rows)
wait_for_the_other("added")
own = alone.compute()

shared = evaluate.load(
    folder, cache_dir=str(cache), num_process=2, process_id=rank, experiment_id="shared"
)
shared.add_batch(predictions=rows)
groups = {"groups": list("aabbb")} if rank == 0 else {}
print(json.dumps([own, shared.compute(**groups)]))
"""


@pytest.mark.slow
def test_two_processes_compute_at_once_each_its_own_and_then_together(tmp_path):
    command = [sys.executable, "-c", WORKER, str(FOLDER), str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    workers = [
        subprocess.Popen(
            [*command, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    (first, together), (second, nothing) = (json.loads(out) for out, _ in outputs)
    rows = [[3.0, 2.0, 1.0]] * 2, [[3.0, 1.0, 2.0]] * 3
    assert [first, second] == [compute_metrics(part) for part in rows]
    assert together == compute_metrics(rows[0] + rows[1], groups=list("aabbb"))
    assert nothing is None


# --- Documents ------------------------------------------------------------------------------------


def test_the_examples_of_the_file_run():
    results = doctest.testmod(metric_file)
    assert (results.failed, results.attempted > 10) == (0, True)


def test_the_python_blocks_of_the_card_run_in_order():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) >= 4
    names = {}
    for block in blocks:
        exec(block, names)


def test_the_card_names_every_key():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    keys = {*COUNTS, *FIGURES, "num_clusters", "num_groups", "groups", "macro"}
    keys |= {"set_accuracy", "num_sets", "num_sets_correct"}
    endings = {"_standard_error", "_ci_low", "_ci_high", "_half_credit"}
    assert [name for name in keys | endings if f"`{name}`" not in card] == []


def test_a_logger_gets_the_figures_alone():
    metric = evaluate.load(str(FOLDER), keep_in_memory=True)
    whole = metric.compute(predictions=LOGITS)
    assert metric.compute(predictions=LOGITS, headline=True) == {
        name: whole[name] for name in FIGURES
    }
    pairs = {"predictions": [[2.0, 1.0], [1.0, 2.0]], "references": [[1, 0], [1, 0]]}
    of_sets = metric.compute(**pairs, sets=["a", "a"], groups=["x", "y"], headline=True)
    assert of_sets == {
        "original_accuracy": 0.5,
        "augmented_accuracy": 0.5,
        "tie_rate": 0.0,
        "set_accuracy": 0.0,
    }
