"""Everything that documents and docstrings show is executed, from the root of the repository."""

import ast
import doctest
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import ROOT
from typer.core import TyperGroup
from typer.main import get_command

import hard_positives
from hard_positives.cli import app

CARDS = [
    "hard_positives_dataset/README.md",
    "hard_positive_metric/README.md",
    "hard_positives/shapes_clip/README.md",
]
PAGES = sorted(  # but the one that `make site` writes
    f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.name != "commands.md"
)
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


SHOW_PYTHON = ["README.md", *(page for page in PAGES if blocks(page, "python")), *CARDS]


@pytest.mark.parametrize(
    "document",
    [SHOW_PYTHON[0], *(pytest.param(d, marks=pytest.mark.slow) for d in SHOW_PYTHON[1:])],
)
def test_the_python_of_a_document_runs_as_it_stands(document, tmp_path):
    code = blocks(document, "python")
    assert code, f"{document} shows no Python"
    runner = f"import os; os.chdir({str(ROOT)!r})\n" + "\n".join(code)
    script = tmp_path / "document.py"
    script.write_text(runner, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_the_commands_of_a_page_run_as_they_stand(page, tmp_path):
    script = "set -e\n" + "\n".join(blocks(page, "bash"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_the_network(tmp_path):
    pytest.importorskip("zensical", reason="needs the extra docs, which .ci/run installs")
    for name in ("docs", "mkdocs.yml", "CONTRIBUTING.md", "Makefile", *PACKAGES):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    subprocess.run(["make", "site"], cwd=tmp_path, check=True)
    pages = list((tmp_path / "build" / "site").glob("*.html"))
    assert {page.stem for page in pages} >= {Path(page).stem for page in PAGES} | {"commands"}
    loaded = r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\" >]+)"
    linked = r"<link\b[^>]*\brel=\"?(?:stylesheet|icon|preconnect|preload)[^>]*href=\"?([^\" >]+)"
    for page in pages:
        text = page.read_text(encoding="utf-8")
        found = re.findall(loaded, text) + re.findall(linked, text)
        assert found and not [one for one in found if "//" in one], page.name
        here = [one for one in found if not one.startswith("data:")]
        gone = [one for one in here if not (page.parent / one.lstrip("/").split("?")[0]).exists()]
        assert page.name == "404.html" or gone == [], page.name


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    if name == "hard_positives.mteb":
        pytest.importorskip("mteb", reason="needs mteb, which .ci/run installs for it")
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_the_command_line_knows_every_command_that_a_document_shows(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    shown = re.findall(r"^hard-positives .*?$", "\n".join(blocks(document, "shell")), re.MULTILINE)
    shown += re.findall(r"`(hard-positives [^`]*)`", text.replace("\n", " "))
    for line in shown:
        words = [word for word in shlex.split(line, comments=True)[1:] if word != "..."]
        command = get_command(app)
        parent = typer.Context(command, info_name="hard-positives")
        while isinstance(command, TyperGroup):
            word = next(word for word in words if not word.startswith("-"))
            command = command.commands[word]
            words = [other for other in words if other not in (word, "--traceback")]
        if words:  # else a command is only named
            command.make_context(line, words, parent=parent).close()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *PAGES, *CARDS])
def test_links_into_the_repository_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", text)
    missing = [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert missing == []


def test_the_file_map_is_the_file_list():
    mapped, folders = set(), []
    shown = blocks("docs/map.md", "text")[0]
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
    "review": {"suite"},
    "results": {"suite", "models", "scoring", "review"},
    "finetuning": {"suite", "models", "scoring"},
    "generation": {"suite"},
    "hub": {"suite", "models", "results", "finetuning"},
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
