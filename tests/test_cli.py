import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hard_positives import EvaluationResult
from hard_positives.cli import app


@pytest.fixture(scope="module")
def folder(triples, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "data").mkdir()
    triples.to_parquet(folder / "data" / "replace-00000-of-00001.parquet")
    return str(folder)


def run(*arguments: str, env: dict[str, str] | None = None) -> "CliRunner.Result":
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80", **(env or {})})


def test_evaluate_prints_a_table_and_saves_the_result(tiny_clip, folder, tmp_path):
    output = tmp_path / "results"
    result = run("evaluate", str(tiny_clip), "--dataset", folder, "--output", str(output))
    assert result.exit_code == 0, result.output
    saved = EvaluationResult.load(output)
    accuracy = saved.metrics["as_published"]["replace"]["original_accuracy"]
    assert f"{100 * accuracy:.1f} ±" in result.stdout
    *table, signature = result.stdout.splitlines()
    assert max(map(len, table)) <= 80
    assert signature == saved.signature_line  # in one piece, to be copied


def test_a_wrong_input_is_one_sentence_and_exit_code_1(tiny_clip, folder):
    result = run("evaluate", str(tiny_clip), "--dataset", folder, "--split", "swap")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Expected splits among ['replace'], got ['swap'].")
    assert "Traceback" not in result.output


def test_help_imports_no_heavy_library():
    heavy = ("torch", "transformers", "datasets", "pyarrow", "numpy")
    code = (
        "import sys\n"
        "from hard_positives.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "evaluate" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_python_dash_m_is_the_same_program():
    command = [sys.executable, "-m", "hard_positives", "evaluate", "--help"]
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    assert "--batch-size" in done.stdout
