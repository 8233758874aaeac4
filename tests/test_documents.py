"""Everything that documents and docstrings show is executed, from the root of the repository."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DOCUMENTS = [
    "README.md",
    "hard_positives_dataset/README.md",
    "hard_positive_metric/README.md",
    "hard_positives/shapes_clip/README.md",
]
MODULES = [
    "hard_positives",
    "hard_positives.captions",
    "hard_positives.generation",
    "hard_positives.grammar",
    "hard_positives.language_model",
    "hard_positives.rules",
    "hard_positives.workers",
    "hard_positives.names",
    "hard_positives.sources",
    "hard_positives.rows",
    "hard_positives.cache",
    "hard_positives.encoders",
    "hard_positives.encoding",
    "hard_positives.identity",
    "hard_positives.machine",
    "hard_positives.preprocessing",
    "hard_positives.scoring",
    "hard_positives.result_files",
    "hard_positives.evaluation",
    "hard_positives.recipes",
    "hard_positives.training_rows",
    "hard_positives.loss",
    "hard_positives.checkpoints",
    "hard_positives.trainer",
    "hard_positives.finetuning",
    "hard_positives.comparison",
    "hard_positives.gallery",
    "hard_positives.published",
    "hard_positives.report",
    "hard_positives.cards",
    "hard_positives.hub",
    "hard_positive_metric.hard_positive_metric",
    "hard_positives_dataset.annotations",
    "hard_positives_dataset.content",
    "hard_positives_dataset.flaws",
    "hard_positives_dataset.folders",
    "hard_positives_dataset.builder",
    "hard_positives_dataset.images",
    "hard_positives_dataset.parquet",
    "hard_positives_dataset.shapes",
]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_python_of_a_document_runs_as_it_stands(document, tmp_path):
    code = blocks(document, "python")
    assert code, f"{document} shows no Python"
    runner = f"import os; os.chdir({str(ROOT)!r})\n" + "\n".join(code)
    script = tmp_path / "document.py"
    script.write_text(runner, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_every_module_is_listed_here():
    packages = ("hard_positives", "hard_positive_metric", "hard_positives_dataset")
    found = {
        f"{package}.{path.stem}" for package in packages for path in (ROOT / package).glob("*.py")
    }
    # app needs an environment of its own; tests/test_space.py runs it.
    without_examples = {"__init__", "__main__", "cli", "interrupts", "app"}
    assert {name for name in found if name.split(".")[1] not in without_examples} == {
        name for name in MODULES if "." in name
    }


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *DOCUMENTS[1:]])
def test_links_into_the_repository_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", text)
    missing = [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert missing == []


def test_the_file_map_of_the_readme_is_the_file_list():
    mapped = re.findall(r"^(?: {4})?(\S+\.py|\S+/)  +\S", blocks("README.md", "text")[0], re.M)
    packages = ("hard_positives", "hard_positive_metric", "hard_positives_dataset")
    hidden = ("__init__.py", "__main__.py")
    modules = {
        path.name
        for package in packages
        for path in Path(ROOT / package).glob("*.py")
        if path.name not in hidden
    }
    assert modules <= set(mapped)
    assert {name for name in mapped if name.endswith(".py")} <= modules
