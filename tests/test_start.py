"""What commands import: a command that needs no model starts without the libraries of models."""

import json
import subprocess
import sys

import pytest

from hard_positives import evaluate
from hard_positives.suite.sources import load_splits

MODELS = ("torch", "transformers", "accelerate", "evaluate")
HEAVY = (*MODELS, "datasets", "scipy", "sklearn")
PROGRAM = """
import json, sys
from hard_positives.cli import app
try:
    app(sys.argv[1:], standalone_mode=False)
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("results")
    rows = {split: rows.select(range(8)) for split, rows in load_splits("shapes").items()}
    for name in ("one", "other"):
        evaluate("shapes_clip", rows["swap"], name=name, progress=False).save(folder / name)
    return [str(folder / "one"), str(folder / "other")]


def imported_by(*arguments: str) -> set[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "command",
    ["--help", "evaluate --help", "models", "benchmarks", "benchmarks winoground", "cache"],
)
def test_what_reads_no_result_starts_without_heavy_libraries(command):
    assert imported_by(*command.split()) & {*HEAVY, "numpy", "pandas"} <= (
        {"numpy"} if command == "cache" else set()
    )


def test_results_are_compared_without_heavy_libraries(results):
    assert imported_by("compare", *results) & set(HEAVY) == set()
    assert imported_by("compare", *results, "--json") & set(HEAVY) == set()


def test_a_page_without_pictures_is_written_without_heavy_libraries(results, tmp_path):
    done = imported_by("report", *results, "--output", str(tmp_path / "page"))
    assert done & set(HEAVY) == set()


def test_a_page_with_pictures_needs_datasets_and_no_model(results, tmp_path):
    output = ("--output", str(tmp_path / "page"), "--dataset", "shapes")
    done = imported_by("report", *results[:1], *output)
    assert done & {*MODELS, "datasets"} == {"datasets"}


@pytest.mark.slow
def test_a_model_is_scored_without_the_library_evaluate(tmp_path):
    done = imported_by("evaluate", "--split", "swap", "--quiet", "--output", str(tmp_path))
    assert "torch" in done
    assert "evaluate" not in done
