"""The scorer under load: cache, kills, processes, workers, batch sizes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from hard_positive_metric import compute_metrics
from hard_positives import EvaluationResult, evaluate, machine, score
from hard_positives.machine import Plan, fastest_plan
from hard_positives.models import encoders
from hard_positives.scoring import encoding
from hard_positives.scoring.cache import EmbeddingCache, list_cache

COUNTS = ("num_all_above", "num_only_caption_above", "num_none_above", "num_tied", "num_brittle")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def encoded(monkeypatch) -> dict[str, int]:
    """Counts what is encoded rather than read from the cache."""
    counts = {"images": 0, "captions": 0}
    for name, method in {"images": "embed_images", "captions": "embed_captions"}.items():
        original = getattr(encoders.DualEncoder, method)

        def counting(self, batch, name=name, original=original):
            embeds = original(self, batch)
            counts[name] += len(embeds)
            return embeds

        monkeypatch.setattr(encoders.DualEncoder, method, counting)
    return counts


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Path:
    """A folder of 600 rows over 300 images and 1,500 captions: many chunks of a small size."""
    picks = np.random.default_rng(0)
    pictures = [
        PILImage.fromarray(picks.integers(0, 256, (33 + i % 7, 40, 3), dtype=np.uint8))
        for i in range(300)
    ]
    records = [
        {
            "image": pictures[i // 2],
            "caption": f"white thing {i % 500} on a table",
            "hard_positive": f"ivory thing {i % 500} on a table",
            "hard_negative": f"black thing {i % 500} on a table",
            "image_id": str(i // 2),
        }
        for i in range(600)
    ]
    features = Features({name: Value("string") for name in records[0]} | {"image": Image()})
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "data").mkdir()
    rows = Dataset.from_list(records, features=features)
    rows.to_parquet(folder / "data" / "replace-00000-of-00001.parquet")
    return folder


def counts_of(logits: np.ndarray) -> dict[str, int]:
    metrics = compute_metrics(logits)
    return {name: metrics[name] for name in COUNTS}


def test_a_second_run_encodes_nothing_and_gives_the_same_logits(tiny_clip, triples, encoded):
    first = score(tiny_clip, triples)
    assert encoded == {"images": 10, "captions": 45}
    np.testing.assert_array_equal(score(tiny_clip, triples), first)
    assert encoded == {"images": 10, "captions": 45}


def test_another_split_encodes_only_what_is_new(tiny_clip, triples, encoded):
    score(tiny_clip, triples.select(range(20)))
    before = dict(encoded)
    logits = score(tiny_clip, triples)
    assert encoded["images"] == 10
    assert before["images"] == 5
    np.testing.assert_allclose(logits, score(tiny_clip, triples, cache=False), atol=1e-5, rtol=0)


def test_without_the_cache_nothing_is_kept_or_used(tiny_clip, triples, encoded, own_cache):
    score(tiny_clip, triples, cache=False)
    score(tiny_clip, triples, cache=False)
    assert encoded["images"] == 20
    assert not own_cache.exists()


def test_everything_that_changes_an_embedding_has_a_cache_of_its_own(tiny_clip, triples, encoded):
    from transformers import AutoProcessor, CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    score(model, triples, processor=processor)
    score(tiny_clip, triples)  # the same weights by another name
    assert encoded["images"] == 10
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    score(model, triples, processor=processor)
    assert encoded["images"] == 20
    model.text_projection.weight.data[0, 0] += 1e-3
    score(model, triples, processor=processor)
    assert encoded["images"] == 30
    score(tiny_clip, triples, dtype="bfloat16")
    assert encoded["images"] == 40
    processor.tokenizer.backend_tokenizer.normalizer = None  # the vocabulary stays the same
    score(model, triples, processor=processor)
    assert encoded["images"] == 50
    processor.tokenizer(["one", "and two"], padding=True, truncation=True, max_length=3)
    score(model, triples, processor=processor)  # a call that pads leaves the tokenizer as it was
    assert encoded["images"] == 50
    assert len(list_cache()) == 5


def test_other_pixels_in_the_same_row_are_encoded_anew(tiny_clip, triples, encoded):
    score(tiny_clip, triples)
    rows = triples.to_list()
    rows[0]["image"] = rows[39]["image"]
    mixed = Dataset.from_list(rows, features=triples.features)
    logits = score(tiny_clip, mixed)
    np.testing.assert_allclose(logits[0], score(tiny_clip, mixed, cache=False)[0], atol=1e-5)
    assert not np.allclose(logits[0], score(tiny_clip, triples)[0])


def test_a_damaged_chunk_is_encoded_again(tiny_clip, triples, encoded, own_cache):
    expected = score(tiny_clip, triples)
    for chunk in own_cache.glob("*/*.safetensors"):
        chunk.write_bytes(chunk.read_bytes()[:-7])
    np.testing.assert_array_equal(score(tiny_clip, triples), expected)
    assert encoded["images"] == 20


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16, 256])
def test_batch_size_changes_no_count(tiny_clip, benchmark, batch_size):
    reference = evaluate(tiny_clip, benchmark, cache=False).logits
    logits = evaluate(tiny_clip, benchmark, cache=False, batch_size=batch_size).logits
    assert counts_of(logits) == counts_of(reference)
    np.testing.assert_allclose(logits, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_number_of_workers_changes_nothing(tiny_clip, benchmark, num_workers):
    reference = evaluate(tiny_clip, benchmark, cache=False).logits
    logits = evaluate(tiny_clip, benchmark, cache=False, num_workers=num_workers).logits
    np.testing.assert_array_equal(logits, reference)


def test_the_order_of_rows_changes_nothing(tiny_clip, triples):
    order = np.random.default_rng(3).permutation(len(triples))
    shuffled = score(tiny_clip, triples.select(order), cache=False)
    np.testing.assert_array_equal(shuffled, score(tiny_clip, triples, cache=False)[order])


def command(model: Path, dataset: Path, output: Path, *options: str) -> list[str]:
    return [
        *("-m", "hard_positives", "evaluate", str(model)),
        *("--dataset", str(dataset), "--output", str(output), *options),
    ]


def saved_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Every process notes who it is and what it encoded; caches can be one or one per process.
PROCESS = """
import atexit, json, os, sys
rank, notes, own_caches = os.environ["RANK"], sys.argv.pop(1), sys.argv.pop(1) == "own"
if own_caches:
    os.environ["HARD_POSITIVES_CACHE"] += "-" + rank
from hard_positives.models import encoders
from hard_positives.scoring import encoding
from hard_positives.cli import app
from hard_positives.machine import processes

encoding.IMAGES_PER_CHUNK, encoding.CAPTIONS_PER_CHUNK = 30, 100
note = {"pid": os.getpid(), "images": 0, "captions": 0}
for name in ("images", "captions"):
    def counting(self, batch, name=name, original=getattr(encoders.DualEncoder, "embed_" + name)):
        embeds = original(self, batch)
        note[name] += len(embeds)
        return embeds
    setattr(encoders.DualEncoder, "embed_" + name, counting)

def write():
    note["processes"] = processes().num_processes
    with open(f"{notes}/{rank}.json", "w") as file:
        json.dump(note, file)

atexit.register(write)
app()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("caches", "full"),
    [("one", []), ("own", []), ("own", [0]), ("own", [1])],
    ids=["one empty cache", "two empty caches", "the first full", "the second full"],
)
def test_two_processes_give_the_logits_of_one_and_encode_everything_once(
    tiny_clip, benchmark, tmp_path, own_cache, monkeypatch, caches, full
):
    monkeypatch.setattr(encoding, "IMAGES_PER_CHUNK", 30)
    monkeypatch.setattr(encoding, "CAPTIONS_PER_CHUNK", 100)
    for rank in full:
        monkeypatch.setenv("HARD_POSITIVES_CACHE", f"{own_cache}-{rank}")
        evaluate(tiny_clip, benchmark)
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(own_cache))
    one = evaluate(tiny_clip, benchmark, cache=False)
    (tmp_path / "process.py").write_text(PROCESS)
    (tmp_path / "notes").mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launch += [str(tmp_path / "process.py"), str(tmp_path / "notes"), caches]
    done = subprocess.run(
        [*launch, *command(tiny_clip, benchmark, tmp_path / "two")[2:]],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    notes = [json.loads(path.read_text()) for path in sorted((tmp_path / "notes").iterdir())]
    assert len({note["pid"] for note in notes}) == 2
    assert [note["processes"] for note in notes] == [2, 2]
    for name, distinct in {"images": 300, "captions": 1500}.items():
        counts = [note[name] for note in notes]
        assert [count > 0 for count in counts] == [rank not in full for rank in (0, 1)]
        assert full or sum(counts) == distinct
    two = EvaluationResult.load(tmp_path / "two")
    np.testing.assert_allclose(two.logits, one.logits, atol=1e-5, rtol=0)
    assert counts_of(two.logits) == counts_of(one.logits)
    assert two.scores["id"].equals(one.scores["id"])
    assert done.stdout.count("|version:") == 1  # one process prints, once


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_bytes_of_one_that_was_not(
    tiny_clip, benchmark, tmp_path, own_cache
):
    # Small chunks, so that kills fall between many of them.
    small = "from hard_positives.scoring import encoding; encoding.IMAGES_PER_CHUNK = 8; "
    small += "encoding.CAPTIONS_PER_CHUNK = 64; from hard_positives.cli import app; app()"
    arguments = command(tiny_clip, benchmark, tmp_path / "killed")[2:]
    run = [sys.executable, "-c", small, *arguments]
    chunks_seen, kills, random_times = [], 0, random.Random(0)
    while True:
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + random_times.uniform(3, 9)
        before = len(list(own_cache.glob("*/*.safetensors")))
        # Killed at a random time, yet not before one more chunk is there: the loop must end.
        while process.poll() is None and (
            time.monotonic() < until and len(list(own_cache.glob("*/*.safetensors"))) < before + 12
        ):
            os.sched_yield()
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        chunks_seen.append(len(list(own_cache.glob("*/*.safetensors"))))
    assert process.returncode == 0
    assert kills >= 2
    assert chunks_seen == sorted(chunks_seen)  # nothing that was done is lost

    os.environ["HARD_POSITIVES_CACHE"] = str(tmp_path / "other")
    uninterrupted = command(tiny_clip, benchmark, tmp_path / "whole")[2:]
    subprocess.run([sys.executable, "-c", small, *uninterrupted], check=True, capture_output=True)
    assert saved_bytes(tmp_path / "killed") == saved_bytes(tmp_path / "whole")
    assert len(list((tmp_path / "other").glob("*/*.safetensors"))) == len(
        list(own_cache.glob("*/*.safetensors"))
    )


@pytest.fixture
def measured(monkeypatch) -> list[Plan]:
    """Pretends that a batch of 64 is best, and two threads on a machine that shows eight."""
    plans = []

    def seconds(self, image, threads: int, batch_size: int) -> float:
        plans.append(Plan(threads, batch_size))
        return abs(threads - 2) + 1 / batch_size

    monkeypatch.setattr(encoding, "MEASURED_FROM", 5)
    monkeypatch.setattr(encoding._Run, "_seconds_per_image", seconds)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return plans


def test_threads_are_halved_while_that_helps(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    tried = []

    def seconds(threads: int, batch_size: int) -> float:
        tried.append(threads)
        return abs(threads - 2) + 1 / batch_size

    assert fastest_plan(seconds, 1e-3, 8) == Plan(2, 64, 1)
    assert tried == [8, 8, 4, 2, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("running", "plan"),
    [({1: 150.0, 2: 75.0}, Plan(2, 16, 1)), ({1: 1.6, 2: 1.07}, Plan(1, 16, 2))],
)
def test_cores_go_to_whatever_is_the_wall(monkeypatch, running, plan):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert fastest_plan(lambda threads, batch_size: running[threads], 3.3, 2) == plan


def test_the_threads_of_the_plan_are_used_and_then_as_many_as_before(
    tiny_clip, triples, measured, monkeypatch
):
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    score(tiny_clip, triples, num_workers=0)
    assert used == [2, 8]


def test_a_resumed_run_computes_as_it_began(tiny_clip, benchmark, measured, own_cache, monkeypatch):
    monkeypatch.setattr(encoding, "MEASURED_FROM", 200)
    monkeypatch.setattr(encoding, "IMAGES_PER_CHUNK", 100)
    evaluate(tiny_clip, benchmark)
    expected = saved_bytes(next(own_cache.iterdir()))
    times_measured = len(measured)
    batches = []
    embed_images = encoders.DualEncoder.embed_images

    def noting(self, inputs):
        batches.append(len(inputs["pixel_values"]))
        return embed_images(self, inputs)

    monkeypatch.setattr(encoders.DualEncoder, "embed_images", noting)
    # A hundred images are left, fewer than measuring pays for: their batches are those of before.
    chunks = sorted(own_cache.glob("*/*.safetensors"), key=lambda path: path.stat().st_size)
    chunks[0].unlink()
    evaluate(tiny_clip, benchmark)
    assert batches == [64, 36]
    assert len(measured) == times_measured
    assert saved_bytes(next(own_cache.iterdir())) == expected


def test_measuring_changes_nothing(tiny_clip, triples, monkeypatch):
    threads = torch.get_num_threads()
    expected = score(tiny_clip, triples, cache=False, batch_size=32)
    monkeypatch.setattr(encoding, "MEASURED_FROM", 5)
    np.testing.assert_allclose(score(tiny_clip, triples), expected, atol=1e-5, rtol=0)
    assert torch.get_num_threads() == threads


def test_captions_are_encoded_in_step_with_images(tiny_clip, benchmark, monkeypatch):
    monkeypatch.setattr(encoding, "IMAGES_PER_CHUNK", 30)
    monkeypatch.setattr(encoding, "CAPTIONS_PER_CHUNK", 75)
    order = []
    add = EmbeddingCache.add

    def noting(self, digests, embeds):
        order.append("images" if len(digests) == 30 else "captions")
        add(self, digests, embeds)

    monkeypatch.setattr(EmbeddingCache, "add", noting)
    evaluate(tiny_clip, benchmark)
    assert order == ["captions", "images", "captions"] * 10


def test_towers_that_are_compiled_are_used_as_they_are(tiny_clip, triples):
    from transformers import AutoProcessor, CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    expected = score(model, triples, processor=processor, cache=False)
    graphs = []

    def keep_graph(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    for tower in (model.vision_model, model.text_model):
        tower.compile(backend=keep_graph, dynamic=True)
    logits = score(model, triples, processor=processor, cache=False)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    assert len(graphs) >= 2


def test_auto_takes_half_precision_only_where_it_is_twice_as_fast(tiny_clip, triples, monkeypatch):
    from hard_positives.models import loading as scoring

    seconds = {torch.float32: 1.0, torch.bfloat16: 0.6}
    monkeypatch.setattr(scoring, "_product_seconds", lambda dtype, device: seconds[dtype])
    cpu = torch.device("cpu")
    assert scoring._chosen_dtype("auto", cpu) == torch.float32
    seconds[torch.bfloat16] = 0.4
    assert scoring._chosen_dtype("auto", cpu) == torch.bfloat16
    monkeypatch.undo()
    assert scoring._product_seconds(torch.float32, cpu) > 0


def test_the_cache_command_shows_and_empties_it(tiny_clip, triples, own_cache):
    from typer.testing import CliRunner

    from hard_positives.cli import app

    score(tiny_clip, triples)
    shown = CliRunner().invoke(app, ["cache"], env={"COLUMNS": "200"})
    assert str(tiny_clip) in shown.stdout
    emptied = CliRunner().invoke(app, ["cache", "--empty"])
    assert emptied.exit_code == 0
    assert list_cache() == []


def a_file_in_its_place(folder: Path) -> None:
    folder.write_text("no folder")


def a_read_only_disk(folder: Path) -> None:
    mount(folder, "ro,size=1m")


def a_full_disk(folder: Path) -> None:
    mount(folder, "size=4k")
    (folder / "full").write_bytes(bytes(4096))


def mount(folder: Path, options: str) -> None:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this container may not mount")


@pytest.mark.parametrize("fault", [a_file_in_its_place, a_read_only_disk, a_full_disk])
def test_a_cache_that_cannot_be_used_costs_one_warning(tiny_clip, triples, own_cache, fault):
    expected = score(tiny_clip, triples, cache=False)
    fault(own_cache)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logits = score(tiny_clip, triples)
    finally:
        subprocess.run(["umount", str(own_cache)], capture_output=True)
    np.testing.assert_array_equal(logits, expected)
    told = [str(w.message) for w in caught if "cannot be used" in str(w.message)]
    assert len(told) == 1
    assert str(own_cache) in told[0]
    assert "HARD_POSITIVES_CACHE" in told[0]


def test_a_read_only_cache_is_still_read(tiny_clip, triples, own_cache, encoded):
    expected = score(tiny_clip, triples)
    kept = own_cache.rename(own_cache.with_name("kept"))
    mount(own_cache, "size=8m")
    shutil.copytree(kept, own_cache, dirs_exist_ok=True)
    try:
        remount = ["mount", "-o", "remount,ro", str(own_cache)]
        subprocess.run(remount, check=True, capture_output=True)
        np.testing.assert_array_equal(score(tiny_clip, triples), expected)
    finally:
        subprocess.run(["umount", str(own_cache)], check=True)
    assert encoded["images"] == 10


def test_vectors_that_are_not_finite_are_not_kept(tiny_clip, triples, own_cache, monkeypatch):
    embed_images = encoders.DualEncoder.embed_images
    monkeypatch.setattr(
        encoders.DualEncoder, "embed_images", lambda self, inputs: embed_images(self, inputs) / 0
    )
    with pytest.raises(ValueError, match="finite"):
        score(tiny_clip, triples)
    monkeypatch.undo()
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(own_cache))
    expected = score(tiny_clip, triples, cache=False)
    np.testing.assert_array_equal(score(tiny_clip, triples), expected)


def test_a_damaged_plan_is_measured_again(tiny_clip, triples, measured, own_cache):
    expected = score(tiny_clip, triples)
    (plan,) = own_cache.glob("*/plan_*.json")
    times = len(measured)
    for content in ("", "[]", '{"threads": 2}', "\x00"):
        plan.write_text(content)
        for chunk in own_cache.glob("*/*.safetensors"):
            chunk.unlink()
        np.testing.assert_array_equal(score(tiny_clip, triples), expected)
    assert len(measured) == 5 * times
