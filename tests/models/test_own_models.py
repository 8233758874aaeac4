"""Functions and objects of the user's own: by name, described, and kept where they are."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hard_positives import evaluate, score

MODULE = """
from pathlib import Path

def lengths(images, captions):
    with Path("calls.txt").open("a") as calls:
        calls.write(f"{len(captions)}\\n")
    return [[len(caption) for caption in captions] for _ in images]

def described(images, captions):
    return lengths(images, captions)

described.describe = lambda: {"id": "lengths", "version": 1}

class Shortest:
    def score_pairs(self, images, captions):
        return [-len(caption) for caption in captions]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path


def command(*arguments: str) -> subprocess.CompletedProcess:
    parts = [sys.executable, "-m", "hard_positives", "evaluate", *arguments, "--split", "swap"]
    return subprocess.run(parts, capture_output=True, text=True, env=os.environ)


def lengths(images, captions):
    return [[float(len(caption)) for caption in captions] for _ in images]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lengths", "Shortest"])
def test_the_command_takes_module_and_name(folder, name):
    done = command(f"my_models:{name}", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["signature"]["model"]["id"] == f"my_models:{name}"
    sign = 1 if name == "lengths" else -1
    expected = evaluate(
        lambda images, captions: sign * np.array(lengths(images, captions)),
        "shapes",
        splits=["swap"],
    )
    assert result["metrics"] == json.loads(json.dumps(expected.metrics))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my_models:absent", "has no attribute 'absent'"),
        ("no_such_module:it", "No module named 'no_such_module'"),
    ],
)
def test_a_name_that_cannot_be_imported_is_refused(folder, triples, name, reason):
    with pytest.raises(ImportError, match=f"to be module:attribute .*{reason}"):
        score(name, triples)


def test_a_function_that_says_what_it_depends_on_is_kept(folder, triples):
    calls = folder / "calls.txt"
    first = score("my_models:described", triples)
    number = len(calls.read_text().split())
    np.testing.assert_array_equal(score("my_models:described", triples), first)
    assert len(calls.read_text().split()) == number
    described = sys.modules["my_models"].described
    described.describe = lambda: {"id": "lengths", "version": 2}
    score(described, triples)
    assert len(calls.read_text().split()) == 2 * number


def test_a_function_that_says_nothing_is_not_kept(folder, triples):
    for times in (1, 2):
        score("my_models:lengths", triples)
        number = len((folder / "calls.txt").read_text().split())
        assert number == times * len(set(triples["image_id"]))


def test_results_call_a_model_as_asked(triples):
    result = evaluate(lengths, triples, name="lengths of captions")
    assert result.signature["model"]["id"] == "lengths of captions"
    assert "model:lengths of captions|" in result.signature_line


def test_a_setting_that_nobody_heeds_is_refused(triples):
    with pytest.raises(ValueError, match="Expected dtype to be left out for functions and objects"):
        score(lengths, triples, dtype="bfloat16")
    with pytest.raises(TypeError, match=r"settings of a model among .*, got \['devise'\]"):
        score("shapes_clip", triples, devise="cpu")
