"""Tuned on the test: what training rows and held-out rows share is found by content and told."""

import io
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from hard_positives import Recipe, finetune
from hard_positives.finetuning.overlap import find_overlap, overlap_in_words
from hard_positives.finetuning.rows import (
    TrainingRows,
    check_training_rows,
    choose_texts,
    identify_content,
)
from hard_positives.suite.comparisons import read_comparisons

SMALL = Recipe(batch_size=4, learning_rate=1e-3, epochs=1, warmup_steps=1)
TEXTS = ("caption", "hard_positive", "hard_negative")


def file_of(picture: PILImage.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def rows_of(name: str, kind: str = "PNG") -> Dataset:
    """Eight rows of pictures and texts that no rows of another name have."""
    random = np.random.default_rng(list(name.encode()))
    pictures = random.integers(0, 256, (8, 24, 32, 3), dtype=np.uint8)
    records = [
        {
            "image": {
                "bytes": file_of(PILImage.fromarray(picture), kind),
                "path": f"{name}{place}",
            },
            **{text: f"{name} {place} {text}" for text in TEXTS},
        }
        for place, picture in enumerate(pictures)
    ]
    features = {"image": Image(decode=False), **dict.fromkeys(TEXTS, Value("string"))}
    return Dataset.from_list(records, Features(features))


def with_cells(rows: Dataset, cells: dict[int, dict]) -> Dataset:
    records = rows.to_list()
    for place, values in cells.items():
        records[place].update(values)
    return Dataset.from_list(records, rows.features)


def overlap(training: Dataset, held_out: Dataset, recipe: Recipe = SMALL) -> dict:
    rows = check_training_rows({"train": training})
    chosen = choose_texts(rows, recipe, seed=0)
    trained = TrainingRows(rows, identify_content(rows)[0], *chosen)
    return find_overlap(trained, {"test": read_comparisons(held_out)})["test"]


def test_a_picture_is_found_under_another_name_and_in_another_format():
    training, held_out = rows_of("a", "JPEG"), rows_of("b")
    picture = PILImage.open(io.BytesIO(training[5]["image"]["bytes"]))
    for kind in ("PNG", "BMP", "GIF"):  # of 256 colours at most: not the same pixels
        cell = {"image": {"bytes": file_of(picture, kind), "path": f"other.{kind}"}}
        found = overlap(training, with_cells(held_out, {2: cell}))
        if kind == "GIF":
            assert found["num_same_picture"] == 0
        else:
            assert found["num_same_picture"] == 1 and found["same_picture"] == [2, 5]
        assert found["num_same_text"] == 0


def test_a_picture_of_the_same_bytes_and_another_shape_is_another():
    shapes = [PILImage.new("RGB", size, "red") for size in ((4, 6), (6, 4))]
    training, held_out = (
        with_cells(rows_of(name), {0: {"image": {"bytes": file_of(one, "PNG"), "path": None}}})
        for name, one in zip("ab", shapes, strict=True)
    )
    assert overlap(training, held_out)["num_same_picture"] == 0


@pytest.mark.parametrize("trained_as", TEXTS)
@pytest.mark.parametrize("held_out_as", TEXTS)
def test_a_text_is_found_in_another_case_and_with_other_points_whatever_it_is_there(
    trained_as, held_out_as
):
    training = with_cells(rows_of("a"), {6: {trained_as: "A  white cat, on a table."}})
    held_out = with_cells(rows_of("b"), {3: {held_out_as: "a white CAT on a table"}})
    found = overlap(training, held_out)
    assert (found["num_same_text"], found["num_same_picture"]) == (1, 0)
    assert found["same_text"] == "a white CAT on a table" and found["same_picture"] is None


def test_texts_that_the_recipe_left_out_are_not_trained_on():
    same = {"hard_positive": "a white cat", "hard_negative": "a black cat"}
    training = with_cells(rows_of("a"), {place: same for place in range(8)})
    held_out = with_cells(rows_of("b"), {3: same})
    for share, expected in ((1.0, 1), (0.0, 0)):
        recipe = replace(SMALL, hard_positive_share=share, hard_negative_share=share)
        assert overlap(training, held_out, recipe)["num_same_text"] == expected


def test_rows_are_counted_once_each_and_pictures_for_every_row_that_shows_them():
    training = rows_of("a")
    cells = {place: training[1] for place in (0, 4, 7)}
    found = overlap(training, with_cells(rows_of("b"), cells))
    assert (found["num_rows"], found["num_same_picture"], found["num_same_text"]) == (8, 3, 3)
    assert overlap_in_words({"test": found, "other": found}) == (
        "of 16 held-out rows, 6 show a picture that is trained on and 6 have a text that is"
    )


def test_texts_without_words_or_in_scripts_with_marks_are_not_mixed_up():
    training = with_cells(rows_of("a"), {0: {"caption": "!!!"}, 1: {"caption": "कि"}})
    held_out = with_cells(rows_of("b"), {0: {"caption": "???"}, 1: {"caption": "कु"}})
    assert overlap(training, held_out)["num_same_text"] == 0


def test_whoever_tunes_on_the_test_is_told_and_the_card_says_so_right_above_the_figures(
    tiny_clip, tmp_path
):
    training = rows_of("a")
    held_out = with_cells(rows_of("b"), {place: training[place] for place in range(3)})
    sentence = "of 8 held-out rows, 3 show a picture that is trained on and 3 have a text that is"
    with pytest.warns(UserWarning, match=sentence) as told:
        output = finetune(tiny_clip, training, tmp_path / "model", recipe=SMALL, held_out=held_out)
    [warning] = [str(one.message) for one in told if "held-out" in str(one.message)]
    assert "row 0 of rows shows the picture of training row 0" in warning
    assert "'a 0 caption'" in warning
    record = json.loads((output / "finetuning.json").read_text())
    assert record["overlap"]["rows"]["num_same_picture"] == 3
    card = (output / "README.md").read_text()
    assert f"learnt: {sentence}.**\n\n| | before | after |" in card


def test_where_nothing_is_shared_no_line_says_so(tiny_clip, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        output = finetune(
            tiny_clip, rows_of("a"), tmp_path / "model", recipe=SMALL, held_out=rows_of("b")
        )
    found = json.loads((output / "finetuning.json").read_text())["overlap"]["rows"]
    assert (found["num_same_picture"], found["num_same_text"]) == (0, 0)
    card = (output / "README.md").read_text()
    assert "trained on" not in card and "| before | after |" in card


@pytest.mark.parametrize("rest", [(3, 4, 5, 6, 7), (1, 2, 6), (3, 5)])
def test_figures_without_cocos_pictures_stand_beside_those_of_all(tiny_clip, tmp_path, rest):
    rows = rows_of("b")
    # The model orders all of these alike: in three rows other texts are the true ones.
    turned = {"caption": "hard_negative", "hard_negative": "caption"}
    cells = {place: {to: rows[place][name] for name, to in turned.items()} for place in (0, 3, 5)}
    numbered = with_cells(rows, cells).add_column("image_id", list(map(str, range(8))))
    entries = [{"image_id": place, "coco_id": None if place in rest else 1} for place in range(8)]
    path = tmp_path / "image_data.json"
    path.write_text(json.dumps(entries))
    records = {}
    for name, held_out, given in (
        ("all", numbered, {"image_data": path}),
        ("rest", numbered.select(rest), {}),
    ):
        output = tmp_path / name
        finetune(tiny_clip, rows_of("a"), output, recipe=SMALL, held_out=held_out, **given)
        records[name] = json.loads((output / "finetuning.json").read_text())
    assert records["all"]["settings"]["held_out"]["num_not_coco"] == {"rows": len(rest)}
    for moment in ("before", "after"):
        found, alone = (records[name][moment] for name in ("all", "rest"))
        assert found["eval_rows_not_coco_original_accuracy"] != found["eval_rows_original_accuracy"]
        for figure in ("original_accuracy", "augmented_accuracy", "brittleness"):
            assert found[f"eval_rows_not_coco_{figure}"] == alone[f"eval_rows_{figure}"]
    card = (tmp_path / "all" / "README.md").read_text()
    assert "| rows_not_coco_original_accuracy |" in card and "`not_coco`: of the rows" in card
    assert "not_coco" not in (tmp_path / "rest" / "README.md").read_text()


def test_image_data_without_held_out_rows_is_refused(tiny_clip, tmp_path):
    with pytest.raises(ValueError, match="image_data to be given with held_out"):
        finetune(tiny_clip, rows_of("a"), tmp_path / "model", recipe=SMALL, image_data="x.json")
