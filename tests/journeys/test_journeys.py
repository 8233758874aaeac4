"""What people do with the command line, typed as they would, each in a folder of their own.

The command, its files and its words are all that is looked at. Every figure that is checked was
counted here, from the saved logits.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from datasets import Dataset, load_dataset
from huggingface_hub import ModelCard
from stand_in_hub import WRITER, StandInHub

from hard_positives_dataset import build_parquet

pytestmark = pytest.mark.slow  # each starts Python several times
COMMAND = f"{shlex.quote(sys.executable)} -m hard_positives"
SHAPES = ROOT / "hard_positives_dataset" / "shapes"


class Shell:
    """A folder of one's own and a terminal in it."""

    def __init__(self, folder: Path, **variables: str):
        self.folder = folder
        # Home is another one, so that a journey neither finds nor leaves anything there.
        own = {"HF_HOME": str(folder / "home"), "COLUMNS": "100", "NO_COLOR": "1", "HOME": "/none"}
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **own, **variables}

    def start(self, command: str) -> subprocess.Popen:
        return subprocess.Popen(
            shlex.split(command.replace("hard-positives", COMMAND, 1)),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def type(self, command: str, code: int = 0) -> tuple[str, str]:
        """What comes back on both streams, from a command that must end with this code."""
        process = self.start(command)
        out, err = process.communicate()
        assert process.returncode == code, f"$ {command}\n{out}\n{err}"
        assert "Traceback" not in err
        return out, err


def macro(folder: Path, figure: str, split: str = "swap") -> float:
    """A figure of a saved result, as published."""
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    return metrics["as_published"][split]["macro"][figure]


def share_of_rows_right(folder: Path) -> float:
    """Augmented accuracy, counted from the saved logits."""
    logits = pd.read_parquet(folder / "scores.parquet")["logits"]
    return sum(min(one[:2]) > one[2] for one in logits) / len(logits)


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return load_dataset("parquet", data_files=str(SHAPES / "swap-*.parquet"), split="train")


def save_pictures(rows: Dataset, folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for row, name in zip(rows, names, strict=True):
        row["image"].save(folder / name)


def test_own_columns_are_asked_for_in_words_and_then_scored(shell, rows):
    number, mine = 40, shell.folder / "mine"
    names = [f"{place}.png" for place in range(number)]
    save_pictures(rows.select(range(number)), mine, names)
    taken = rows[:number]
    columns = {"file_name": names, "sentence": taken["caption"], "foil": taken["hard_negative"]}
    columns |= {"paraphrase": taken["hard_positive"], "topic": ["one", "two"] * (number // 2)}
    pd.DataFrame(columns).to_csv(mine / "metadata.csv", index=False)

    _, err = shell.type("hard-positives evaluate --dataset mine", code=1)
    assert "got ['image', 'sentence', 'foil', 'paraphrase', 'topic']" in err
    assert "--positive, --negative" in err

    out, _ = shell.type(
        "hard-positives evaluate --dataset mine --positive sentence --positive paraphrase "
        "--negative foil --category topic --output result"
    )
    scores = pd.read_parquet(shell.folder / "result" / "scores.parquet")
    for topic in ("one", "two"):
        logits = scores[scores["category"] == topic]["logits"]
        both = [min(caption, positive) > negative for caption, positive, negative in logits]
        [line] = [line for line in out.splitlines() if line.split()[:1] == [topic]]
        assert f" {100 * sum(both) / len(both):.1f} " in line.replace("±", " ")
    shell.type("hard-positives report result --output page")
    assert (shell.folder / "page" / "index.html").read_text().count("<img ") > number // 2


def test_a_folder_that_is_missing_is_told_at_once_with_what_is_near(shell):
    (shell.folder / "REPLACE").mkdir()
    for command, near in {
        "evaluate --dataset REPLASE": "REPLACE",
        "evaluate shape_clip": "shapes_clip",
        "evaluate --dataset sugarcreep": "sugarcrepe",
    }.items():
        _, err = shell.type(f"hard-positives {command}", code=1)
        assert "there is no such folder" in err and f"Did you mean {near}" in err
        assert err.count("\n") == 1  # one sentence; nobody was asked, so nothing was waited for


def test_a_benchmark_is_built_of_the_pictures_that_are_there(shell, rows):
    annotated = []
    for place, row in enumerate(rows.select(range(30))):
        box = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), (0, 0, 64, 64), strict=True))
        annotated.append((f"{place}.png", box, row))
    for folder, true in {"original": "caption", "hard_positive": "hard_positive"}.items():
        texts = [
            {
                "image_path": name,
                **box,
                "true_caption": row[true],
                "false_caption": row["hard_negative"],
            }
            for name, box, row in annotated
        ]
        path = shell.folder / "published" / folder / "visual_genome_attribution.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(texts))
    save_pictures(rows.select(range(12)), shell.folder / "some", [f"{n}.png" for n in range(12)])
    build = "hard-positives build SWAP --split swap --annotations published --images some"

    _, err = shell.type(build, code=1)
    assert "no image file in 18 rows" in err and "`partial`" in err
    assert not (shell.folder / "SWAP").exists()

    _, err = shell.type(f"{build} --partial")
    assert "12 of 30 rows of `swap`" in err
    assert "12 of 30 rows of `swap`" in (shell.folder / "SWAP" / "README.md").read_text()
    shell.type("hard-positives evaluate --dataset SWAP --output result")
    assert len(pd.read_parquet(shell.folder / "result" / "scores.parquet")) == 12


def test_two_dtypes_of_one_model_are_told_apart_and_compared(shell):
    for dtype in ("float32", "bfloat16"):
        shell.type(f"hard-positives evaluate --split swap --dtype {dtype} --output {dtype} --quiet")
    out, _ = shell.type("hard-positives compare float32 bfloat16")
    assert "float32" in out and "bfloat16" in out
    [line] = [line for line in out.splitlines() if line.strip().startswith("augmented")]
    both = [share_of_rows_right(shell.folder / dtype) for dtype in ("float32", "bfloat16")]
    assert both == [
        macro(shell.folder / of, "augmented_accuracy") for of in ("float32", "bfloat16")
    ]
    assert line.split()[1:3] == [f"{100 * share:.1f}" for share in both]


def test_who_tunes_on_the_test_is_told_and_so_is_the_reader_of_the_card(shell, rows):
    others = load_dataset("parquet", data_files=str(SHAPES / "replace-*.parquet"), split="train")
    for name, some in {"test": rows, "other": others}.items():
        (shell.folder / name).mkdir()
        some.select(range(48)).to_parquet(str(shell.folder / name / "rows.parquet"))
    tune = "hard-positives finetune shapes_clip --data test --epochs 1 --batch-size 16"
    _, err = shell.type(f"{tune} --held-out test --output cheated")
    assert "Expected held-out rows to share nothing with the training rows" in err
    assert "48 held-out rows, 48 show a picture that is trained on" in err
    card = (shell.folder / "cheated" / "README.md").read_text()
    assert "48 show a picture that is trained on" in " ".join(card.split())
    _, err = shell.type(f"{tune} --held-out other --output honest")
    assert "share nothing" not in err


def test_what_was_interrupted_resumes(shell):
    command = "hard-positives evaluate --batch-size 1 --workers 0 --output result"
    process = shell.start(command)
    kept = shell.folder / "home" / "hard_positives"
    while not list(kept.rglob("*.safetensors")):
        with pytest.raises(subprocess.TimeoutExpired):  # it does not end by itself
            process.wait(timeout=0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.endswith("Interrupted. The same command resumes where it stopped.\n")
    assert not (shell.folder / "result").exists()

    _, err = shell.type(command)
    counts = re.findall(r"([\d,]+) of ([\d,]+) distinct", err)  # images and captions
    left, of_all = (
        sum(int(one.replace(",", "")) for one in of) for of in zip(*counts, strict=True)
    )
    assert 0 < left < of_all
    shell.type("hard-positives evaluate --no-cache --output whole --quiet")
    results = [pd.read_parquet(shell.folder / of / "scores.parquet") for of in ("result", "whole")]
    assert results[0]["id"].equals(results[1]["id"])
    assert macro(shell.folder / "result", "drop") == macro(shell.folder / "whole", "drop")


def test_what_is_published_is_read_back(tmp_path, rows):
    with StandInHub() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "HF_HUB_OFFLINE": "0"}
        shell = Shell(tmp_path, **online, HF_HUB_DISABLE_XET="1")
        model = ROOT / "hard_positives" / "shapes_clip"
        files = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
        card = b"---\nlicense: mit\n---\n# Mine\n"
        hub.add("models", "org/clip", {**files, "README.md": card})
        build_parquet({"swap": rows.select(range(40))}, tmp_path / "mine", progress=False)

        publish = "hard-positives publish dataset mine org/mine"
        _, err = shell.type(publish, code=1)
        assert "state a licence" in err and ("datasets", "org/mine") not in hub.repositories
        card_of_mine = tmp_path / "mine" / "README.md"
        stated = card_of_mine.read_text().replace("---\n", "---\nlicense: cc-by-4.0\n", 1)
        card_of_mine.write_text(f"{stated}\nMine, under CC BY 4.0.\n")
        out, _ = shell.type(publish)
        assert f"{hub.url}/datasets/org/mine" in out
        shell.type("hard-positives evaluate org/clip --dataset org/mine --output result")
        out, _ = shell.type("hard-positives publish results result org/clip --dry-run")
        assert "model-index" in out and not hub.repositories["models", "org/clip"].pull_requests
        shell.type("hard-positives publish results result org/clip")

        repository = hub.repositories["models", "org/clip"]
        assert repository.files["README.md"] == card  # until the pull request is merged
        page = ModelCard(repository.at("refs/pr/1").files["README.md"].decode())
        told = {one.metric_type: one.metric_value for one in page.data.eval_results}
        right = share_of_rows_right(tmp_path / "result")
        assert any(value == pytest.approx(right) for value in told.values()), told
        assert page.text.strip() == "# Mine"
