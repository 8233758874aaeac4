import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import statsmodels.api as sm
from conftest import as_scores

from hard_positive_metric import paired_difference, row_outcomes
from hard_positives import EvaluationResult, compare, render_comparison

SIGNATURE = {
    "model": {"id": "tiny", "revision": None},
    "dataset": {"id": None, "content_sha256": "abc", "splits": {}},
    "views": ["as_published", "clean"],
    "tie_rule": "strict comparisons: a tie is wrong",
}


def make_result(logits, **columns) -> EvaluationResult:
    num_rows = len(logits)
    defaults = {
        "id": [f"replace-attribute-{row:05d}" for row in range(num_rows)],
        "split": ["replace"] * num_rows,
        "category": ["attribute"] * num_rows,
        "substitution": [""] * num_rows,
        "image_id": [str(row) for row in range(num_rows)],
        "flaws": [[]] * num_rows,
        **dict.fromkeys(("caption", "hard_positive", "hard_negative"), ["text"] * num_rows),
        "image_sha256": ["0"] * num_rows,
    }
    scores = pa.table(as_scores({**defaults, **columns}))
    logits = pa.array(np.asarray(logits, dtype=np.float32).tolist(), pa.list_(pa.float32()))
    return EvaluationResult(scores.append_column("logits", logits), SIGNATURE)


def random_pair(seed: int) -> tuple[EvaluationResult, EvaluationResult]:
    """Two models that share much of what makes a row hard, over clustered rows of two categories.

    Logits are whole numbers in a third of the pairs, so that ties occur.
    """
    random = np.random.default_rng(seed)
    num_rows = int(random.integers(10, 200))
    images = random.integers(0, max(2, num_rows // int(random.integers(1, 6))), num_rows)
    shared = random.normal(0, 1, (num_rows, 3)) + random.normal(0, 1, (num_rows, 3))[images % 7]
    logits = [
        shared
        + random.normal(0, 1, (num_rows, 3))
        + [random.uniform(0, 2), random.uniform(0, 1), 0]
        for _ in range(2)
    ]
    if seed % 3 == 0:
        logits = [np.round(values) for values in logits]
    # The first two rows are of both categories.
    kinds = ["attribute", "relation", *random.choice(["attribute", "relation"], num_rows - 2)]
    columns = {"category": list(map(str, kinds)), "image_id": list(map(str, images))}
    return make_result(logits[0], **columns), make_result(logits[1], **columns)


FIELDS = {
    "original_accuracy": "original_correct",
    "augmented_accuracy": "augmented_correct",
    "brittleness": "brittle",
    "drop": "dropped",
}


def expected(first, second, figure, group) -> dict:
    """The same figures by regression on category dummies, with statsmodels' sandwich."""
    kinds = np.array(first.scores["category"].to_pylist())
    rows = np.isin(kinds, [group]) if group in ("attribute", "relation") else kinds == kinds
    kinds = kinds[rows] if group == "macro" else np.zeros(rows.sum())
    images = np.unique(first.scores["cluster"].to_pylist(), return_inverse=True)[1][rows]
    values = [
        getattr(row_outcomes(result.logits[rows]), FIELDS[figure]).astype(float)
        for result in (first, second)
    ]
    dummies = np.stack([kinds == kind for kind in np.unique(kinds)], axis=1).astype(float)
    fit = sm.OLS(values[1] - values[0], dummies).fit(
        cov_type="cluster", cov_kwds={"groups": images, "use_correction": False}
    )
    weights = np.full(dummies.shape[1], 1 / dummies.shape[1])
    num_images = len(np.unique(images))
    error = np.sqrt(weights @ fit.cov_params() @ weights * num_images / (num_images - 1))
    table = np.zeros((2, 2))
    np.add.at(table, tuple(np.stack(values).astype(int)), 1)
    return {
        "difference": weights @ fit.params,
        "error": error,
        "gained": table[0, 1],
        "missed": table[1, 0],
    }


@pytest.mark.parametrize("block", range(10))
def test_every_figure_of_200_random_pairs_agrees_with_statsmodels(block):
    compared = 0
    for seed in range(20 * block, 20 * block + 20):
        pair = random_pair(seed)
        for row in compare(*pair):
            if row.view == "clean" or row.num_clusters == 1:
                continue
            by_statsmodels = expected(*pair, row.figure, row.group)
            assert row.difference == pytest.approx(by_statsmodels["difference"], abs=1e-12)
            assert row.standard_error == pytest.approx(by_statsmodels["error"], abs=1e-9)
            better_is_more = row.figure.endswith("accuracy")
            gained, missed = by_statsmodels["gained"], by_statsmodels["missed"]
            assert (row.won, row.lost) == ((gained, missed) if better_is_more else (missed, gained))
            if row.ci_low is not None:
                # Never narrower than by the normal distribution and no rows added.
                margin = 1.96 * by_statsmodels["error"]
                assert row.ci_low <= max(-1, row.difference - margin) + 1e-9
                assert row.ci_high >= min(1, row.difference + margin) - 1e-9
                assert (row.p_value < 0.05) == (row.ci_low > 0 or row.ci_high < 0)
            compared += 1
    assert compared >= 20 * 4 * 4 * 0.9  # figures times groups, for nearly all pairs


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        images = np.repeat(np.arange(60), 3)
        # All three rows of an image come out alike, so there are 60 observations, not 180.
        better = (random.random(60) < 0.3)[images]
        worse = (random.random(60) < 0.2)[images] & ~better
        first = np.where(worse[:, None], [2, 2, 1], [1, 2, 2])
        second = np.where(better[:, None], [2, 2, 1], [1, 2, 2])
        columns = {"image_id": list(map(str, images))}
        row = compare(make_result(first, **columns), make_result(second, **columns))[0]
        held += row.ci_low <= 0.3 - 0.2 * 0.7 <= row.ci_high
    assert 0.92 <= held / 400 <= 0.98


def test_swapping_the_models_turns_every_sign():
    pair = random_pair(1)
    for there, back in zip(compare(*pair), compare(*reversed(pair)), strict=True):
        assert there.difference == pytest.approx(-back.difference)
        assert (there.ci_low, there.ci_high) == pytest.approx((-back.ci_high, -back.ci_low))
        assert there.p_value == pytest.approx(back.p_value)
        assert (there.won, there.lost) == (back.lost, back.won)


def test_more_is_better_for_accuracies_and_worse_for_brittleness_and_drop():
    first = make_result([[3, 1, 2]] * 6)  # only the caption above: right at first, brittle, dropped
    second = make_result([[3, 2, 1]] * 5 + [[3, 1, 2]])
    rows = {row.figure: row for row in compare(first, second)}
    assert {figure: row.difference for figure, row in rows.items()} == pytest.approx(
        {"original_accuracy": 0, "augmented_accuracy": 5 / 6, "brittleness": -5 / 6, "drop": -5 / 6}
    )
    assert {(row.won, row.lost) for row in rows.values()} == {(0, 0), (5, 0)}


def test_every_figure_has_the_estimate_of_the_metric_with_images_as_clusters():
    pair = random_pair(3)
    kinds, images = (pair[0].scores[name].to_pylist() for name in ("category", "cluster"))
    before, after = (row_outcomes(result.logits).brittle.astype(int) for result in pair)
    [row] = [
        row
        for row in compare(*pair)
        if (row.view, row.group, row.figure) == ("as_published", "macro", "brittleness")
    ]
    expected = paired_difference(after - before, groups=kinds, clusters=images)
    assert (row.difference, row.ci_low, row.ci_high) == pytest.approx(
        (expected.value, expected.ci_low, expected.ci_high)
    )
    assert row.p_value == pytest.approx(expected.p_value)


@pytest.mark.parametrize(("num_images", "shown"), [(1, "\u2013"), (3, "\u2013"), (4, "-1")])
def test_too_few_images_give_neither_interval_nor_p_and_the_table_says_so(num_images, shown):
    columns = {"image_id": [str(row % num_images) for row in range(12)]}
    result = make_result([[3, 2, 1]] * 12, **columns)
    row = compare(result, make_result([[3, 1, 2]] * 12, **columns))[0]
    assert (row.standard_error is None) == (num_images == 1)
    assert (row.ci_low is None, row.p_value is None) == (num_images < 4, num_images < 4)
    table = render_comparison(result, make_result([[3, 1, 2]] * 12, **columns))
    assert {cell[:2].strip() for cell in table.columns[4].cells if cell} >= {shown}
    assert "too few images" in table.caption


def test_the_clean_view_leaves_flawed_rows_out():
    flaws = {"flaws": [["duplicate"], [], [], []]}
    first = make_result([[1, 1, 2]] * 4, **flaws)
    second = make_result([[2, 2, 1], [1, 1, 2], [1, 1, 2], [1, 1, 2]], **flaws)
    rows = [row for row in compare(first, second) if row.figure == "original_accuracy"]
    assert [(row.view, row.num_examples, row.won) for row in rows] == [
        ("as_published", 4, 1),
        ("clean", 3, 0),
    ]


LOGITS = [[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_result(LOGITS[:2]), r"split 'replace' with 3 rows in the first and 2 in the second"),
        (make_result(LOGITS, split=["swap"] * 3), r"split 'replace' with 3 rows .* and 0 in"),
        (make_result(LOGITS, id=["a", "b", "c"]), r"another 'id' in 3 rows of 3, by .*-00000,"),
        (make_result(LOGITS, flaws=[[], ["duplicate"], []]), r"another 'flaws' in 1 rows .*00001"),
        (make_result(LOGITS, category=["a", "b", "c"]), "another 'category'"),
        (make_result(LOGITS, image_id=["0", "1", "1"]), "another 'cluster' in 1 rows"),
    ],
)
def test_other_rows_or_views_are_refused_by_name(other, message):
    with pytest.raises(ValueError, match=f"(?s)same rows, got .*{message}.*Evaluate both on"):
        compare(make_result(LOGITS), other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset": {**SIGNATURE["dataset"], "content_sha256": "d"}},
            "other pictures or captions",
        ),
        ({"tie_rule": "half"}, "tie_rule 'strict.*' in the first and 'half' in the second"),
        ({"views": ["clean"]}, "views"),
    ],
)
def test_other_contents_or_rules_are_refused_by_name(change, message):
    result = make_result(LOGITS)
    with pytest.raises(ValueError, match=message):
        compare(result, replace(result, signature={**SIGNATURE, **change}))


def test_the_table_has_every_figure_of_every_group():
    table = render_comparison(*random_pair(2))
    labels = [str(cell).strip() for cell in table.columns[0].cells]
    figures = ["original", "augmented", "brittleness", "drop"]
    groups = ["attribute", "relation", "REPLACE macro", "REPLACE micro"]
    lines = [[group, *figures] for group in groups]
    assert labels == ["as published", *itertools.chain(*lines)]
