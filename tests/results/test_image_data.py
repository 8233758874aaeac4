"""The figures without COCO's pictures, where Visual Genome's image_data.json is at hand."""

import io
import json
import subprocess
import sys

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from rich.console import Console

from hard_positive_metric import compute_metrics
from hard_positives import EvaluationResult, compare, evaluate, render_table, write_report
from hard_positives.results.files import SCORES_SCHEMA
from hard_positives_dataset.builder import FEATURES
from hard_positives_dataset.shapes import generate_rows

NUM_ROWS = 60
IMAGES = [2_317_600 + row // 2 for row in range(NUM_ROWS)]  # two rows of each number


@pytest.fixture(scope="module")
def results() -> list[EvaluationResult]:
    """The bundled model on rows of the bundled world, and one that says the same of each."""
    records = list(generate_rows("replace", NUM_ROWS))
    for record, image in zip(records, IMAGES, strict=True):
        record["image_id"] = str(image)
    records[4]["flaws"] = ["duplicate"]
    rows = DatasetDict({"replace": Dataset.from_list(records, features=FEATURES)})
    found = evaluate("shapes_clip", rows, cache=False, progress=False)
    other = found.scores.set_column(
        found.scores.column_names.index("logits"),
        SCORES_SCHEMA.field("logits"),
        pa.array([[3.0, 2.0, 1.0]] * NUM_ROWS, pa.list_(pa.float32())),
    )
    return [found, EvaluationResult(other, found.signature)]


def image_data(folder, coco=lambda image: image % 3 == 0):
    entries = [
        {"image_id": image, "coco_id": 7 * image if coco(image) else None, "width": 800}
        for image in sorted(set(IMAGES))
    ]
    path = folder / "image_data.json"
    path.write_text(json.dumps(entries))
    return path


def drawn(table, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_view_is_that_of_the_rows_whose_picture_is_not_cocos(results, tmp_path):
    result = results[0]
    with_view = result.with_image_data(image_data(tmp_path))
    kept = [row for row, image in enumerate(IMAGES) if image % 3]
    expected = compute_metrics(
        result.logits[kept],
        groups=result.scores["category"].take(kept).to_pylist(),
        clusters=[IMAGES[row] for row in kept],
    )
    assert 0 < len(kept) < NUM_ROWS
    assert with_view.metrics["not_coco"]["replace"] == expected
    assert {view: with_view.metrics[view] for view in result.metrics} == result.metrics
    assert "not_coco" not in result.metrics and with_view.signature == result.signature


def test_all_tables_and_the_page_show_it_beside_the_others(results, tmp_path):
    first, second = (result.with_image_data(image_data(tmp_path)) for result in results)
    text = drawn(render_table(first))
    titles = ("as published", "clean", "without COCO's pictures")
    assert [text.index(title) for title in titles] == sorted(text.index(t) for t in titles)
    assert "without COCO's" not in drawn(render_table(results[0]))
    differences = [row for row in compare(first, second) if row.view == "not_coco"]
    assert {row.num_examples for row in differences if row.group == "micro"} == {40}
    page = write_report([first, second], tmp_path / "page")
    assert "Without COCO&#39;s pictures: rows whose picture is in Visual" in page.read_text()
    assert "not_coco" in (tmp_path / "page" / "figures.csv").read_text()


def test_a_split_of_cocos_pictures_alone_has_no_such_view(results, tmp_path):
    result = results[0].with_image_data(image_data(tmp_path, coco=bool))
    assert "not_coco" not in result.metrics
    assert "without COCO's" not in drawn(render_table(result))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "another file"),
        ("{}", r"got 30 of 30 that it does not, first '2317600'"),
        ('[{"id": 1, "file_name": "1.jpg"}]', "KeyError: 'image_id'"),
        ('[{"image_id": 1, "coco_id": null}]', r"got 30 of 30 that it does not, first '2317600'"),
        ('{"images": [], "annotations": []}', "another file"),
    ],
)
def test_other_files_are_refused(content, message, results, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        results[0].with_image_data(path)


def test_a_missing_file_is_told_before_a_model_is_loaded(tmp_path):
    command = ["evaluate", "--image-data", str(tmp_path / "none.json"), "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "hard_positives", *command], capture_output=True, text=True
    )
    assert done.returncode == 1 and not any(tmp_path.iterdir())
    assert done.stderr.startswith("Error: Expected ") and "got no such file" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_commands_take_the_file(results, tmp_path, capsys):
    from hard_positives.cli import app

    folders = [str(tmp_path / name) for name in "ab"]
    for result, folder in zip(results, folders, strict=True):
        result.save(folder)
    option = ["--image-data", str(image_data(tmp_path))]
    for command, shown in (
        (["compare", *folders], "without COCO's pictures"),
        (["compare", *folders, "--json"], '"view": "not_coco"'),
        (["report", folders[0], "--output", str(tmp_path / "page")], "Wrote"),
    ):
        app([*command, *option], standalone_mode=False)
        assert shown in capsys.readouterr().out
    assert "in Visual Genome alone" in (tmp_path / "page" / "index.html").read_text()
