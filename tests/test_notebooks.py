"""The notebooks run, and what they show is what comes out; so does the README's picture."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODEL = 'MODEL = "shapes_clip"'
POINTS = {"05": 10.0}  # how far a number may be off: another CPU trains another model
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    return NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    ).execute()


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What its cells print and return as text; pictures and errors on stderr are left out."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = [output.text for output in outputs if output.get("name") == "stdout"]
    returned = [o.data.get("text/plain", "") for o in outputs if o.output_type == "execute_result"]
    return printed + returned


def test_there_are_the_notebooks_that_the_readme_promises():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_the_outputs_that_it_keeps(path):
    kept = texts(read(path))
    fresh = texts(execute(read(path)))
    assert len(kept) == len(fresh) > 0
    for before, now in zip(kept, fresh, strict=True):
        # Words alike; numbers nearly, since another CPU may turn the order of two close logits.
        assert NUMBER.sub("#", now).split() == NUMBER.sub("#", before).split()
        numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(t)] for t in (before, now)]
        points = POINTS.get(path.name[:2], 1.0)
        assert numbers[1] == pytest.approx(numbers[0], rel=0.05, abs=points)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["02", "03", "05"])
def test_a_notebook_runs_with_another_model_in_the_place_of_its_own(number, tiny_clip):
    [path] = [path for path in NOTEBOOKS if path.name.startswith(number)]
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and MODEL in cell.source]
    assert len(cells) == 1 and cells[0].source.count(MODEL) == 1
    cells[0].source = cells[0].source.replace(MODEL, f"MODEL = {str(tiny_clip)!r}")
    assert "shapes_clip" not in "".join(c.source for c in notebook.cells if c.cell_type == "code")
    assert texts(execute(notebook)) != texts(read(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_whole_small_and_clean(path):
    assert path.stat().st_size < 150_000
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|root|work|tmp|Users)/", text)
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    assert not any(o.get("name") == "stderr" for cell in code for o in cell.outputs)


@pytest.mark.slow
def test_the_picture_of_the_readme_is_what_its_script_draws(tmp_path):
    kept = ROOT / "docs" / "opening_picture.svg"
    code = (
        "import sys; sys.path.insert(0, 'docs')\n"
        "from opening_picture import draw, find_row\n"
        "print(draw(*find_row()), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    numbers = r"\d+(\.\d+)?"
    assert re.sub(numbers, "#", done.stdout) == re.sub(numbers, "#", kept.read_text("utf-8"))
    assert kept.stat().st_size < 20_000


def test_the_picture_of_the_figures_is_what_its_script_draws():
    code = "import sys; sys.path.insert(0, 'docs'); import figures_picture as it; print(it.draw())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    kept = (ROOT / "docs" / "figures_picture.svg").read_text("utf-8")
    assert done.stdout == kept + "\n"
