"""Columns beside image and captions come into one form, or are refused by name."""

import io

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, List, Value
from PIL import Image as PILImage

from hard_positives import evaluate, score
from hard_positives.suite.rows import about_rows, decode_image, read_image_file


def with_column(rows, name, values, feature):
    rows = rows.remove_columns(name) if name in rows.column_names else rows
    return rows.add_column(name, values, feature=feature)


@pytest.fixture
def rows(triples) -> Dataset:
    return triples.select(range(4))


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("name", ["id", "image_id", "category", "substitution"])
def test_whole_numbers_become_text(rows, tiny_clip, name, kind):
    rows = with_column(rows, name, [7, 5, 3, 1], Value(kind))
    column = "cluster" if name == "image_id" else name
    assert evaluate(tiny_clip, rows).scores[column].to_pylist() == ["7", "5", "3", "1"]


def test_class_labels_become_their_names(rows, tiny_clip):
    labels = ClassLabel(names=["attribute", "relation"])
    rows = with_column(rows, "category", [1, 0, 0, 1], labels)
    result = evaluate(tiny_clip, rows)
    groups = result.metrics["as_published"]["rows"]["groups"]
    assert {name: group["num_examples"] for name, group in groups.items()} == {
        "relation": 2,
        "attribute": 2,
    }


@pytest.mark.parametrize("name", ["id", "category", "image_id"])
@pytest.mark.parametrize(
    ("values", "feature"),
    [
        (["a", None, "b", None], Value("string")),
        ([1, None, 2, None], Value("int64")),
        ([0, None, 0, None], ClassLabel(names=["x"])),
        ([None, None, None, None], Value("null")),
    ],
)
def test_nulls_are_refused_by_column_before_a_model_is_loaded(rows, name, values, feature):
    rows = with_column(rows, name, values, feature)
    with pytest.raises(ValueError, match=rf"column '{name}' of split 'rows' .* null in [24] rows"):
        evaluate("no/such-model", rows)


@pytest.mark.parametrize("name", ["id", "category", "image_id", "substitution"])
@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([0.5, 1.0, 2.0, 3.0], Value("float64")),
        ([True, False, True, False], Value("bool")),
        ([["a"], ["b"], [], ["c"]], List(Value("string"))),
        ([{"a": 1}] * 4, {"a": Value("int64")}),
    ],
)
def test_other_types_are_refused_by_column_before_a_model_is_loaded(rows, name, values, feature):
    rows = with_column(rows, name, values, feature)
    with pytest.raises(TypeError, match=rf"column '{name}' of split 'rows' to hold text, whole"):
        evaluate("no/such-model", rows)


def test_no_substitution_and_no_flaws_may_be_null(rows):
    rows = with_column(rows, "substitution", ["a > b", None, "", None], Value("string"))
    rows = with_column(rows, "flaws", [["duplicate"], None, [], None], List(Value("string")))
    about = about_rows(rows, "rows", ["0"] * 4)
    assert about["substitution"] == ["a > b", "", "", ""]
    assert about["flaws"] == [["duplicate"], [], [], []]
    empty = with_column(rows, "flaws", [[], [], [], []], List(Value("null")))
    assert about_rows(empty, "rows", ["0"] * 4)["flaws"] == [[], [], [], []]


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        (["duplicate", "", "", ""], Value("string")),
        ([[1], [], [], []], List(Value("int64"))),
        ([["duplicate", None], [], [], []], List(Value("string"))),
        ([True, False, False, False], Value("bool")),
    ],
)
def test_flaws_that_are_no_lists_of_text_are_refused(rows, values, feature):
    rows = with_column(rows, "flaws", values, feature)
    with pytest.raises(TypeError, match="column 'flaws' to hold lists of text"):
        evaluate("no/such-model", rows)


def test_an_id_that_two_rows_share_is_refused_and_leaving_ids_out_is_not(rows, tiny_clip):
    repeated = with_column(rows, "id", ["a", "b", "a", "c"], Value("string"))
    with pytest.raises(ValueError, match=r"'id' of split 'rows' to name every row once, got 'a'"):
        evaluate("no/such-model", repeated)
    assert len(evaluate(tiny_clip, repeated.remove_columns("id")).scores) == 4


@pytest.mark.parametrize("call", [evaluate, score])
@pytest.mark.parametrize("value", [None, 3])
def test_captions_that_are_no_text_are_refused_before_a_model_is_loaded(rows, call, value):
    feature = Value("string") if value is None else Value("int64")
    rows = with_column(rows, "hard_positive", [value] * 4, feature)
    with pytest.raises(TypeError, match="column 'hard_positive' to hold strings, got"):
        call("no/such-model", rows)


# --- image cells ---


def picture(mode: str = "RGB", size=(8, 8), form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    PILImage.new(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_pictures_of_every_mode_are_read_as_rgb(mode):
    assert decode_image({"bytes": picture(mode), "path": None}, 0).mode == "RGB"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no JPEG, PNG"),
        (picture(size=(13_000, 13_000), mode="1"), "pixels, more than"),
        (picture()[:-26], "truncated or damaged"),
    ],
    ids=["nothing", "eps", "large", "cut"],
)
def test_a_picture_that_cannot_be_used_names_its_row(content, problem):
    with pytest.raises(ValueError, match=rf"Expected row 17 to hold a readable image, .*{problem}"):
        decode_image({"bytes": content, "path": None}, 17)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}])
def test_a_row_without_an_image_is_named(cell):
    with pytest.raises(ValueError, match="Expected row 17 to have an image, got none"):
        read_image_file(cell, 17)


@pytest.mark.parametrize("path", ["missing.png", "/dev/zero", ".", "a\0b", "", "x" * 300])
def test_a_file_that_is_none_is_named_with_its_row(path):
    with pytest.raises(ValueError, match="Expected the image of row 17 to be a file that can be"):
        read_image_file({"bytes": None, "path": path}, 17)


def test_text_that_is_not_utf8_names_its_column(rows):
    table = rows.data.table
    for place, name in enumerate(table.column_names):
        if name == "hard_negative":
            texts = pa.array([b"\xff\xfe"] * 4).view(pa.string())
            table = table.set_column(place, table.schema.field(name), texts)
    broken = Dataset(table, info=rows.info)
    with pytest.raises(ValueError, match="column 'hard_negative' to hold UTF-8 text"):
        evaluate("no/such-model", broken)
