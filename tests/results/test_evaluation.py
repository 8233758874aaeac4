import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Image
from transformers import AutoProcessor, CLIPModel

from hard_positive_metric import compute_metrics
from hard_positives import EvaluationResult, evaluate, render_table, score
from hard_positives.results.evaluation import given_columns
from hard_positives.suite.columns import CAPTION_COLUMNS, Columns


@pytest.fixture(scope="module")
def benchmark(triples) -> DatasetDict:
    """Two splits: thirty rows of two categories, four of them flawed, and ten without extras."""
    replace = triples.select(range(30))
    categories = ["attribute"] * 18 + ["relation"] * 12
    flaws = [["duplicate"] if row in (3, 4, 20, 21) else [] for row in range(30)]
    replace = replace.add_column("category", categories).add_column("flaws", flaws)
    swap = triples.select(range(30, 40)).remove_columns(["id", "image_id"])
    return DatasetDict({"replace": replace, "swap": swap})


@pytest.fixture(scope="module")
def result(tiny_clip, benchmark) -> EvaluationResult:
    return evaluate(tiny_clip, benchmark)


def test_logits_are_those_of_score_split_after_split(result, tiny_clip, benchmark):
    expected = [score(tiny_clip, benchmark[split]) for split in ("replace", "swap")]
    np.testing.assert_allclose(result.logits, np.concatenate(expected), atol=1e-5, rtol=0)
    assert result.scores["split"].to_pylist() == ["replace"] * 30 + ["swap"] * 10


def test_metrics_are_those_of_the_metric_by_view_and_split(result, benchmark):
    rows = benchmark["replace"]
    clean = [row for row, flaws in enumerate(rows["flaws"]) if not flaws]
    for view, kept in {"as_published": list(range(30)), "clean": clean}.items():
        part = rows.select(kept)
        expected = compute_metrics(
            result.logits[kept], groups=list(part["category"]), clusters=list(part["image_id"])
        )
        assert result.metrics[view]["replace"] == expected
    assert result.metrics["clean"]["replace"]["num_examples"] == 26


def test_rows_without_id_category_or_image_id_get_them(result, benchmark):
    swap = result.scores.slice(30)
    assert swap["id"].to_pylist()[:2] == ["swap-00000", "swap-00001"]
    assert set(swap["category"].to_pylist()) == {"swap"}
    images = swap["cluster"].to_pylist()
    assert len(set(images)) == 3  # rows 30 to 39 show the pictures 7, 8 and 9
    assert images[0] == images[1] != images[2]


def test_what_was_scored_stands_beside_its_logits(result, benchmark):
    expected = [
        [row[name] for name in CAPTION_COLUMNS] for rows in benchmark.values() for row in rows
    ]
    assert result.scores["captions"].to_pylist() == expected
    assert result.scores["labels"].to_pylist() == [[True, True, False]] * 40
    cell = benchmark["swap"].cast_column("image", Image(decode=False))[0]["image"]
    digest = hashlib.sha256(cell["bytes"]).hexdigest()
    assert result.scores["images"][30].as_py() == [digest]


def test_a_single_split_can_be_chosen(tiny_clip, benchmark, result):
    swap = evaluate(tiny_clip, benchmark, splits=["swap"])
    assert list(swap.metrics["as_published"]) == ["swap"]
    np.testing.assert_allclose(swap.logits, result.logits[30:], atol=1e-5, rtol=0)


def test_an_unknown_split_is_an_error_that_names_the_known_ones(tiny_clip, benchmark):
    with pytest.raises(ValueError, match=r"among \['replace', 'swap'\], got \['test'\]"):
        evaluate(tiny_clip, benchmark, splits=["test"])


def test_what_is_saved_is_what_is_loaded(result, tmp_path):
    loaded = EvaluationResult.load(result.save(tmp_path / "new" / "folder"))
    assert loaded.scores.equals(result.scores)
    assert loaded.signature == result.signature
    assert loaded.metrics == result.metrics


def test_a_second_run_saves_the_same_bytes(result, tiny_clip, benchmark, tmp_path):
    result.save(tmp_path / "first")
    evaluate(tiny_clip, benchmark).save(tmp_path / "second")
    for name in ("results.json", "scores.parquet"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_saved_scores_can_be_read_with_pyarrow_alone(result, tmp_path):
    scores = pq.read_table(result.save(tmp_path) / "scores.parquet")
    assert scores.column_names == [
        *("id", "split", "category", "substitution", "cluster", "flaws"),
        *("direction", "set", "images", "captions", "labels", "logits"),
    ]
    assert scores.schema.field("logits").type.value_type == "float"


def test_a_result_whose_files_are_of_different_runs_is_refused(result, tmp_path):
    result.save(tmp_path)
    pq.write_table(result.scores.slice(1), tmp_path / "scores.parquet")
    with pytest.raises(ValueError, match=r"of another run than results\.json"):
        EvaluationResult.load(tmp_path)


def test_a_folder_without_a_complete_result_is_refused(result, tmp_path):
    result.save(tmp_path)
    (tmp_path / "results.json").unlink()  # what a run killed while saving leaves
    with pytest.raises(FileNotFoundError, match=r"to hold results.json"):
        EvaluationResult.load(tmp_path)


def test_the_signature_says_what_the_numbers_depend_on(result, tiny_clip, benchmark):
    signature = result.signature
    assert signature["model"]["id"] == tiny_clip.name  # no folder of this machine
    assert signature["model"]["architecture"] == "CLIPModel"
    assert signature["dtype"] == "float32"
    assert signature["dataset"]["splits"] == {
        "replace": {"num_rows": 30, "num_clean_rows": 26},
        "swap": {"num_rows": 10, "num_clean_rows": 10},
    }
    assert signature["num_distinct_images"] == 10
    assert set(signature["versions"]) >= {"python", "torch", "transformers", "hard-positives"}
    assert json.loads(json.dumps(signature)) == signature


def test_the_signature_changes_with_weights_processor_and_rows(result, tiny_clip, benchmark):
    model = CLIPModel.from_pretrained(tiny_clip, dtype="float32")
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")

    def sign(rows):
        return evaluate(model, rows, processor=processor).signature

    same = sign(benchmark)
    assert same["model"]["weights_sha256"] == result.signature["model"]["weights_sha256"]
    assert same["processor"] == result.signature["processor"]
    assert same["dataset"]["content_sha256"] == result.signature["dataset"]["content_sha256"]

    model.text_projection.weight.data[0, 0] += 1e-3
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    swapped = DatasetDict({**benchmark, "swap": benchmark["swap"].select([1, 0, *range(2, 10)])})
    changed = sign(swapped)
    assert changed["model"]["weights_sha256"] != same["model"]["weights_sha256"]
    assert changed["processor"] != same["processor"]
    assert changed["dataset"]["content_sha256"] != same["dataset"]["content_sha256"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", "another"),
        ("category", "another"),
        ("substitution", "a > b"),
        ("image_id", "another"),
        ("flaws", ["another"]),
        ("hard_positive", "another"),
    ],
)
def test_the_content_hash_covers_all_that_the_figures_depend_on(
    tiny_clip, benchmark, column, value
):
    def sign(rows):
        return evaluate(tiny_clip, rows).signature["dataset"]["content_sha256"]

    rows = benchmark["replace"].select(range(4))
    rows = rows.add_column("substitution", [""] * 4)
    assert sign(rows) == sign(rows)
    changed = [value, *rows[column][1:]]
    feature = rows.features[column]
    assert sign(rows) != sign(
        rows.remove_columns(column).add_column(column, changed, feature=feature)
    )


def test_a_dataset_of_another_kind_is_an_error(tiny_clip):
    with pytest.raises(TypeError, match="a Dataset or a DatasetDict, got int"):
        evaluate(tiny_clip, 3)


def test_a_folder_without_the_columns_is_an_error_before_the_model_loads(tmp_path):
    Dataset.from_dict({"caption": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="Rename or add"):
        evaluate("no/such-model", tmp_path)


def test_a_mistyped_column_is_told_with_the_one_that_was_meant(triples):
    columns = Columns(positives=["captoin"], negatives=["Hard_negatives"])
    with pytest.raises(ValueError, match=r"Did you mean caption and hard_negative\?$"):
        evaluate("no/such-model", triples, columns=columns)


def test_the_table_has_a_line_for_every_category_and_mean(result):
    table = render_table(result)
    labels = [str(cell).strip() for cell in table.columns[0].cells]
    lines = ["attribute", "relation", "REPLACE macro", "REPLACE micro", "swap"]
    assert [label for label in labels if label != "ties as half"] == [
        *("as published", *lines, "clean", *lines, "chance"),
    ]
    first = dict(zip((c.header for c in table.columns), next(zip_rows(table, 1)), strict=True))
    figures = result.metrics["as_published"]["replace"]["groups"]["attribute"]
    assert first["rows"] == "18"
    assert first["original"].startswith(f"{100 * figures['original_accuracy']:.1f} ±")


def zip_rows(table, start: int):
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    return iter(rows[start:])


def test_the_table_shows_one_view_where_no_row_has_a_flaw(tiny_clip, benchmark):
    labels = list(render_table(evaluate(tiny_clip, benchmark["swap"])).columns[0].cells)
    assert "clean" not in map(str, labels)


def test_ties_are_shown_at_half_credit_beside_the_strict_figures(tiny_clip, benchmark):
    swap = benchmark["swap"]
    tied = swap.remove_columns("hard_negative").add_column("hard_negative", list(swap["caption"]))
    rows = list(zip_rows(render_table(evaluate(tiny_clip, tied)), 1))
    assert [cell.split(" ")[0] for cell in rows[0][2:]] == ["0.0", "0.0", "0.0", "0.0", "100.0"]
    assert rows[1][0].strip() == "ties as half"
    assert rows[1][2] == "50.0"


def test_no_folder_of_this_machine_stands_in_a_result(tiny_clip, benchmark, tmp_path, monkeypatch):
    data = tmp_path / "ann" / "data"
    data.mkdir(parents=True)
    benchmark["swap"].to_parquet(data / "swap.parquet")
    model = CLIPModel.from_pretrained(tiny_clip, dtype="float32")
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    for loaded in (evaluate(tiny_clip, data), evaluate(model, data, processor=processor)):
        folder = loaded.save(tmp_path / "result")
        text = (folder / "results.json").read_text() + str(pq.read_table(folder / "scores.parquet"))
        assert loaded.signature["model"]["id"] == tiny_clip.name
        assert loaded.signature["dataset"]["id"] == "data"
        assert not [part for part in (str(tmp_path), str(tiny_clip.parent)) if part in text]
    monkeypatch.chdir(tmp_path)  # as typed
    assert evaluate(tiny_clip, "ann/data").signature["dataset"]["id"] == "ann/data"


@pytest.mark.parametrize(
    "columns",
    [
        Columns(),
        Columns(positives="caption", negatives="hard_negative"),
        Columns(positives=("caption", "hard_positive"), negatives="false"),
        Columns(candidates="texts", label="right", category="kind"),
        Columns(pairs=[("image_0", "caption_0"), ("image_1", "caption_1")]),
    ],
)
def test_the_columns_of_a_signature_are_columns_again(columns):
    assert Columns(**given_columns(columns)) == columns
