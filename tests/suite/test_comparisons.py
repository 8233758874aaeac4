"""Rows of any shape become comparisons, and what cannot be one is refused by name."""

import io
import random
import re
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import ClassLabel, Dataset, Image, List, Value
from PIL import Image as PILImage
from transformers import AutoModel, AutoTokenizer

from hard_positives import (
    Columns,
    EvaluationResult,
    compare,
    evaluate,
    render_table,
    score,
    write_report,
)
from hard_positives.suite.columns import CAPTION_COLUMNS
from hard_positives.suite.comparisons import read_comparisons
from hard_positives.suite.flaws import flaws_of
from hard_positives.suite.rows import open_image
from hard_positives.suite.sources import load_splits

WORDS = ["white cat", "black dog", "red umbrella", "a mug on a table", "fire hydrant"]


def picture(seed: int, size=(40, 30)) -> dict:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def dataset(columns: dict, **features) -> Dataset:
    rows = Dataset.from_dict(columns)
    for name, feature in features.items():
        rows = rows.cast_column(name, feature)
    return rows


def logit(clip, image: dict, caption: str) -> float:
    """What one image and one caption score by themselves."""
    rows = dataset({"image": [image], "a": [caption], "b": ["something else"]}, image=Image())
    return score(clip, rows, columns=Columns(positives="a", negatives="b"), cache=False)[0, 0]


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    columns = defaultdict(list)
    for row in range(8):
        for side in (0, 1):
            columns[f"image_{side}"].append(picture(2 * row + side))
            columns[f"caption_{side}"].append(WORDS[(row + side * (1 + row % 3)) % 5])
    return dataset(columns, image_0=Image(), image_1=Image())


PAIRS = Columns(pairs=[("image_0", "caption_0"), ("image_1", "caption_1")])


def test_lists_of_any_length_are_scored_candidate_by_candidate(tiny_clip):
    chosen = random.Random(0)
    rows = {
        "image": [picture(row // 2) for row in range(12)],
        "true": [chosen.sample(WORDS, chosen.randint(1, 2)) for _ in range(12)],
        "first": [chosen.choice(WORDS) for _ in range(12)],
        "false": [chosen.sample(WORDS, chosen.randint(1, 4)) for _ in range(12)],
    }
    columns = Columns(positives=["first", "true"], negatives=["false"])
    logits = score(tiny_clip, dataset(rows, image=Image()), columns=columns)
    for row, found in enumerate(logits):
        texts = [rows["first"][row], *rows["true"][row], *rows["false"][row]]
        expected = [logit(tiny_clip, rows["image"][row], text) for text in texts]
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    result = evaluate(tiny_clip, dataset(rows, image=Image()), columns=columns)
    numbers = [1 + len(texts) for texts in rows["true"]]
    assert [sum(labels) for labels in result.scores["labels"].to_pylist()] == numbers


@pytest.mark.parametrize("label", ["place", "text", "class", "list"])
def test_candidates_with_the_right_one_told_in_any_way(tiny_clip, label):
    candidates, places = [WORDS[:3], WORDS[1:5], WORDS[:2]], [2, 0, 1]
    labels = {
        "place": places,
        "text": [texts[place] for texts, place in zip(candidates, places, strict=True)],
        "class": places,
        "list": [[0, 0, 1], [1, 0, 0, 0], [0, 1]],
    }[label]
    columns = {"image": [picture(row) for row in range(3)], "options": candidates, "right": labels}
    features = {"right": ClassLabel(names=["a", "b", "c"])} if label == "class" else {}
    rows = dataset(columns, image=Image(), **features)
    result = evaluate(tiny_clip, rows, columns=Columns(candidates="options", label="right"))
    assert [of_row.index(True) for of_row in result.scores["labels"].to_pylist()] == places
    assert result.scores["captions"].to_pylist() == candidates


def test_pairs_give_the_published_text_image_and_group_score(tiny_clip, pairs):
    result = evaluate(tiny_clip, pairs, columns=PAIRS)
    raw = pairs.cast_column("image_0", Image(decode=False)).cast_column(
        "image_1", Image(decode=False)
    )
    text, image, group = 0, 0, 0
    for row in raw:  # Winoground's definition, one row at a time
        s = [
            [logit(tiny_clip, row[f"image_{i}"], row[f"caption_{c}"]) for c in (0, 1)]
            for i in (0, 1)
        ]
        text_is_right = s[0][0] > s[0][1] and s[1][1] > s[1][0]
        image_is_right = s[0][0] > s[1][0] and s[1][1] > s[0][1]
        text, image = text + text_is_right, image + image_is_right
        group += text_is_right and image_is_right
    figures = result.metrics["as_published"]["rows"]
    of_direction = figures["directions"]
    assert of_direction["image_to_text"]["set_accuracy"] == text / 8
    assert of_direction["text_to_image"]["set_accuracy"] == image / 8
    assert figures["set_accuracy"] == group / 8
    assert 0 < text < 8 and 0 < image < 8  # else the above shows nothing
    assert result.scores["set"].value_counts().to_pylist()[0]["counts"] == 4
    assert "brittleness" not in figures and figures["num_sets"] == 8


def test_pairs_are_saved_shown_and_compared_as_triples_are(tiny_clip, pairs, tmp_path):
    result = evaluate(tiny_clip, pairs, columns=PAIRS)
    loaded = EvaluationResult.load(result.save(tmp_path))
    assert loaded.scores.equals(result.scores) and loaded.metrics == result.metrics
    titles = [column.header for column in render_table(loaded).columns]
    assert titles == ["", "rows", "original", "sets", "ties"]
    groups = [difference.group for difference in compare(result, loaded)]
    assert set(groups) == {"rows", "image_to_text", "text_to_image"}


def test_three_pairs_compare_each_with_the_two_others(tiny_clip):
    columns = {f"i{place}": [picture(place)] for place in range(3)}
    columns |= {f"c{place}": [WORDS[place]] for place in range(3)}
    rows = dataset(columns, **{f"i{place}": Image() for place in range(3)})
    asked = Columns(pairs=[(f"i{place}", f"c{place}") for place in range(3)])
    comparisons = read_comparisons(rows, asked)
    assert len(comparisons) == 6 and len(comparisons.pairs) == 18
    logits = score(tiny_clip, rows, columns=asked)
    cells = [picture(place) for place in range(3)]
    matrix = np.array([[logit(tiny_clip, image, text) for text in WORDS[:3]] for image in cells])
    order = [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    expected = [matrix[i, order[i]] for i in range(3)] + [matrix[order[c], c] for c in range(3)]
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


def test_a_caption_is_compared_with_images_and_lists_of_images(tiny_clip):
    rows = {
        "text": WORDS[:3],
        "good": [picture(row) for row in range(3)],
        "bad": [[picture(10 * row + k) for k in range(1, 2 + row)] for row in range(3)],
    }
    made = dataset(rows, good=Image(), bad=List(Image()))
    asked = Columns(caption="text", positives="good", negatives="bad")
    for row, found in enumerate(score(tiny_clip, made, columns=asked)):
        images = [rows["good"][row], *rows["bad"][row]]
        expected = [logit(tiny_clip, image, rows["text"][row]) for image in images]
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    scores = evaluate(tiny_clip, made, columns=asked).scores
    assert set(scores["direction"].to_pylist()) == {"text_to_image"}
    assert list(map(len, scores["images"].to_pylist())) == [2, 3, 4]


def test_a_box_is_cut_out_and_two_boxes_of_a_picture_are_two_pictures(tiny_clip):
    whole = picture(0)
    rows = {
        "image": [whole, whole, whole],
        "box": [[0, 0, 20, 30], [20, 0, 20, 30], [0, 0, 20, 30]],
        "a": WORDS[:3],
        "b": WORDS[1:4],
    }
    made = dataset(rows, image=Image())
    comparisons = read_comparisons(made, Columns(positives="a", negatives="b", crop="box"))
    assert len(comparisons.pictures) == 2
    right = PILImage.open(io.BytesIO(whole["bytes"])).crop((20, 0, 40, 30))
    assert np.array_equal(open_image(comparisons, 1), right)
    assert len(set(comparisons.image_digests)) == 2
    outside = made.select([0]).remove_columns("box").add_column("box", [[30, 0, 20, 30]])
    with pytest.raises(ValueError, match="box of row 0 to lie inside its picture of 40 x 30"):
        score(tiny_clip, outside, columns=Columns(positives="a", negatives="b", crop="box"))


def test_category_and_cluster_may_have_other_names(tiny_clip):
    rows = dataset(
        {
            "image": [picture(row) for row in range(4)],
            "a": WORDS[:4],
            "b": WORDS[1:],
            "kind": ["x", "x", "y", "y"],
            "photo": [1, 1, 1, 2],
        },
        image=Image(),
    )
    asked = Columns(positives="a", negatives="b", category="kind", cluster="photo")
    scores = evaluate(tiny_clip, rows, columns=asked).scores
    assert scores["category"].to_pylist() == ["x", "x", "y", "y"]
    assert scores["cluster"].to_pylist() == ["1", "1", "1", "2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"positives": ["a"]}, "positives and negatives to be given together"),
        ({"candidates": "a"}, "candidates and label to be given together"),
        ({"pairs": [("i", "c")]}, "two or more pairs"),
        ({"caption": "a"}, "positives and negatives, candidates or pairs to be given"),
        ({"positives": "a", "negatives": "b", "pairs": [("i", "c")] * 2}, "one of"),
        ({"pairs": [("i", "c")] * 2, "crop": "box"}, "crop to be given with one image"),
    ],
)
def test_columns_that_make_no_comparison_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Columns(**given)


@pytest.mark.parametrize(
    ("change", "columns", "error", "message"),
    [
        ({"b": [[], ["x"]]}, {}, ValueError, "at least one negative, got none in row 0"),
        ({"b": [["x"], ["y", None]]}, {}, TypeError, "'b' to hold strings, got None in row 1"),
        ({"b": ["x", None]}, {}, TypeError, "'b' to hold strings, got None in row 1"),
        ({"b": [1, 2]}, {}, TypeError, "'b' to hold strings, got 1 in row 0"),
        ({}, {"negatives": "c"}, ValueError, r"columns \['image', 'a', 'c'\]"),
        ({}, {"image": "a"}, TypeError, "'a' to be of type Image"),
        ({"box": [[0, 0, 5], [0, 0, 5, 5]]}, {"crop": "box"}, ValueError, "got .* in row 0"),
    ],
)
def test_rows_that_make_no_comparison_are_refused_before_a_model_is_loaded(
    change, columns, error, message
):
    rows = {"image": [picture(0), picture(1)], "a": WORDS[:2], "b": WORDS[2:4], **change}
    asked = Columns(**{"positives": "a", "negatives": "b", **columns})
    with pytest.raises(error, match=message):
        evaluate("no/such-model", dataset(rows, image=Image()), columns=asked)


@pytest.mark.parametrize("label", [3, -1, "green", [1, 0], None, 0.5])
def test_a_label_that_fits_no_candidate_is_refused(label):
    rows = Dataset.from_dict({"options": [WORDS[:3]], "right": [label]})
    rows = rows.add_column("image", [picture(0)]).cast_column("image", Image())
    with pytest.raises(ValueError, match="'right' to hold the place of the right one"):
        read_comparisons(rows, Columns(candidates="options", label="right"))


def test_text_and_pictures_are_found_once_over_all_splits(triples):
    once = read_comparisons(triples)
    twice = read_comparisons({"a": triples, "b": triples})
    assert len(twice) == 2 * len(once) and len(twice.pictures) == len(once.pictures) == 10
    assert twice.captions == once.captions and Value("string") == triples.features["caption"]


def test_candidates_in_several_columns_and_labels_by_name_of_a_class(tiny_clip):
    words = [*WORDS, "tree"]
    columns = {"image": [picture(row) for row in range(3)], "first": words[:3]}
    columns |= {"second": words[3:], "right": [words[3], words[1], words[5]]}
    names = sorted(words, reverse=True)  # so that a name's number is not its place
    rows = dataset(columns, image=Image(), right=ClassLabel(names=names))
    asked = Columns(candidates=["first", "second"], label="right")
    comparisons = read_comparisons(rows, asked)
    assert comparisons.labels.reshape(3, 2).tolist() == [
        [False, True],
        [True, False],
        [False, True],
    ]


def test_rows_of_a_set_are_right_only_together_and_depend_on_each_other(tiny_clip):
    columns = {"image": [picture(row) for row in range(8)], "caption": WORDS[:4] * 2}
    columns |= {"negative": WORDS[1:5] * 2, "scene": [row // 2 for row in range(8)]}
    asked = Columns(positives=["caption"], negatives=["negative"], set="scene")
    result = evaluate(tiny_clip, dataset(columns, image=Image()), columns=asked)
    right = np.array([positive > negative for positive, negative in result.logits])
    figures = result.metrics["as_published"]["rows"]
    assert figures["num_sets"] == figures["num_clusters"] == 4
    assert figures["set_accuracy"] == right.reshape(4, 2).all(1).mean()
    assert 0 < figures["set_accuracy"] < figures["original_accuracy"]
    with pytest.raises(ValueError, match="Expected set to be left out with pairs"):
        Columns(pairs=PAIRS.pairs, set="scene")


def test_a_box_may_be_a_struct(tiny_clip):
    whole = PILImage.new("RGB", (40, 30), "red")
    whole.paste("blue", (8, 4, 28, 24))
    columns = {"image": [whole], "caption": ["a"], "negative": ["b"]}
    columns["bbox"] = [{"x": 8.0, "y": 4.0, "w": 20.0, "h": 20.0}]
    asked = Columns(positives=["caption"], negatives=["negative"], crop="bbox")
    comparisons = read_comparisons(dataset(columns, image=Image()), asked)
    assert comparisons.pictures.boxes == [(8, 4, 20, 20)]
    assert open_image(comparisons, 0).getcolors() == [(400, (0, 0, 255))]


def test_captions_alone_give_the_text_only_task(tmp_path):
    rows = load_splits("shapes")["swap"].select(range(60))
    result = evaluate("shapes_clip", rows, columns=Columns(text_only=True), cache=False)
    clip = AutoModel.from_pretrained(ROOT / "hard_positives" / "shapes_clip").eval()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "hard_positives" / "shapes_clip")
    right, logits = [], []
    for row in rows:  # SugarCrepe++'s definition, one row at a time
        texts = [row["caption"], row["hard_positive"], row["hard_negative"]]
        with torch.no_grad():
            found = clip.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
        unit = torch.nn.functional.normalize(found.pooler_output, dim=-1)
        cosines = (unit @ unit.T * clip.logit_scale.exp()).detach().numpy()
        right.append(cosines[0, 1] > cosines[0, 2] and cosines[0, 1] > cosines[1, 2])
        logits += [[cosines[0, 1], cosines[0, 2]], [cosines[1, 0], cosines[1, 2]]]
    np.testing.assert_allclose(result.logits, logits, atol=1e-4, rtol=0)
    [figures] = result.metrics["as_published"].values()
    assert figures["num_sets"] == len(rows)
    assert figures["set_accuracy"] == pytest.approx(np.mean(right)) and 0 < np.mean(right) < 1
    assert "|compared:text only|" in result.signature_line
    first = result.scores.slice(0, 1).to_pylist()[0]
    assert first["images"] == [] and first["direction"] == "text_to_text"
    assert first["captions"] == [rows[0][name] for name in CAPTION_COLUMNS]
    loaded = EvaluationResult.load(result.save(tmp_path / "saved"))
    assert loaded.scores.equals(result.scores)
    page = write_report([loaded], tmp_path / "page", dataset=rows).read_text()
    shown = re.sub(r"</?(mark|b|ins|del)[^>]*>", "", page)
    assert sum(text in shown for text in rows["hard_negative"][:]) > 20
    assert {one.difference for one in compare(result, loaded)} == {0.0}


def test_text_only_is_refused_where_it_means_nothing(tiny_clip, triples):
    columns = Columns(positives=["caption"], negatives=["hard_negative"], text_only=True)
    with pytest.raises(ValueError, match=r"two true captions .* got 1 and 1 in row 0"):
        evaluate(tiny_clip, triples, columns=columns)
    with pytest.raises(ValueError, match="text_only to be given with positives and negatives"):
        Columns(candidates=["a"], label="b", text_only=True)

    def pairs(images, captions):
        return [[0.0] * len(captions) for _ in images]

    with pytest.raises(ValueError, match="a model that embeds captions for text_only"):
        evaluate(pairs, triples, columns=Columns(text_only=True))


def test_what_no_model_can_get_right_and_what_repeats_is_found_by_texts_alone(tiny_clip):
    first, second = picture(1), picture(2)
    rows = [  # image, caption, hard positive, hard negative, what is wrong with it
        (first, "a cat", "one cat", "a dog", []),
        (first, "a tree", "one tree", "A  Tree", ["negative_equals_caption"]),
        (first, "a car", "one car", "One car", ["negative_equals_hard_positive"]),
        (first, "a bus", "one bus", "one  CAT", ["contradicted"]),
        (second, "a bus", "one bus", "one cat", []),  # true of another picture only
        (first, "A cat", "one cat", "a dog", ["duplicate"]),
        (first, "one cat", "a cat", "a dog", []),  # another original
    ]
    names = ("image", "caption", "hard_positive", "hard_negative")
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    data = dataset(columns, image=Image())
    assert flaws_of(read_comparisons(data)) == [row[-1] for row in rows]
    result = evaluate(tiny_clip, data, cache=False, progress=False)
    splits = result.signature["dataset"]["splits"].values()
    assert [(split["num_rows"], split["num_clean_rows"]) for split in splits] == [(7, 3)]
    own = data.add_column("flaws", [[]] * len(data))
    assert evaluate(tiny_clip, own, cache=False, progress=False).scores["flaws"].to_pylist() == [
        [] for _ in rows
    ]


def test_a_false_picture_that_the_caption_is_true_of_elsewhere_contradicts():
    columns = {
        "text": ["a cat", "a cat"],
        "right": [picture(1), picture(2)],
        "wrong": [picture(2), picture(3)],
    }
    data = dataset(columns, right=Image(), wrong=Image())
    found = flaws_of(
        read_comparisons(data, Columns(caption="text", positives="right", negatives="wrong"))
    )
    assert found == [["contradicted"], []]
