"""Everything that documents and docstrings show is executed, from the root of the repository."""

import ast
import doctest
import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import hard_positives

DOCUMENTS = [
    "README.md",
    "hard_positives_dataset/README.md",
    "hard_positive_metric/README.md",
    "hard_positives/shapes_clip/README.md",
]
PACKAGES = ("hard_positives", "hard_positive_metric", "hard_positives_dataset")
# The page needs an environment of its own; test_space.py runs it.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name not in ("app.py", "__main__.py")
)


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "document", [DOCUMENTS[0], *(pytest.param(d, marks=pytest.mark.slow) for d in DOCUMENTS[1:])]
)
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


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *DOCUMENTS[1:]])
def test_links_into_the_repository_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", text)
    missing = [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert missing == []


def test_the_file_map_of_the_readme_is_the_file_list():
    mapped, folders = set(), []
    shown = blocks("README.md", "text")[0]
    for indent, name in re.findall(r"^( *)(\S+\.py|\S+/)  +\S", shown, re.MULTILINE):
        folders = folders[: len(indent) // 4]
        if name.endswith(".py"):
            mapped.add("".join(folders) + name)
        else:
            folders.append(name)
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    hidden = {"__init__.py", "__main__.py", "train.py"}
    assert mapped == {str(path.relative_to(ROOT)) for path in found if path.name not in hidden}


# What each folder may import of the others, beside what stands at the top.
BELOW = {
    "suite": set(),
    "models": {"suite"},
    "scoring": {"suite", "models"},
    "results": {"suite", "models", "scoring"},
    "finetuning": {"suite", "models", "scoring"},
    "generation": {"suite"},
    "hub": {"suite", "models", "results"},
}


def test_type_checkers_know_the_public_names_from_where_they_are_loaded():
    tree = ast.parse((ROOT / "hard_positives" / "__init__.py").read_text(encoding="utf-8"))
    known = {
        name.name: node.module.removeprefix("hard_positives.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("hard_positives.")
        for name in node.names
    }
    assert known == hard_positives._HOMES
    assert sorted([*known, "__version__"]) == sorted(hard_positives.__all__)


@pytest.mark.parametrize("folder", BELOW)
def test_imports_run_one_way(folder):
    found = set()
    for path in (ROOT / "hard_positives" / folder).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"(?m)^if TYPE_CHECKING:\n(?:    .*\n)+", "", text)
        found |= set(re.findall(r"(?m)^ *from hard_positives\.(\w+)", text))
        found |= set(re.findall(r"(?m)^ *from hard_positives import (\w+)", text))
    assert found & set(BELOW) <= {folder, *BELOW[folder]}
    assert "cli" not in found
