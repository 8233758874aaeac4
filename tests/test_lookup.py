"""Names that lead nowhere: told at once, with what was looked for; the Hub is asked once."""

import os
import socket
import subprocess
import sys

import pytest
from stand_in_hub import StandInHub

from hard_positives import EvaluationResult, evaluate
from hard_positives.lookup import check_name, near_names
from hard_positives.suite.sources import load_splits

CHECK = """
import sys
from hard_positives.models.kinds import check_model_name
from hard_positives.suite.benchmarks import check_dataset_name
try:
    {"model": check_model_name, "dataset": check_dataset_name}[sys.argv[1]](sys.argv[2])
    print("there")
except FileNotFoundError as error:
    print(error)
"""


def told(kind, name, *, folder, endpoint, offline="0", token=""):
    """What is said of a name, in a process that reads the Hub's address anew."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": offline}
    environment = {**os.environ, "HF_TOKEN": token, "PYTHONPATH": os.getcwd(), **own}
    command = [sys.executable, "-c", CHECK, kind, name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Retry" not in done.stderr
    return done.stdout.strip()


@pytest.fixture
def closed_port():
    """An address that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("name", ["clp", "org/clp"])
def test_the_hub_is_asked_once_for_a_name_that_is_not_there(kind, name, tmp_path):
    (tmp_path / "clip").mkdir()
    with StandInHub() as hub:
        said = told(kind, name, folder=tmp_path, endpoint=hub.url)
        asked = [request for request in hub.requests if f"/api/{kind}s/" in request]
    assert len(asked) == 1
    assert f"Expected the {kind} to be a folder, a Hub id or " in said
    assert f"got '{name}': there is no such folder, and no {kind} of this id on the Hub" in said
    assert ("Did you mean clip?" in said) == (name == "clp")


def test_what_the_hub_has_is_left_to_the_libraries(tmp_path):
    with StandInHub() as hub:
        hub.add("models", "org/clip", {"config.json": b"{}"})
        hub.add("datasets", "org/rows", {"rows.parquet": b""}, private=True)
        assert told("model", "org/clip", folder=tmp_path, endpoint=hub.url) == "there"
        place = {"folder": tmp_path, "endpoint": hub.url}
        assert told("dataset", "org/rows", **place, token="hf_writer") == "there"
        said = told("dataset", "org/rows", **place)
        assert "on the Hub that you may read (private ones need `hf auth login`)" in said
        hub.fail("GET", "/api/models/org/other", 503)
        assert told("model", "org/other", **place) == "there"  # they try again


def test_a_hub_out_of_reach_is_told_without_retries(closed_port, tmp_path):
    said = told("dataset", "sugarcrep", folder=tmp_path, endpoint=closed_port)
    assert "there is no such folder, and the Hub could not be asked (" in said
    assert said.endswith("Did you mean sugarcrepe or sugarcrepe++?")


def test_offline_nothing_is_asked_and_what_is_cached_is_there(tmp_path):
    with StandInHub() as hub:
        place = {"folder": tmp_path, "endpoint": hub.url, "offline": "1"}
        assert "which HF_HUB_OFFLINE keeps from asking." in told("model", "a/b", **place)
        assert "HF_HUB_OFFLINE" in told("dataset", "org/rows", **place)
        for kind, name in (("models", "a/b"), ("datasets", "org/rows")):
            commit = tmp_path / "hf" / "hub" / f"{kind}--{name.replace('/', '--')}/snapshots/123"
            commit.mkdir(parents=True)
            (commit / "config.json").write_text("{}")
            assert told(kind[:-1], name, **place) == "there"
        assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["/nowhere/REPLACE", "./REPLCE", "a/b/c", "mine.yaml", "REPLCE/", "two words"]
)
def test_what_cannot_be_a_hub_id_is_not_looked_for_there(name, tmp_path):
    with StandInHub() as hub:
        said = told("dataset", name, folder=tmp_path, endpoint=hub.url)
        assert hub.requests == []
    assert f"got '{name}': there is no such f" in said


def test_near_names_are_known_ones_and_those_beside_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("REPLACE", "results/clip", "results/negclip"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "replace").touch()
    assert near_names("REPLCE") == ["REPLACE"]
    assert near_names("./replace") == ["./REPLACE"]
    assert near_names("results/clp") == ["results/clip"]
    assert near_names(f"{tmp_path}/results/Clip")[0] == f"{tmp_path}/results/clip"
    for other in ("nothing/like/it", "flip", "blip2", "crepe"):
        assert near_names(other, ["clip", "sugarcrepe"]) == []


def test_a_model_and_its_adapter_are_missed_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model to be .* 'shapes_clp'.*mean shapes_clip\?"):
        evaluate("shapes_clp", "shapes")
    with pytest.raises(FileNotFoundError, match=r"to be a folder or a Hub id, got '\./lora'"):
        evaluate("shapes_clip", "shapes", adapter="./lora")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="the folder of a model, got one without config"):
        evaluate("empty", "shapes")
    with pytest.raises(FileNotFoundError, match="empty to hold data files, such as Parquet"):
        load_splits("empty")


@pytest.mark.parametrize(
    "command",
    [
        "evaluate shapes_clp --dataset REPLCE",
        "evaluate --dataset REPLCE",
        "finetune shapes_clp --data REPLCE --output out",
        "finetune shapes_clip --data REPLCE --output out",
    ],
)
def test_a_command_tells_before_any_library_of_models_is_imported(command, tmp_path):
    program = (
        "import sys; from hard_positives.cli import app\n"
        "try:\n    app(sys.argv[1:])\nfinally:\n"
        "    print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 1
    assert done.stdout == "set()\n"
    assert done.stderr.startswith("Error: Expected the ") and done.stderr.count("\n") == 1


def test_a_folder_of_results_that_is_missing_names_its_neighbour(tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(FileNotFoundError, match=r"got no such folder\. Did you mean .*/clip\?"):
        EvaluationResult.load(tmp_path / "clp")
    with pytest.raises(FileNotFoundError, match=r"got no such file\. Run hard-positives evaluate"):
        EvaluationResult.load(tmp_path / "clip")


def test_known_names_need_no_folder():
    check_name("dataset", "shapes", "a folder", ["shapes"])
