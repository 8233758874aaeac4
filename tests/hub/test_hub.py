"""Publishing, over real HTTP: a Hub on loopback, and clients in processes of their own."""

import base64
import dataclasses
import difflib
import doctest
import importlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from huggingface_hub import DatasetCard, SpaceCard, parse_eval_result_entries
from PIL import Image
from stand_in_hub import READER, WRITER, StandInHub

from hard_positives import EvaluationResult, publish_dataset, publish_metric, publish_results
from hard_positives.hub.cards import merge_results
from hard_positives.hub.metric import METRIC_FILES, METRIC_NAME
from hard_positives.hub.repository import HubError
from hard_positives.hub.results import _eval_results
from hard_positives.results import files as result_files
from hard_positives_dataset.content import content_of

DATASET, MODEL, METRIC = "org/hard-positives", "org/tiny-clip", "org/hard_positive_metric"
CARD = b"""---\r
# who made this\r
license:   mit
tags: [clip,  'vision']\r
model-index:\r
- name: Tiny\r
  results:\r
  - task: {type: image-classification}\r
    dataset: {type: "cifar10", name: CIFAR-10, split: test}  # theirs\r
    metrics:\r
      - {type: accuracy, value: 0.9130}\r
thumbnail: "https://example.org/a.png"\r
---\r
# Tiny CLIP\r
\r
A line with blanks at its end.   \r
---\r
"""
# What the child does: the command line again and again, with libraries imported once.
CLIENT = """
import json, os, sys
protocol = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
from typer.testing import CliRunner
from hard_positives.cli import app
for line in sys.stdin:
    wish = json.loads(line)
    result = CliRunner().invoke(app, wish["arguments"], env=wish["env"])
    crash = result.exception if not isinstance(result.exception, SystemExit) else None
    answer = {"code": result.exit_code, "out": result.stdout, "err": result.stderr}
    print(json.dumps({**answer, "crash": repr(crash)}), file=protocol)
"""


@dataclasses.dataclass
class Done:
    code: int
    out: str
    err: str
    crash: str


class Client:
    """The command line in a process that knows one Hub."""

    def __init__(self, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, *arguments: object, **env: str) -> Done:
        wish = {"arguments": [str(argument) for argument in arguments], "env": env}
        print(json.dumps(wish), file=self.process.stdin, flush=True)
        return Done(**json.loads(self.process.stdout.readline()))


def environment_for(url: str, cache: Path, **changes: str) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()
    }
    own = {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITER}
    return {**kept, **own, "COLUMNS": "200", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **changes}


@pytest.fixture(scope="module")
def stand_in():
    with StandInHub() as server:
        yield server


@pytest.fixture(scope="module")
def client(stand_in, tmp_path_factory):
    client = Client(environment_for(stand_in.url, tmp_path_factory.mktemp("cache")))
    yield client
    client.process.stdin.close()
    client.process.wait()


@pytest.fixture(autouse=True)
def clean(stand_in):
    stand_in.faults.clear()
    stand_in.requests.clear()


def run_python(code: str, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Published annotations in small, and six photographs of noise."""
    folder = tmp_path_factory.mktemp("published")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for image in range(6):
        noise = random.integers(0, 256, (90, 120 + image, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{image}.jpg", quality=95)
    categories = {
        "attributes": [("white cat {}", "ivory cat {}", "black cat {}")] * 18,
        "relations": [("cat {} on top of a mat", "cat {} on a mat", "cat {} under a mat")] * 12,
    }
    for name, captions in categories.items():
        rows = [
            (f"{row % 6}", *(caption.format(row) for caption in triple))
            for row, triple in enumerate(captions)
        ]
        for kind, column in (("original", 1), ("hard_positive", 2)):
            (folder / kind).mkdir(exist_ok=True)
            entries = [
                {
                    "image_id": row[0],
                    "image_path": f"data/VG_100K/{row[0]}.jpg",
                    "true_caption": row[column],
                    "false_caption": row[3],
                }
                for row in rows
            ]
            (folder / kind / f"vl_checklist_{name}.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def built(client, sources, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "REPLACE"
    options = ["--annotations", sources, "--images", sources / "images", "--split", "replace"]
    done = client("build", folder, *options)
    assert done.code == 0, done
    return folder


@pytest.fixture(scope="module")
def published(stand_in, client, built):
    done = client("publish", "dataset", built, DATASET)
    assert done.code == 0, done
    return stand_in.repositories["datasets", DATASET]


@pytest.fixture(scope="module")
def model_files(tiny_clip) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny_clip.iterdir()} | {"README.md": CARD}


@pytest.fixture
def model(stand_in, model_files):
    """The model's repository as it was before anything was published."""
    return stand_in.add("models", MODEL, model_files)


@pytest.fixture(scope="module")
def results(stand_in, client, published, model_files, tmp_path_factory) -> Path:
    stand_in.add("models", MODEL, model_files)
    folder = tmp_path_factory.mktemp("results")
    done = client("evaluate", MODEL, "--dataset", DATASET, "--output", folder)
    assert done.code == 0, done
    return folder


# The dataset


@pytest.mark.slow
def test_the_published_dataset_loads_by_its_id_with_nothing_of_ours(
    stand_in, published, built, tmp_path
):
    code = f"""
import json, sys
for ours in ("hard_positives", "hard_positives_dataset", "hard_positive_metric"):
    sys.modules[ours] = None  # importing it fails, as where it is not installed
import datasets
rows = datasets.load_dataset("{DATASET}", split="replace")
live = datasets.load_dataset("{DATASET}", split="replace", streaming=True)
assert [row["id"] for row in live] == list(rows["id"])
assert datasets.get_dataset_config_names("{DATASET}") == ["default"]
assert datasets.get_dataset_split_names("{DATASET}") == ["replace"]
builder = datasets.load_dataset_builder("{DATASET}")
assert builder.info.splits["replace"].num_examples == len(rows)
assert builder.info.features == rows.features
print(json.dumps([len(rows), rows[0]["image"].size, rows.column_names, rows[0]["caption"]]))
"""
    output = run_python(code, environment_for(stand_in.url, tmp_path), tmp_path)
    num_rows, size, columns, caption = json.loads(output.splitlines()[-1])
    assert (num_rows, size, caption) == (30, [120, 90], "white cat 0")
    assert columns[:5] == ["id", "image", "caption", "hard_positive", "hard_negative"]
    assert any(request.startswith("GET /datasets/") for request in stand_in.requests)


def test_a_folder_passes_what_datasets_asks_of_a_repository(built, tmp_path):
    for folder, splits in {built: ["replace"], ROOT / "hard_positives_dataset": None}.items():
        path, cache = str(folder), str(tmp_path / folder.name)
        [config] = datasets.get_dataset_config_names(path)
        names = datasets.get_dataset_split_names(path, config)
        assert names == (splits or ["replace", "swap"])
        builder = datasets.load_dataset_builder(path, cache_dir=cache)
        rows = datasets.load_dataset(path, cache_dir=cache)
        live = datasets.load_dataset(path, streaming=True)
        for name in names:
            assert rows[name].features == builder.info.features == live[name].features
            assert rows[name].num_rows == builder.info.splits[name].num_examples
            assert next(iter(live[name])) == rows[name][0]


def test_the_published_parquet_is_hardly_larger_than_the_distinct_images(published, sources):
    images = sum(path.stat().st_size for path in (sources / "images").iterdir())
    parquet = sum(len(data) for path, data in published.files.items() if path.endswith(".parquet"))
    assert images < parquet < 1.1 * images


def test_the_card_of_the_dataset_is_complete(published, built):
    card = DatasetCard(published.files["README.md"].decode())
    data = card.data.to_dict()
    assert data["license"] == "other"
    assert data["license_name"]
    assert data["task_categories"] == ["zero-shot-image-classification"]
    assert data["language"] == ["en"]
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"][0]["data_files"] == [
        {"split": "replace", "path": "data/replace-*.parquet"}
    ]
    names = [feature["name"] for feature in data["dataset_info"]["features"]]
    assert names[:3] == ["id", "image", "caption"]
    [split] = data["dataset_info"]["splits"]
    assert (split["name"], split["num_examples"]) == ("replace", 30)
    [stated] = data["hard_positives"]["content_sha256"].values()
    assert stated == content_of(datasets.load_dataset(str(built), split="replace"))
    assert "CC BY 4.0" in card.text
    assert "@inproceedings{kamath2024hard" in card.text
    assert "](examples.png)" in card.text
    assert f'rows = load_dataset("{DATASET}", split="replace")' in card.text
    picture = Image.open(io.BytesIO(published.files["examples.png"]))
    assert picture.width > 900  # four examples


def test_a_second_publication_of_the_dataset_changes_nothing(stand_in, client, built, published):
    commits, before = len(published.commits), dict(published.files)
    done = client("publish", "dataset", built, DATASET)
    assert done.code == 0
    address = f"{stand_in.url}/datasets/{DATASET}/commit/{published.refs['main']}"
    assert done.out.splitlines()[0] == f"Nothing to change: {address}"
    assert (len(published.commits), published.files) == (commits, before)
    assert not [request for request in stand_in.requests if request.startswith("PUT")]


def test_parquet_files_that_the_folder_lacks_leave_the_repository(stand_in, client, built):
    repository = stand_in.add(
        "datasets",
        "org/older",
        {"data/replace-00001-of-00002.parquet": b"", "data/notes.txt": b"", "LICENSE": b""},
    )
    assert client("publish", "dataset", built, "org/older").code == 0
    assert set(repository.files) == {
        *("README.md", "eval.yaml", "examples.png", "data/replace-00000-of-00001.parquet"),
        *("data/notes.txt", "LICENSE"),
    }
    assert len(repository.commits) == 2


def test_private_means_private_or_nothing_is_sent(stand_in, client, built):
    assert client("publish", "dataset", built, "org/secret", "--private").code == 0
    assert stand_in.repositories["datasets", "org/secret"].private
    public = stand_in.add("datasets", "org/public", {})
    done = client("publish", "dataset", built, "org/public", "--private")
    assert done.code == 1
    assert "Expected org/public to be private, got a public repository" in done.err
    assert len(public.commits) == 1


def test_an_eval_yaml_names_the_tasks_that_results_name(
    stand_in, client, built, published, results
):
    benchmark = yaml.safe_load(published.files["eval.yaml"])
    assert benchmark["evaluation_framework"] == "mteb"
    ids = [task.pop("id") for task in benchmark["tasks"]]
    assert benchmark["tasks"] == [{"config": "default", "split": "replace"}] * 3
    files = _eval_results(EvaluationResult.load(results))
    assert ids == [yaml.safe_load(content)[0]["dataset"]["task_id"] for content in files.values()]
    assert [name.endswith("_lower_is_better") for name in ids] == [False, False, True]
    notes = [yaml.safe_load(content)[0]["notes"] for content in files.values()]
    assert [note.split(" is better; ")[0] for note in notes] == ["higher", "higher", "lower"]


def test_what_the_hub_makes_of_an_eval_yaml_is_told(stand_in, client, built):
    options = ("publish", "dataset", built, "org/benchmark", "--evaluation-framework")
    done = client(*options, "none")
    assert done.code == 0 and "eval.yaml" not in done.out
    files = stand_in.repositories["datasets", "org/benchmark"].files
    assert "eval.yaml" not in files
    message = "eval.yaml: evaluation_framework must be one of mteb, inspect-ai"
    stand_in.fail("POST", ".*/benchmark/commit/main", 400, message=message)
    done = client(*options, "ours")
    assert done.code == 1
    assert f"got 400 ({message}). Repair what it names; of eval.yaml, choose another" in done.err
    done = client(*options, "mteb")
    assert "eval.yaml names mteb." in done.out and "the lowest is best" in done.out
    files = stand_in.repositories["datasets", "org/benchmark"].files
    assert yaml.safe_load(files["eval.yaml"])["evaluation_framework"] == "mteb"


ASKED = "org/asked"


@pytest.fixture(scope="module")
def asked(stand_in, client, built):
    done = client("publish", "dataset", built, ASKED, "--evaluation-framework", "inspect-ai")
    assert done.code == 0, done
    return stand_in.repositories["datasets", ASKED]


def test_questions_for_inspect_ai_are_a_config_beside_the_rows(stand_in, client, asked, built):
    [task] = yaml.safe_load(asked.files["eval.yaml"])["tasks"]
    assert (task["id"], task["config"], task["split"]) == ("replace_yes_no", "yes_no", "replace")
    default, questions = DatasetCard(asked.files["README.md"].decode()).data.configs
    assert (default["config_name"], questions["config_name"]) == ("default", "yes_no")
    [name] = [path for path in asked.files if path.startswith("yes_no/")]
    table = pq.read_table(io.BytesIO(asked.files[name]))
    rows = datasets.load_dataset(str(built), split="replace").cast_column(
        "image", datasets.Image(decode=False)
    )
    kinds = ("caption", "hard_positive", "hard_negative")
    expected = [
        (
            row["id"],
            kind,
            f'"{row[kind]}"',
            "No" if kind == "hard_negative" else "Yes",
            row["image"],
        )
        for row in rows
        for kind in kinds
    ]
    assert len(table) == len(expected) == 90
    for found, (row, kind, quoted, answer, image) in zip(table.to_pylist(), expected, strict=True):
        assert (found["row"], found["kind"], found["answer"]) == (row, kind, answer)
        assert quoted in found["question"]
        encoded = found["image"].removeprefix("data:image/jpeg;base64,")
        assert base64.b64decode(encoded, validate=True) == image["bytes"]
    sizes = [len(asked.files[path]) for path in (name, "data/replace-00000-of-00001.parquet")]
    assert sizes[0] < 1.5 * sizes[1]  # each image once
    assert client("publish", "dataset", built, ASKED, "--evaluation-framework", "none").code == 0
    assert not [path for path in asked.files if path.startswith("yes_no/")]
    options = ("--evaluation-framework", "inspect-ai")
    assert client("publish", "dataset", built, ASKED, *options).code == 0
    assert name in asked.files


@pytest.mark.slow
def test_both_configs_load_by_the_id_of_the_dataset(stand_in, asked, tmp_path):
    code = f"""
import datasets
assert datasets.get_dataset_config_names("{ASKED}") == ["default", "yes_no"]
print(len(datasets.load_dataset("{ASKED}", split="replace")))
print(len(datasets.load_dataset("{ASKED}", "yes_no", split="replace")))
"""
    output = run_python(code, environment_for(stand_in.url, tmp_path), tmp_path)
    assert output.split() == ["30", "90"]


# Says yes where a tiny CLIP's logit is above that of a row in the middle.
ANSWERING = """
import base64, io, re
import inspect_ai
import numpy as np
from datasets import load_dataset
from inspect_ai.model import ModelAPI, ModelOutput, modelapi
from PIL import Image
from hard_positives import score

rows = load_dataset("{name}", split="replace")
logits = score("{model}", rows, cache=False, progress=False)
middle = float(np.median(logits))
known = {{}}
for row, of_row in zip(rows, logits):
    for kind, logit in zip(("caption", "hard_positive", "hard_negative"), of_row):
        known[row["image"].tobytes(), row[kind]] = logit > middle

@modelapi(name="tiny")
class Tiny(ModelAPI):
    async def generate(self, input, tools, tool_choice, config):
        text, image = input[-1].content
        picture = Image.open(io.BytesIO(base64.b64decode(image.image.split(",")[1])))
        caption = re.search('"(.*)"', text.text)[1]
        yes = known[picture.tobytes(), caption]
        return ModelOutput.from_content("tiny", "Yes, it does." if yes else "no")

task, options = "hf/{name}/replace_yes_no", {{"display": "none", "log_dir": "logs"}}
[log] = inspect_ai.eval(task, model="tiny/clip", **options)
assert log.status == "success", log.error
[score_of] = log.results.scores
right = (logits > middle) == np.array([True, True, False])
print(len(log.samples), score_of.metrics["accuracy"].value, right.mean())
"""


@pytest.mark.slow
def test_inspect_ai_asks_a_tiny_model_and_counts_its_answers(stand_in, asked, tiny_clip, tmp_path):
    pytest.importorskip("inspect_ai", reason="needs inspect-ai")
    code = ANSWERING.format(name=ASKED, model=tiny_clip)
    output = run_python(code, environment_for(stand_in.url, tmp_path), tmp_path)
    number, accuracy, expected = output.splitlines()[-1].split()
    assert number == "90"
    assert float(accuracy) == pytest.approx(float(expected))
    assert 0.3 < float(expected) < 0.7


def test_a_pull_request_to_a_dataset_leaves_its_main_branch(stand_in, client, built):
    repository = stand_in.add("datasets", "org/theirs", {})
    for _ in range(2):
        done = client("publish", "dataset", built, "org/theirs", "--create-pr", HF_TOKEN=READER)
        assert done.code == 0, done
        assert "/discussions/1" in done.out
    assert repository.files == {}
    assert "README.md" in repository.at("refs/pr/1").files
    assert len(repository.pull_requests) == 1


@pytest.mark.slow
def test_an_upload_that_was_killed_goes_on_where_it_stopped(
    stand_in, built, tmp_path, tmp_path_factory
):
    environment = environment_for(stand_in.url, tmp_path)
    arguments = ["publish", "dataset", str(copied(built, tmp_path, seed=1)), "org/resumed"]
    command = [sys.executable, "-m", "hard_positives", *arguments]
    running = []
    stand_in.fail("POST", ".*/commit/main", lambda: running[0].send_signal(signal.SIGKILL))
    running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    running[0].communicate()
    assert running[0].returncode == -signal.SIGKILL
    repository = stand_in.repositories["datasets", "org/resumed"]
    assert len(repository.commits) == 1
    sent = [request for request in stand_in.requests if request.startswith("PUT")]
    assert len(sent) == 2  # the Parquet file and the picture

    stand_in.requests.clear()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert not [request for request in stand_in.requests if request.startswith("PUT")]
    assert "data/replace-00000-of-00001.parquet" in repository.files


def copied(folder: Path, target: Path, seed: int | str) -> Path:
    """The folder with other captions, so that its Parquet file is not on the Hub yet."""
    copy = target / "copy"
    (copy / "data").mkdir(parents=True)
    (copy / "README.md").write_bytes((folder / "README.md").read_bytes())
    for file in (folder / "data").iterdir():
        table = pq.read_table(file)
        captions = pa.array([f"{seed} {caption}" for caption in table["caption"].to_pylist()])
        place = table.column_names.index("caption")
        pq.write_table(table.set_column(place, "caption", captions), copy / "data" / file.name)
    return copy


def with_image(folder: Path, target: Path, image: dict) -> Path:
    """The folder with one image cell replaced."""
    copy = copied(folder, target, seed=2)
    [file] = (copy / "data").iterdir()
    table = pq.read_table(file)
    images = [*table["image"].to_pylist()[:-1], image]
    column = pa.array(images, table.schema.field("image").type)
    pq.write_table(table.set_column(table.column_names.index("image"), "image", column), file)
    return copy


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ({"bytes": None, "path": "/etc/passwd"}, "rows without bytes"),
        (
            {"bytes": b"root:x:0:0", "path": None},
            "a file that is no JPEG, PNG, WEBP, GIF or BMP image",
        ),
        ("a bomb", "an image of more than 67,108,864 pixels"),
        ("an image", "the path /home/someone/1.jpg"),
        (None, "rows without bytes"),
    ],
)
def test_nothing_but_bytes_of_images_is_ever_sent(built, tmp_path, image, problem):
    if image == "a bomb":
        buffer = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
    if image == "an image":
        [file] = (built / "data").iterdir()
        content = pq.read_table(file)["image"][0].as_py()["bytes"]
        image = {"bytes": content, "path": "/home/someone/1.jpg"}
    folder = with_image(built, tmp_path, image)
    with pytest.raises(ValueError, match=f"got {problem} in rows 0 to 29. Nothing was sent"):
        publish_dataset(folder, DATASET)


def test_links_out_of_the_folder_are_refused(built, tmp_path):
    folder = tmp_path / "linked"
    (folder / "data").mkdir(parents=True)
    [file] = (built / "data").iterdir()
    (folder / "README.md").write_bytes((built / "README.md").read_bytes())
    (folder / "data" / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="to be a file of its own, got a link to"):
        publish_dataset(folder, DATASET)


def test_a_card_without_a_licence_is_refused(built, tmp_path):
    folder = copied(built, tmp_path, seed=3)
    card = (folder / "README.md").read_text().replace("CC BY 4.0", "some terms")
    (folder / "README.md").write_text(card)
    with pytest.raises(ValueError, match="Expected the card to state a licence, got none"):
        publish_dataset(folder, DATASET)


def test_a_folder_that_was_not_built_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got no Parquet files\. Make it with"):
        publish_dataset(tmp_path, DATASET)


# The metric


@pytest.mark.slow
def test_the_published_metric_loads_by_its_id_with_nothing_of_ours(stand_in, client, tmp_path):
    assert client("publish", "metric", METRIC).code == 0
    space = stand_in.repositories["spaces", METRIC]
    assert {path: space.files[path] for path in METRIC_FILES} == {
        path: (ROOT / METRIC_NAME / path).read_bytes() for path in METRIC_FILES
    }
    code = f"""
import sys
for ours in ("hard_positives", "hard_positives_dataset", "hard_positive_metric"):
    sys.modules[ours] = None
import evaluate
print(evaluate.load("{METRIC}").compute(predictions=[[3.0, 2.0, 1.0]])["augmented_accuracy"])
"""
    output = run_python(code, environment_for(stand_in.url, tmp_path), tmp_path)
    assert output.splitlines()[-1] == "1.0"

    commits = len(space.commits)
    assert client("publish", "metric", METRIC).out.startswith("Nothing to change")
    assert len(space.commits) == commits


def test_the_metric_passes_what_evaluate_asks_of_every_module(monkeypatch):
    monkeypatch.chdir(ROOT)  # There the bare name in its examples is its folder.
    found = evaluate.loading.evaluation_module_factory(METRIC_NAME, module_type="metric")
    module = importlib.import_module(found.module_path)
    metric = evaluate.loading.import_main_class(module.__name__)
    parameters = inspect.signature(metric._compute).parameters
    names = ["self", "predictions", "references", "groups", "clusters", "sets", "headline"]
    assert list(parameters) == names
    assert all(p.kind != p.VAR_KEYWORD for p in parameters.values())
    documented = evaluate.load(METRIC_NAME).inputs_description
    assert all(f"\n    {name}: " in documented for name in [*parameters][1:])
    examples = doctest.testmod(module, raise_on_error=True)
    assert examples.failed == 0
    assert examples.attempted > 1
    card = (ROOT / METRIC_NAME / "README.md").read_text()
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", card, flags=re.S), re.M)
    assert headings == [
        *("Metric Card for Hard Positive Metric", "Metric Description", "How to Use", "Inputs"),
        *("Output Values", "Values from Popular Papers", "Examples", "Limitations and Bias"),
        *("Citation", "Further References"),
    ]


def test_the_card_of_the_metric_is_a_spaces(stand_in, client):
    assert client("publish", "metric", METRIC).code == 0
    card = SpaceCard(stand_in.repositories["spaces", METRIC].files["README.md"].decode())
    assert card.data.sdk == "gradio"
    assert card.data.app_file == "app.py"
    assert {"evaluate", "metric"} <= set(card.data.tags)


def test_a_metric_of_another_name_is_refused_since_evaluate_could_not_load_it():
    with pytest.raises(ValueError, match="Expected the Space to be called hard_positive_metric"):
        publish_metric("org/metric")


# Reading back


def test_the_signature_holds_the_commits_of_model_and_dataset(results, stand_in):
    signature = EvaluationResult.load(results).signature
    assert signature["model"]["id"] == MODEL
    assert signature["model"]["revision"] == stand_in.repositories["models", MODEL].refs["main"]
    assert signature["dataset"]["id"] == DATASET
    repository = stand_in.repositories["datasets", DATASET]
    assert signature["dataset"]["revision"] == repository.refs["main"]


def test_revisions_choose_commits_of_model_and_dataset(
    stand_in, client, model, published, built, tmp_path
):
    old_model, old_data = model.refs["main"], published.refs["main"]
    model.commit("main", "Cannot be loaded", {**model.files, "config.json": b"{}"})
    model.refs["v1"] = old_model
    dataset = stand_in.add("datasets", "org/two-versions", published.files)
    first = dataset.refs["main"]
    assert client("publish", "dataset", copied(built, tmp_path, 4), "org/two-versions").code == 0
    assert dataset.refs["main"] != first
    common = ("evaluate", MODEL, "--dataset", "org/two-versions", "--revision", "v1")
    done = client(*common, "--dataset-revision", first, "--output", tmp_path / "old")
    assert done.code == 0, done
    signature = EvaluationResult.load(tmp_path / "old").signature
    assert (signature["model"]["revision"], signature["dataset"]["revision"]) == (old_model, first)
    assert old_data in published.commits

    done = client(*common, "--dataset-revision", "v9")
    assert done.code == 1
    assert "Revision 'v9' doesn't exist for dataset 'org/two-versions'" in done.err


def test_a_page_has_captions_and_pictures_of_the_commit_that_was_scored(
    stand_in, client, model, published, built, tmp_path
):
    dataset = stand_in.add("datasets", "org/corrected", published.files)
    scored = dataset.refs["main"]
    options = ("--dataset", "org/corrected", "--output", tmp_path / "result")
    assert client("evaluate", MODEL, *options).code == 0
    before = client("report", tmp_path / "result", "--output", tmp_path / "before")
    assert (before.code, before.err) == (0, "")
    assert (
        client("publish", "dataset", with_other_pictures(built, tmp_path), "org/corrected").code
        == 0
    )
    assert dataset.refs["main"] != scored
    for given in ([], ["--dataset", "org/corrected"]):
        done = client("report", tmp_path / "result", "--output", tmp_path / "after", *given)
        assert (done.code, done.err) == (0, "")
        pages = [(tmp_path / name / "index.html").read_text() for name in ("before", "after")]
        assert pages[0] == pages[1]
        gallery = pages[1].partition('id="gallery"')[2]
        assert gallery.count("<img ") == 30 and "corrected white" not in pages[1]


def with_other_pictures(folder: Path, target: Path) -> Path:
    """The folder with every caption and every image corrected."""
    copy = copied(folder, target, seed="corrected")
    [file] = (copy / "data").iterdir()
    table = pq.read_table(file)
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), "red").save(buffer, "PNG")
    images = [{"bytes": buffer.getvalue(), "path": None}] * len(table)
    column = pa.array(images, table.schema.field("image").type)
    pq.write_table(table.set_column(table.column_names.index("image"), "image", column), file)
    return copy


@pytest.mark.parametrize("name", ["REPLACE", "data/REPLACE"])
def test_a_folder_that_is_not_here_is_not_looked_for_on_the_hub(
    stand_in, client, model, results, tmp_path, name
):
    folder = edited(results, tmp_path / "result", "dataset", id=name, revision=None)
    done = client("report", folder, "--output", tmp_path / "page")
    assert done.code == 0
    assert done.err == (
        f"Warning: The report lacks pictures: {name} is not here. Give the dataset to see pictures "
        "(--dataset).\n"
    )
    assert stand_in.requests == []
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "white cat 0" in re.sub(r"</?mark>", "", page)  # the words that an edit changed
    assert "<img " not in page


def test_a_dataset_revision_of_a_folder_is_an_error(client, built):
    done = client("evaluate", MODEL, "--dataset", built, "--dataset-revision", "main")
    assert done.code == 1
    assert "Expected dataset_revision to be left out for data that is here" in done.err


@pytest.mark.slow
def test_offline_mode_repeats_the_result_from_the_caches(stand_in, model, published, tmp_path):
    outputs = []
    for offline in ("0", "1"):
        outputs.append(tmp_path / f"offline{offline}")
        environment = environment_for(stand_in.url, tmp_path / "cache", HF_HUB_OFFLINE=offline)
        stand_in.requests.clear()
        options = ["--dataset", DATASET, "--output", str(outputs[-1])]
        command = [sys.executable, "-m", "hard_positives", "evaluate", MODEL, *options]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    command += ["--dataset-revision", "v1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert f"Expected {DATASET} to have the revision 'v1' within reach, got only" in done.stderr
    assert stand_in.requests == []
    online, offline = (EvaluationResult.load(output) for output in outputs)
    assert online.signature == offline.signature
    assert online.signature["dataset"]["revision"] == published.refs["main"]
    assert online.scores.equals(offline.scores)


@pytest.mark.slow
def test_a_proxy_of_the_environment_is_used(stand_in, tmp_path):
    changes = {"HTTP_PROXY": stand_in.url, "http_proxy": stand_in.url}
    environment = environment_for("http://hub.invalid", tmp_path, **changes)
    command = [sys.executable, "-m", "hard_positives", "publish", "metric", METRIC]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert any("http://hub.invalid/api/" in request for request in stand_in.requests)
    assert "app.py" in stand_in.repositories["spaces", METRIC].files


# Results


def entries(files: dict[str, bytes]) -> list:
    found = [path for path in files if path.startswith(".eval_results/")]
    return parse_eval_result_entries([e for path in found for e in yaml.safe_load(files[path])])


def our_results(card: bytes) -> list[dict]:
    data = yaml.safe_load(card.decode().split("---")[1])
    [index] = data["model-index"]
    return [result for result in index["results"] if result["dataset"]["type"] == DATASET]


def assert_one_complete_entry(files: dict[str, bytes]) -> None:
    assert sorted(entry.task_id for entry in entries(files)) == [
        *("replace_augmented_accuracy", "replace_brittleness_lower_is_better"),
        "replace_original_accuracy",
    ]
    [result] = our_results(files["README.md"])
    assert len(result["metrics"]) == 6  # three figures, as published and clean
    assert without_additions(CARD, files["README.md"]) == CARD


def without_additions(old: bytes, new: bytes) -> bytes:
    """What is left of `new` without the one run of bytes that was put into `old`."""
    matcher = difflib.SequenceMatcher(None, old.splitlines(True), new.splitlines(True), False)
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    assert [code[0] for code in changes] == ["insert"]
    lines = new.splitlines(True)
    return b"".join(lines[: changes[0][3]] + lines[changes[0][4] :])


def test_results_are_a_pull_request_unless_told_otherwise(stand_in, client, model, results):
    done = client("publish", "results", results, MODEL)
    assert done.code == 0, done
    assert done.out == f"Published: {stand_in.url}/{MODEL}/discussions/1\n"
    assert model.files["README.md"] == CARD
    assert_one_complete_entry(model.at("refs/pr/1").files)


def test_published_results_are_read_back_with_huggingface_hub(
    stand_in, client, model, results, tmp_path
):
    assert client("publish", "results", results, MODEL, "--no-create-pr").code == 0
    code = f"""
import json, yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download, parse_eval_result_entries
card = ModelCard.load("{MODEL}")
ours = [r for r in card.data.eval_results if r.dataset_type == "{DATASET}"]
paths = [p for p in HfApi().list_repo_files("{MODEL}") if p.startswith(".eval_results/")]
entries = parse_eval_result_entries(
    [e for p in paths for e in yaml.safe_load(open(hf_hub_download("{MODEL}", p)))])
print(json.dumps(
    [len(card.data.eval_results), [vars(r) for r in ours], [vars(e) for e in entries]]))
"""
    output = run_python(code, environment_for(stand_in.url, tmp_path), tmp_path)
    num_results, ours, found = json.loads(output.splitlines()[-1])
    assert num_results == 7  # with the one of others
    result = EvaluationResult.load(results)
    for view, title in (("as_published", "as published"), ("clean", "rows without flaws")):
        figures = result.metrics[view]["replace"]["macro"]
        read = {r["metric_type"]: r["metric_value"] for r in ours if title in r["metric_name"]}
        assert read == {name: round(figures[name], 4) for name in read}
        assert len(read) == 3
    figures = result.metrics["as_published"]["replace"]["macro"]
    assert {e["task_id"].removesuffix("_lower_is_better"): e["value"] for e in found} == {
        f"replace_{name}": round(figures[name], 4)
        for name in ("original_accuracy", "augmented_accuracy", "brittleness")
    }
    for entry in found:
        assert entry["dataset_id"] == DATASET
        assert entry["dataset_revision"] == result.signature["dataset"]["revision"]
        assert result.signature["model"]["revision"] in entry["notes"]
        assert "mean over attribute and relation, 30 rows" in entry["notes"]


def test_ten_publications_leave_one_entry(client, model, results):
    outputs = [client("publish", "results", results, MODEL, "--no-create-pr") for _ in range(10)]
    assert [done.code for done in outputs] == [0] * 10
    assert [done.out.split(":")[0] for done in outputs] == ["Published"] + ["Nothing to change"] * 9
    assert len(model.commits) == 2
    assert_one_complete_entry(model.files)


def test_new_figures_replace_the_old_ones_also_in_an_open_pull_request(
    client, model, results, tmp_path
):
    assert client("publish", "results", results, MODEL).code == 0
    saved = EvaluationResult.load(results)
    tied = pa.array([[0.0, 0.0, 0.0]] * len(saved.scores), saved.scores["logits"].type)
    place = saved.scores.column_names.index("logits")
    scores = saved.scores.set_column(place, "logits", tied)
    dataclasses.replace(saved, scores=scores).save(tmp_path)
    done = client("publish", "results", tmp_path, MODEL)
    assert done.out.startswith("Published"), done
    [request] = model.pull_requests
    files = model.at(request.ref).files
    assert_one_complete_entry(files)
    assert {entry.value for entry in entries(files)} == {0.0}


def test_notes_say_where_no_interval_can_be_had(results):
    result = EvaluationResult.load(results)
    macro = result.metrics["as_published"]["replace"]["macro"]
    macro |= {key: None for key in macro if "_ci_" in key}
    for content in _eval_results(result).values():
        notes = yaml.safe_load(content)[0]["notes"]
        assert "30 rows, too few images for an interval, " in notes
        assert "None" not in content.decode()


def test_a_dry_run_prints_the_difference_and_sends_nothing(stand_in, client, model, results):
    done = client("publish", "results", results, MODEL, "--dry-run", HF_TOKEN="")
    assert done.code == 0, done
    assert not [request for request in stand_in.requests if request.startswith("POST")]
    assert len(model.commits) == 1
    added = [line for line in done.out.splitlines() if line.startswith("+")]
    removed = [line for line in done.out.splitlines() if line.startswith("-")]
    assert "+- dataset:" in added
    assert removed == ["--- a/README.md"] + ["--- /dev/null"] * 3


def test_a_model_without_a_card_gets_one(stand_in, client, model_files, results):
    files = {path: content for path, content in model_files.items() if path != "README.md"}
    repository = stand_in.add("models", MODEL, files)
    assert client("publish", "results", results, MODEL, "--no-create-pr").code == 0
    assert len(our_results(repository.files["README.md"])) == 1


def edited(results: Path, folder: Path, part: str, **changes: object) -> Path:
    saved = EvaluationResult.load(results)
    changed = {**saved.signature, part: {**saved.signature[part], **changes}}
    return dataclasses.replace(saved, signature=changed).save(folder)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("model", {"id": "shapes_clip"}, "got the built-in model shapes_clip"),
        ("dataset", {"id": "shapes"}, "got the built-in dataset shapes"),
        ("dataset", {"revision": None}, r"to be complete, got no dataset.revision\."),
        ("model", {"revision": None}, r"to be complete, got no model.revision\."),
        ("processor", {"sha256": None}, r"to be complete, got no processor.sha256\."),
        ("model", {"id": "org/other"}, f"Expected results of {MODEL}, got results of org/other"),
    ],
)
def test_results_that_others_could_not_check_are_refused(results, tmp_path, part, changes, message):
    folder = edited(results, tmp_path, part, **changes)
    with pytest.raises(ValueError, match=message) as error:
        publish_results(folder, MODEL)
    assert f"Run hard-positives evaluate {MODEL} --dataset" in str(error.value)


def resealed(folder: Path, edit) -> None:
    """Edit `results.json`, and renew the hash that it states of itself."""
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    edit(record)
    (folder / "results.json").write_text(result_files._sealed(record), encoding="utf-8")


@pytest.mark.parametrize("part", ["weights_sha256", "tie_rule", "num_rows", "original_accuracy"])
def test_an_edited_result_is_not_published(client, stand_in, model, results, tmp_path, part):
    folder = shutil.copytree(results, tmp_path / "edited")
    text = (folder / "results.json").read_text(encoding="utf-8")
    found = re.search(rf'"{part}": .*?(\w)"?,?\n', text)
    new = "1" if found[1] != "1" else "2"
    edited_text = text[: found.start(1)] + new + text[found.end(1) :]
    (folder / "results.json").write_text(edited_text, encoding="utf-8")
    done = client("publish", "results", folder, MODEL, "--no-create-pr")
    assert done.code == 1 and done.out == "" and done.crash == "None"
    assert "results.json to be as it was saved, got it edited or damaged" in done.err
    assert len(model.commits) == 1


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("dataset", "content_sha256"), "0" * 64),
        (("dataset", "splits"), {"replace": {"num_rows": 31, "num_clean_rows": 30}}),
        (("num_distinct_images",), 7),
        (("num_distinct_captions",), 91),
        (("views",), ["as_published"]),
        (("tie_rule",), "a tie is right"),
    ],
)
def test_a_signature_of_other_rows_is_not_published_even_with_its_hash_renewed(
    model, results, tmp_path, keys, value
):
    folder = shutil.copytree(results, tmp_path / "edited")

    def edit(record: dict) -> None:
        part = record["signature"]
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    resealed(folder, edit)
    with pytest.raises(
        ValueError, match=f"scores.parquet, got another {re.escape('.'.join(keys))}\\. One of"
    ):
        publish_results(folder, MODEL)


def test_figures_are_computed_and_not_read(client, model, results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "edited")

    def flatter(record: dict) -> None:
        record["metrics"]["as_published"]["replace"]["macro"]["original_accuracy"] = 0.987

    resealed(folder, flatter)
    assert client("publish", "results", folder, MODEL, "--no-create-pr").code == 0
    assert not any(b"0.987" in content for content in model.files.values())


# Faults

FAULTS = {
    401: "Log in with `hf auth login` or set HF_TOKEN",
    403: "Use a token that may write there",
    404: "Check the name",
    409: "Someone else is writing there: run the same command again",
    412: "It has changed since it was read: run the same command again",
    429: "Too many requests: wait some minutes",
    503: "Wait some minutes, then run the same command again",
    "cut": "a broken connection",
    "lost": "a broken connection",
}


@pytest.mark.parametrize("option", ["--create-pr", "--no-create-pr"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_commit_leaves_nothing_or_all_and_can_be_repeated(
    stand_in, client, model, results, fault, option
):
    stand_in.fail("POST", f"/api/models/{MODEL}/commit/.*", fault)
    done = client("publish", "results", results, MODEL, option)
    assert done.code == 1
    assert done.err.startswith(f"Error: Expected the Hub to take this for {MODEL}, got ")
    assert FAULTS[fault] in done.err
    assert len(model.commits) == (2 if fault == "lost" else 1)

    done = client("publish", "results", results, MODEL, option)
    assert done.code == 0, done
    assert done.out.startswith("Nothing to change" if fault == "lost" else "Published")
    assert len(model.commits) == 2
    assert len(model.pull_requests) == (option == "--create-pr")
    assert_one_complete_entry(model.at("refs/pr/1" if model.pull_requests else "main").files)


@pytest.mark.parametrize(
    "fault", [403, *(pytest.param(fault, marks=pytest.mark.slow) for fault in (503, "cut"))]
)
def test_a_card_that_cannot_be_read_is_not_taken_for_a_missing_one(
    stand_in, client, model, results, fault, tmp_path
):
    # In a process of its own: nothing of the card is in its cache.
    environment = environment_for(stand_in.url, tmp_path, HF_HUB_ETAG_TIMEOUT="1")
    stand_in.fail("HEAD", f"/{MODEL}/resolve/.*", fault, times=100)
    stand_in.fail("GET", f"/{MODEL}/resolve/.*", fault, times=100)
    command = [sys.executable, "-m", "hard_positives", "publish", "results", str(results), MODEL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done
    assert "Error: Expected the Hub to take this" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(model.commits) == 1


def published_after(fault, kind, folder, name, stand_in, client):
    """What is published by the same command, once its commit has failed in a way."""
    stand_in.fail("POST", f"/api/{kind}s/{name}/commit/main", fault)
    done = client("publish", kind, folder, name)
    assert done.code == 1
    assert FAULTS[fault] in done.err
    repository = stand_in.repositories[f"{kind}s", name]
    assert len(repository.commits) == (2 if fault == "lost" else 1)
    assert client("publish", kind, folder, name).code == 0
    assert len(repository.commits) == 2
    return repository


@pytest.mark.parametrize("fault", [401, 403, 404, 409, 412, 429, 503, "cut", "lost"])
def test_a_failed_commit_of_a_dataset_can_be_repeated(stand_in, client, built, fault):
    name = f"org/fault-{fault}"
    repository = published_after(fault, "dataset", built, name, stand_in, client)
    assert {"README.md", "data/replace-00000-of-00001.parquet"} < set(repository.files)


def test_an_upload_that_is_refused_says_what_to_do(stand_in, client, built, tmp_path):
    stand_in.fail("PUT", "/large/.*", 403, times=2)
    folder = copied(built, tmp_path, seed=5)
    done = client("publish", "dataset", folder, "org/refused")
    assert done.code == 1
    assert "got 403 (a fault to order). Use a token that may write there" in done.err
    assert len(stand_in.repositories["datasets", "org/refused"].commits) == 1


def test_a_change_between_reading_and_writing_is_not_overwritten(stand_in, client, model, results):
    def someone_else_commits() -> None:
        model.commit("main", "Another card", {**model.files, "README.md": b"# New\n"})

    # The hiccup of this request is retried, and meanwhile the repository has moved on.
    stand_in.fail("POST", f"/api/models/{MODEL}/preupload/main", someone_else_commits)
    done = client("publish", "results", results, MODEL, "--no-create-pr")
    assert done.code == 1
    assert "412" in done.err
    assert model.files["README.md"] == b"# New\n"
    assert client("publish", "results", results, MODEL, "--no-create-pr").code == 0
    assert model.files["README.md"].endswith(b"# New\n")


def test_a_token_without_rights_or_no_token_says_what_to_do(client, model, results):
    done = client("publish", "results", results, MODEL, "--no-create-pr", HF_TOKEN=READER)
    assert done.code == 1
    assert "403 (You have no right to write here). Use a token that may write there" in done.err
    done = client("publish", "results", results, MODEL, HF_TOKEN="")
    assert done.code == 1
    assert "Log in with `hf auth login`" in done.err
    assert len(model.commits) == 1


def test_a_hub_that_repeats_the_token_does_not_get_it_printed(stand_in, client, model, results):
    said = "see {request} http://ann:pass@host/x?key=1 \x1b[31mnow"
    stand_in.fail("POST", f"/api/models/{MODEL}/commit/.*", 403, message=said)
    done = client("publish", "results", results, MODEL, "--no-create-pr")
    assert done.code == 1
    assert f"see {stand_in.url}/api/models/{MODEL}/commit/main Bearer hf_***" in done.err
    assert not re.search(f"{WRITER}|pass|key|\x1b", done.err)


@pytest.mark.slow
def test_a_password_of_the_hubs_address_is_not_printed(stand_in, client, model, results, tmp_path):
    assert client("publish", "results", results, MODEL, "--no-create-pr").code == 0
    environment = environment_for(stand_in.url.replace("//", "//ann:secret@"), tmp_path)
    command = [sys.executable, "-m", "hard_positives", "publish", "results", results, MODEL]
    done = subprocess.run([*command, "--dry-run"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"Nothing to change: {stand_in.url}/{MODEL}\n")
    assert "secret" not in done.stderr


def test_a_foreign_card_cannot_move_the_terminal(client, model, results):
    card = CARD.replace(b"# Tiny CLIP", b"# Tiny \x1b]0;owned\x07 \xc2\x9b2J CLIP")
    model.commit("main", "Another card", {**model.files, "README.md": card})
    done = client("publish", "results", results, MODEL, "--dry-run")
    assert done.code == 0, done
    new = client("publish", "results", results, MODEL, "--no-create-pr")
    assert new.code == 0, new
    assert b"\x1b]0;owned\x07" in model.files["README.md"]  # not ours to change
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.out)


def test_offline_mode_says_so(results):
    with pytest.raises(HubError, match=r"got offline mode\. Unset HF_HUB_OFFLINE"):
        publish_results(results, MODEL)


# Cards, as text

RESULT = {
    "task": {"type": "zero-shot-image-classification"},
    "dataset": {"type": DATASET, "name": "x", "split": "replace"},
    "metrics": [{"type": "brittleness", "value": 0.00005}],
}


def identity(result: dict) -> str | None:
    kind = result["dataset"]["type"]
    return kind if kind == DATASET else None


THEIRS = '{"task": {"type": "t"}, "dataset": {"type": "o", "name": "o"}, "metrics": []}'
# What stands before our part, what gives way to it, and what stands behind it.
CARDS = {
    "no text": ("", "", ""),
    "no front matter": ("", "", "# Model\r\n\r\n---\r\nnot front matter\r\n"),
    "no model-index": ("---\nlicense: mit # yes\n# end", "", "\n---\ntext"),
    "an empty model-index": ("---\r\nmodel-index:", " []", "\r\ntags: [a]\r\n---\r\ntext\r\n"),
    "a null model-index": ("---\nmodel-index:", "", "\ntags: [a]\n---\n"),
    "empty results": (
        *("---\nmodel-index:\n- name: a\n  results:", " []", "\n# end\nz: 1\n---\n"),
    ),
    "null results": (
        *("---\nmodel-index:\n- name: a\n  results:", " null", "\n- name: b\n  results: []\n---\n"),
    ),
    "deep": (
        "---\nmodel-index:\n  - name: a\n    results:\n      -  task:\n          type: x # why\n"
        '         dataset: {type: other, name: "Q"}\n         metrics:\n          - type: q\n'
        "            value: |\n              text",
        "",
        "\n\n      # a comment\n\nz: 1\n---\nbody\n",
    ),
    "a comment on the last line": (
        f"---\nmodel-index:\n- name: a\n  results:\n  - {THEIRS} # note",
        *("", "\nz: 1\n---\n"),
    ),
    "flow": (f'---\nmodel-index: [{{"name": "x", "results": [{THEIRS}', "", "]}]\n---\n"),
    "a byte-order mark": ("\ufeff---\nlicense: mit", "", "\n---\n"),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_keeps_every_byte_that_is_not_ours(name):
    before, gives_way, behind = CARDS[name]
    new = merge_results(before + gives_way + behind, "tiny", [RESULT], identity)
    assert new.startswith(before)
    assert new.endswith(behind)
    block = yaml.safe_load(new.lstrip("\ufeff").split("---")[1])
    assert [r for r in block["model-index"][0]["results"] if identity(r)] == [RESULT]
    assert ("\r\n" in new) == ("\r\n" in behind)
    assert merge_results(new, "tiny", [RESULT], identity) == new

    other = {**RESULT, "metrics": [{"type": "brittleness", "value": 0.5}]}
    changed = merge_results(new, "tiny", [other], identity)
    assert changed != new
    assert merge_results(changed, "tiny", [RESULT], identity) == new


def test_repeated_entries_of_ours_become_one():
    doubled = json.loads(json.dumps([RESULT, json.loads(THEIRS), RESULT]))
    card = f"---\n{yaml.safe_dump({'model-index': [{'name': 'm', 'results': doubled}]})}---\n"
    data = yaml.safe_load(merge_results(card, "m", [RESULT], identity).split("---")[1])
    assert data["model-index"][0]["results"] == [RESULT, json.loads(THEIRS)]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("a: [", "front matter to be YAML"),
        ("- a", "front matter to be a mapping, got list"),
        ("model-index: text", "model-index to be a list"),
        ("model-index:\n- name: a", "model-index to be a list"),
        ("model-index:\n- name: a\n  results:\n  - text", "model-index to be a list"),
        (
            "a: &r []\nmodel-index:\n- {name: a, results: *r}",
            "a form that can be extended in place",
        ),
        ("{license: mit}", "a form that can be extended in place"),
    ],
)
def test_a_card_of_an_unusual_form_is_refused(block, message):
    with pytest.raises(ValueError, match=message):
        merge_results(f"---\n{block}\n---\n", "m", [RESULT], identity)
