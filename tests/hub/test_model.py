"""A tuned model goes to the Hub whole, comes back by its id, and has the figures that it had."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, Image
from stand_in_hub import READER
from test_hub import (  # noqa: F401
    DATASET,
    FAULTS,
    built,
    clean,
    client,
    published,
    published_after,
    sources,
    stand_in,
)

from hard_positives import EvaluationResult
from hard_positives.finetuning.record import RECORD, read_record, write_record
from hard_positives_dataset import build_parquet
from hard_positives_dataset.shapes import generate_rows

TUNED = "org/tuned"


@pytest.fixture(scope="module")
def tuned(client, published, tiny_clip, tmp_path_factory) -> Path:  # noqa: F811
    """A tiny model tuned on other pictures than those of the published dataset, its held-out."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = Dataset.from_list(list(generate_rows("swap", 32))).cast_column("image", Image())
    build_parquet({"swap": rows}, folder / "rows", progress=False)
    done = client(
        *("finetune", tiny_clip, "--data", folder / "rows", "--output", folder / "model"),
        *("--held-out", DATASET, "--epochs", 1, "--batch-size", 16, "--warmup-steps", 0),
    )
    assert done.code == 0, done
    return folder / "model"


@pytest.fixture
def there(stand_in, client, tuned):  # noqa: F811
    """The repository, as a publication leaves it."""
    stand_in.repositories.pop(("models", TUNED), None)
    done = client("publish", "model", tuned, TUNED)
    assert done.code == 0, done
    return stand_in.repositories["models", TUNED]


def test_a_published_model_has_by_its_id_the_figures_of_its_record(client, there, tuned, tmp_path):  # noqa: F811
    done = client("evaluate", TUNED, "--dataset", DATASET, "--output", tmp_path / "result")
    assert done.code == 0, done
    result = EvaluationResult.load(tmp_path / "result")
    macro = result.metrics["as_published"]["replace"]["macro"]
    recorded = read_record(tuned)["after"]
    assert recorded == {f"eval_replace_{name}": macro[name] for name in FIGURES}
    assert result.signature["model"]["revision"] == there.refs["main"]
    # Now that others can load both, the same figures go onto the page with all that they rest on.
    before = our_metrics(there)
    assert before == {name: round(macro[name], 4) for name in FIGURES}
    assert client("publish", "results", tmp_path / "result", TUNED, "--no-create-pr").code == 0
    assert our_metrics(there) == before
    assert sum(path.startswith(".eval_results/") for path in there.files) == 3


FIGURES = ("original_accuracy", "augmented_accuracy", "brittleness")


def our_metrics(repository) -> dict[str, float]:
    """The figures of the whole dataset on the card, in its one entry."""
    data = yaml.safe_load(repository.files["README.md"].decode().split("---")[1])
    [index] = data["model-index"]
    assert index["name"] == "tuned"
    [entry] = index["results"]
    assert entry["dataset"]["type"] == DATASET
    names = {metric["type"]: metric["name"] for metric in entry["metrics"]}
    assert names["brittleness"].startswith("Brittleness (lower is better), ")
    found = [m for m in entry["metrics"] if m["args"]["view"] == "as_published"]
    return {metric["type"]: metric["value"] for metric in found}


def test_one_commit_holds_what_the_run_left_and_nothing_else(stand_in, client, there, tuned):  # noqa: F811
    assert len(there.commits) == 2  # the first is the Hub's own
    left = {path.name: path.read_bytes() for path in tuned.iterdir()}
    assert set(there.files) - {".gitattributes"} == set(left)
    assert all(there.files[name] == left[name] for name in left if name != "README.md")
    assert there.files["README.md"].endswith(left["README.md"].split(b"---", 2)[2])

    stand_in.requests.clear()
    done = client("publish", "model", tuned, TUNED)
    assert done.out.startswith("Nothing to change: "), done
    assert len(there.commits) == 2
    assert not [request for request in stand_in.requests if request.startswith("PUT")]


def test_a_dry_run_tells_what_would_go_up_and_makes_nothing(stand_in, client, tuned):  # noqa: F811
    done = client("publish", "model", tuned, "org/nothing-yet", "--dry-run")
    assert done.code == 0, done
    assert ("models", "org/nothing-yet") not in stand_in.repositories
    planned = {line.split()[-1]: line.split()[0] for line in done.out.splitlines()}
    assert planned == dict.fromkeys([path.name for path in tuned.iterdir()], "new")
    size = (tuned / "model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in done.out


def test_what_others_wrote_on_the_card_stays(client, there, tuned):  # noqa: F811
    card = there.files["README.md"].replace(b"# tiny", b"Licence: ask us.\n\n# tiny")
    assert card != there.files["README.md"]
    there.commit("main", "By hand", {**there.files, "README.md": card, "notes.md": b"ours"})
    assert client("publish", "model", tuned, TUNED).out.startswith("Nothing to change")
    assert there.files["README.md"] == card and there.files["notes.md"] == b"ours"


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_another_model_is_never_written_over(stand_in, client, tuned, name):  # noqa: F811
    theirs = {name: b"something of theirs"}
    repository = stand_in.add("models", "org/theirs", theirs)
    done = client("publish", "model", tuned, "org/theirs")
    assert done.code == 1
    assert f"Expected org/theirs to be new or to hold this model, got another {name}" in done.err
    assert repository.files == theirs and len(repository.commits) == 1

    done = client("publish", "model", tuned, "org/theirs", "--create-pr", HF_TOKEN=READER)
    assert done.code == 0, done
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[0] for line in lines if line[-1] == name] == ["changed"]
    assert repository.files == theirs
    assert "model.safetensors" in repository.at("refs/pr/1").files


@pytest.mark.parametrize("damage", ["other bytes", "no such file"])
def test_a_model_that_is_not_the_one_of_the_record_is_refused(client, tuned, tmp_path, damage):  # noqa: F811
    folder = shutil.copytree(tuned, tmp_path / "model")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink() if damage == "no such file" else weights.write_bytes(content)
    done = client("publish", "model", folder, "org/damaged")
    assert done.code == 1
    assert f"model.safetensors to be as finetune left it, got {damage}: the figures" in done.err


def test_a_folder_of_no_finished_run_is_refused(client, tuned, tiny_clip, tmp_path):  # noqa: F811
    done = client("publish", "model", tiny_clip, "org/tiny")
    assert done.code == 1 and f"to hold a tuned model, got no {RECORD}" in done.err
    folder = shutil.copytree(tuned, tmp_path / "model")
    (folder / "README.md").unlink()
    done = client("publish", "model", folder, "org/tiny")
    assert done.code == 1 and "got a run that has not ended. Start it again" in done.err
    (folder / "README.md").symlink_to("/etc/hostname")
    done = client("publish", "model", folder, "org/tiny")
    assert done.code == 1 and "README.md to be a file of its own, got a link" in done.err
    record = read_record(tuned)
    del record["files"]
    write_record(folder, record)
    done = client("publish", "model", folder, "org/tiny")
    assert done.code == 1 and "a hash of each file, got one of an earlier version" in done.err


def test_figures_of_rows_that_were_trained_on_do_not_go_onto_the_page(
    stand_in,  # noqa: F811
    client,  # noqa: F811
    tuned,
    tmp_path,
):
    folder = shutil.copytree(tuned, tmp_path / "model")
    record = read_record(folder)
    record["overlap"]["replace"]["num_same_picture"] = 1
    write_record(folder, record)
    assert client("publish", "model", folder, "org/memorised").code == 0
    assert b"model-index" not in stand_in.repositories["models", "org/memorised"].files["README.md"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_commit_of_a_model_can_be_repeated(stand_in, client, tuned, fault):  # noqa: F811
    name = f"org/model-fault-{fault}"
    repository = published_after(fault, "model", tuned, name, stand_in, client)
    record = json.loads(repository.files[RECORD])
    assert {*record["files"], RECORD, "README.md"} <= set(repository.files)
