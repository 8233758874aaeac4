"""Several models on several datasets: all are scored, and none that is finished is done again."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from datasets import Dataset

from hard_positives import Columns, EvaluationResult, evaluate, evaluate_all, render_summary
from hard_positives.results.files import find_results


@pytest.fixture
def sources(tiny_clip, triples, tmp_path):
    """Two models and two datasets that share half of their rows."""
    other = shutil.copytree(tiny_clip, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["vision_config"]["layer_norm_eps"] = 0.1
    (other / "config.json").write_text(json.dumps(config))
    for name, rows in {"first": range(20), "second": range(10, 30)}.items():
        (tmp_path / name).mkdir()
        triples.select(rows).to_parquet(tmp_path / name / "test.parquet")
    return [tiny_clip, other], [tmp_path / "first", tmp_path / "second"]


def evaluated(sources, output) -> tuple[list[EvaluationResult], list[str]]:
    told = []
    results = evaluate_all(*sources, output, progress=False, tell=told.append)
    return results, [sentence.rsplit(": ", 1)[1] for sentence in told]


def test_every_pair_has_the_result_that_it_has_alone(sources, tmp_path):
    results, told = evaluated(sources, tmp_path / "out")
    assert told == ["scored."] * 4
    pairs = [(model, dataset) for model in sources[0] for dataset in sources[1]]
    for result, (model, dataset) in zip(results, pairs, strict=True):
        alone = evaluate(str(model), str(dataset), cache=False)
        np.testing.assert_allclose(result.logits, alone.logits, atol=1e-5, rtol=0)
        assert result.scores.drop("logits").equals(alone.scores.drop("logits"))
        assert result.signature == alone.signature
        saved = EvaluationResult.load(tmp_path / "out" / model.name / dataset.name)
        assert saved.scores.equals(result.scores)
    assert len({str(result.scores["logits"]) for result in results}) == 4
    assert len(list(find_results(tmp_path / "out"))) == 4


def test_what_is_finished_is_kept_and_what_has_changed_is_done_again(sources, tmp_path, triples):
    out = tmp_path / "out"
    evaluated(sources, out)
    assert evaluated(sources, out)[1] == ["finished before."] * 4
    (out / "other" / "second" / "results.json").write_text("{")  # damaged
    assert evaluated(sources, out)[1] == ["finished before."] * 3 + ["scored."]
    rows = triples.select(range(10, 30)).to_list()
    rows[3]["hard_negative"] += " at night"
    changed = Dataset.from_list(rows, features=triples.features)
    changed.to_parquet(sources[1][1] / "test.parquet")
    told = evaluated(sources, out)[1]
    assert told == ["finished before.", "scored."] * 2
    config = json.loads((sources[0][1] / "config.json").read_text())
    config["vision_config"]["layer_norm_eps"] = 0.2
    (sources[0][1] / "config.json").write_text(json.dumps(config))
    assert evaluated(sources, out)[1] == ["finished before."] * 2 + ["scored."] * 2


def test_two_of_one_name_are_refused_before_anything_is_read(sources, tmp_path):
    with pytest.raises(ValueError, match="datasets to be one or more, each of another name"):
        evaluate_all(["no/such-model"], [tmp_path / "a" / "x", tmp_path / "b" / "x"], tmp_path)
    with pytest.raises(ValueError, match=r"models to be one or more, .* got \[\]"):
        evaluate_all([], sources[1], tmp_path)


def test_the_summary_has_a_line_for_each_model_under_each_dataset(sources, tmp_path):
    results, _ = evaluated(sources, tmp_path / "out")
    cells = [str(cell) for cell in render_summary(results).columns[0].cells]
    names = [cell.strip() for cell in cells if "half" not in cell]
    models = [model.name for model in sources[0]]
    assert names == ["first test", *models, "second test", *models]


def test_the_summary_has_no_augmented_accuracy_where_no_row_has_a_hard_positive(tiny_clip, triples):
    columns = Columns(positives="caption", negatives="hard_negative")
    plain = evaluate(tiny_clip, triples.select(range(8)), columns=columns, cache=False)
    whole = evaluate(tiny_clip, triples.select(range(8)), cache=False)
    table = render_summary([plain, whole])
    by_title = {column.header: list(column.cells) for column in table.columns}
    lines = [place for place, rows in enumerate(by_title["rows"]) if rows == "8"]
    assert [by_title["augmented"][place] == "" for place in lines] == [True, False]
    assert all(by_title["original"][place] for place in lines)


@pytest.mark.slow
def test_the_command_line_scores_all_and_reports_on_one_page(sources, tmp_path):
    def run(*arguments) -> str:
        command = [sys.executable, "-m", "hard_positives", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (models, (first, second)), out = sources, tmp_path / "out"
    evaluation = ["evaluate", *models, "--dataset", first, "--dataset", second, "--output", out]
    table = run(*evaluation)
    assert "first test" in table and table.count("model:other|") == 2
    run("report", out, "--output", tmp_path / "page", "--dataset", first, "--dataset", second)
    written = {path.name for path in (tmp_path / "page").iterdir()}
    assert written == {"figures.csv", "figures.tex", "index.html", "report.md"}
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == ["Models by datasets", "first", "second"]
    assert "Pictures are missing" not in page
