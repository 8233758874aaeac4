"""Models that read image and caption together, and objects from outside."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import ROOT
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from hard_positives import EvaluationResult, evaluate, render_table, score, write_report
from hard_positives.scoring import matching
from hard_positives.scoring.cache import list_cache
from hard_positives.suite.columns import CAPTION_COLUMNS, Columns


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def blip(tiny_clip, tmp_path_factory):
    """A folder with a small matching head and the tokenizer of the small CLIP."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1}
    processor = hf.AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    text = {"vocab_size": 600, "max_position_embeddings": 77, "encoder_hidden_size": 16}
    text |= {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config = hf.BlipConfig(
        text_config={**sizes, **text},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        image_text_hidden_size=16,
    )
    model = hf.BlipForImageTextRetrieval(config).eval()
    for values in model.parameters():  # so that logits differ visibly
        if values.ndim > 1:
            torch.nn.init.normal_(values, std=0.3)
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    images = hf.BlipImageProcessorPil(size=square)
    hf.BlipProcessor(images, processor.tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def matched(monkeypatch) -> list[int]:
    """Sizes of the batches that were scored rather than read from the cache."""
    sizes = []
    score_pairs = matching.Matcher.__args__[0].score_pairs

    def counting(self, images, of_pair, captions):
        sizes.append(len(captions))
        return score_pairs(self, images, of_pair, captions)

    monkeypatch.setattr(matching.Matcher.__args__[0], "score_pairs", counting)
    return sizes


def num_pairs(rows) -> int:
    return len({(row["image_id"], row[name]) for row in rows for name in CAPTION_COLUMNS})


def test_a_second_run_scores_nothing_and_gives_the_same_logits(blip, triples, matched):
    first = score(blip, triples)
    assert sum(matched) == num_pairs(triples)
    assert np.ptp(first, axis=1).min() > 0
    np.testing.assert_array_equal(score(blip, triples), first)
    assert sum(matched) == num_pairs(triples)
    [kept] = list_cache()
    assert "float32" in kept.name


def test_another_split_scores_only_the_pairs_that_are_new(blip, triples, matched):
    score(blip, triples.select(range(20)))
    before = sum(matched)
    logits = score(blip, triples)
    assert before == num_pairs(triples.select(range(20)))
    assert sum(matched) == num_pairs(triples)
    np.testing.assert_allclose(logits, score(blip, triples, cache=False), atol=1e-5, rtol=0)


def test_the_same_caption_with_another_picture_is_another_pair(blip, triples):
    score(blip, triples)
    rows = triples.to_list()
    rows[0]["image"] = rows[39]["image"]
    mixed = Dataset.from_list(rows, features=triples.features)
    logits = score(blip, mixed)
    np.testing.assert_allclose(logits, score(blip, mixed, cache=False), atol=1e-5, rtol=0)
    assert not np.allclose(logits[0], score(blip, triples)[0])


def test_other_weights_have_a_cache_of_their_own(blip, triples, matched):
    model = hf.BlipForImageTextRetrieval.from_pretrained(blip, dtype=torch.float32)
    processor = hf.AutoProcessor.from_pretrained(blip, backend="pil")
    first = score(blip, triples)
    np.testing.assert_array_equal(score(model, triples, processor=processor), first)
    assert sum(matched) == num_pairs(triples)
    model.itm_head.weight.data[0, 0] += 1
    changed = score(model, triples, processor=processor)
    assert sum(matched) == 2 * num_pairs(triples)
    assert not np.allclose(changed, first)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"num_workers": 2}])
def test_batches_workers_and_the_order_of_rows_change_nothing(blip, triples, options):
    expected = score(blip, triples, cache=False)
    order = np.random.default_rng(1).permutation(len(triples))
    shuffled = score(blip, triples.select(order), cache=False, **options)
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-5, rtol=0)


def test_a_caption_too_long_for_a_matching_head_is_refused_before_any_is_scored(
    blip, triples, matched
):
    rows = triples.map(lambda row: {"caption": "x" * 100 if row["image_id"] == "3" else "x"})
    with pytest.raises(ValueError, match="at most 77 tokens long, got 1 longer"):
        score(blip, rows)
    assert not matched


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """A folder of 60 rows over 60 pictures, each with captions of its own."""
    picks = np.random.default_rng(0)
    records = [
        {
            "image": PILImage.fromarray(picks.integers(0, 256, (40, 40, 3), dtype=np.uint8)),
            "caption": f"white thing {row}",
            "hard_positive": f"ivory thing {row}",
            "hard_negative": f"black thing {row}",
        }
        for row in range(60)
    ]
    features = Features({name: Value("string") for name in records[0]} | {"image": Image()})
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "data").mkdir()
    rows = Dataset.from_list(records, features=features)
    rows.to_parquet(folder / "data" / "replace-00000-of-00001.parquet")
    return folder


# Every process notes who it is and how many pairs it scored.
PROCESS = """
import atexit, json, os, sys
notes = sys.argv.pop(1)
from hard_positives.models.pairs import PairModel
from hard_positives.scoring import matching
from hard_positives.cli import app
from hard_positives.machine import processes

matching.IMAGES_PER_CHUNK = 4
note = {"pid": os.getpid(), "pairs": 0}
score_pairs = PairModel.score_pairs
def counting(self, images, of_pair, captions):
    note["pairs"] += len(captions)
    return score_pairs(self, images, of_pair, captions)
PairModel.score_pairs = counting

def write():
    note["processes"] = processes().num_processes
    with open(f"{notes}/{os.getpid()}.json", "w") as file:
        json.dump(note, file)

atexit.register(write)
app()
"""


@pytest.mark.slow
def test_two_processes_share_the_pairs(blip, benchmark, tmp_path):
    (tmp_path / "process.py").write_text(PROCESS)
    (tmp_path / "notes").mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launch += [str(tmp_path / "process.py"), str(tmp_path / "notes"), "evaluate", str(blip)]
    done = subprocess.run(
        [*launch, "--dataset", str(benchmark), "--output", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    notes = [json.loads(path.read_text()) for path in (tmp_path / "notes").iterdir()]
    assert [note["processes"] for note in notes] == [2, 2]
    assert len({note["pid"] for note in notes}) == 2
    assert sum(note["pairs"] for note in notes) == 180
    assert min(note["pairs"] for note in notes) > 0
    one = evaluate(blip, benchmark, cache=False)
    two = EvaluationResult.load(tmp_path / "two")
    np.testing.assert_allclose(two.logits, one.logits, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_bytes_of_one_that_was_not(
    blip, benchmark, tmp_path, own_cache
):
    small = "from hard_positives.scoring import matching; matching.IMAGES_PER_CHUNK = 4; "
    small += "from hard_positives.cli import app; app()"

    def run(output):
        arguments = ["evaluate", str(blip), "--dataset", str(benchmark), "--output", str(output)]
        return [sys.executable, "-c", small, *arguments]

    process = subprocess.Popen(run(tmp_path / "killed"), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list(own_cache.glob("*/*.safetensors"))) < 3 and time.monotonic() < until:
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(own_cache.glob("*/*.safetensors")))
    assert 3 <= kept < 15
    noted = PROCESS.replace("sys.argv.pop(1)", f"{str(tmp_path)!r}")
    (tmp_path / "process.py").write_text(noted)
    resumed = [sys.executable, str(tmp_path / "process.py"), *run(tmp_path / "killed")[3:]]
    subprocess.run(resumed, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    [note] = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert note["pairs"] == 180 - 12 * kept
    os.environ["HARD_POSITIVES_CACHE"] = str(tmp_path / "other")
    subprocess.run(run(tmp_path / "whole"), check=True)
    for name in ("results.json", "scores.parquet"):
        whole, killed = tmp_path / "whole" / name, tmp_path / "killed" / name
        assert whole.read_bytes() == killed.read_bytes()


class Colours:
    """Embeds pictures by their mean colour and captions by their letters."""

    def __init__(self, shift: float = 0.0):
        self.shift = shift
        self.calls = []

    def embed_images(self, images):
        self.calls.append(("images", len(images)))
        return np.stack([np.asarray(image).mean((0, 1)) for image in images]) + self.shift

    def embed_captions(self, captions):
        self.calls.append(("captions", len(captions)))
        return [[1.0 + text.count(letter) for letter in "aet"] for text in captions]

    def describe(self):
        return {"id": "colours", "shift": self.shift}


def total(embedder, kind: str) -> int:
    return sum(number for called, number in embedder.calls if called == kind)


def test_an_embedder_from_outside_gets_each_input_once_and_keeps_it(triples):
    embedder = Colours()
    logits = score(embedder, triples, batch_size=3)
    assert (total(embedder, "images"), total(embedder, "captions")) == (10, 45)
    for row, found in zip(triples, logits, strict=True):
        image = np.asarray(row["image"].convert("RGB")).mean((0, 1))
        texts = np.array([[1.0 + row[name].count(c) for c in "aet"] for name in CAPTION_COLUMNS])
        expected = texts @ image / np.linalg.norm(texts, axis=1) / np.linalg.norm(image)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    again = Colours()
    np.testing.assert_array_equal(score(again, triples), logits)
    assert again.calls == []


def test_what_an_embedder_says_of_itself_keeps_its_embeddings_apart(triples):
    first = score(Colours(), triples)
    other = Colours(shift=30.0)
    assert not np.allclose(score(other, triples), first)
    assert total(other, "images") == 10


def test_a_state_that_describe_forgets_keeps_embeddings_apart(triples):
    class Forgetful(Colours):
        def describe(self):
            return {"id": "forgetful"}

    first = score(Forgetful(), triples)
    assert not np.allclose(score(Forgetful(30.0), triples), first)


def test_weights_that_describe_forgets_keep_embeddings_apart(triples):
    class Projected(Colours):
        def __init__(self, bias):
            super().__init__()
            self.projection = torch.nn.Linear(3, 3)
            torch.nn.init.eye_(self.projection.weight)
            torch.nn.init.constant_(self.projection.bias, bias)

        def embed_images(self, images):
            return self.projection(torch.tensor(super().embed_images(images)).float())

    first = score(Projected(0.0), triples)
    assert not np.allclose(score(Projected(50.0), triples), first)


@pytest.mark.parametrize("change", ["no describe", "a replaced method", "a hook"])
def test_an_object_that_cannot_be_described_is_scored_and_not_kept(triples, own_cache, change):
    embedder = Colours()
    expected = score(Colours(), triples, cache=False)
    if change == "no describe":
        del Colours.describe
    elif change == "a replaced method":
        embedder.embed_images = Colours.embed_images.__get__(embedder)
    else:
        embedder.network = torch.nn.Identity()
        embedder.network.register_forward_hook(lambda *parts: None)
    try:
        with pytest.warns(UserWarning, match="not kept"):
            np.testing.assert_array_equal(score(embedder, triples), expected)
    finally:
        Colours.describe = lambda self: {"id": "colours", "shift": self.shift}
    assert not own_cache.exists()


def test_scale_and_bias_are_applied_and_checked(triples):
    plain, scaled = Colours(), Colours()
    scaled.scale, scaled.bias = 50.0, -3.0
    expected = score(plain, triples, cache=False) * 50 - 3
    np.testing.assert_allclose(score(scaled, triples, cache=False), expected, rtol=1e-5)
    scaled.scale = -1.0
    with pytest.raises(ValueError, match=r"scale of Colours to be a number above 0, got -1\.0"):
        score(scaled, triples, cache=False)


@pytest.mark.parametrize(
    ("method", "returned", "message"),
    [
        ("embed_images", np.zeros(10), r"embed_images .* of shape \(10, D\), got \(10,\)"),
        ("embed_captions", np.zeros((3, 4)), r"embed_captions .* of shape \(45, D\), got \(3, 4\)"),
    ],
)
def test_embeddings_of_another_shape_are_refused(triples, method, returned, message):
    embedder = Colours()
    setattr(embedder, method, lambda inputs: returned)
    with pytest.raises(ValueError, match=message):
        score(embedder, triples, cache=False)


def test_a_description_that_no_json_can_hold_is_refused(triples):
    embedder = Colours(shift=np.float32(3))
    with pytest.raises(TypeError, match=r"describe\(\) of Colours to return a dictionary"):
        score(embedder, triples)


class Letters:
    """Scores pairs by letters and brightness, and notes what it got."""

    def __init__(self):
        self.batches = []

    def score_pairs(self, images, captions):
        self.batches.append(
            [(id(image), caption) for image, caption in zip(images, captions, strict=True)]
        )
        bright = [np.asarray(image).mean() for image in images]
        return [len(text) - light / 255 for light, text in zip(bright, captions, strict=True)]

    def describe(self):
        return {"id": "letters"}


def test_a_scorer_of_pairs_gets_each_distinct_pair_once_and_keeps_it(triples):
    scorer = Letters()
    logits = score(scorer, triples)
    pairs = [pair for batch in scorer.batches for pair in batch]
    assert len(pairs) == num_pairs(triples)
    for batch in scorer.batches:  # those of a picture side by side, and the same object
        pictures = [image for image, _ in batch]
        assert len(set(pictures)) == 1 + sum(map(int.__ne__, pictures, pictures[1:]))
    for row, found in zip(triples, logits, strict=True):
        light = np.asarray(row["image"].convert("RGB")).mean() / 255
        np.testing.assert_allclose(found, [len(row[n]) - light for n in CAPTION_COLUMNS], atol=1e-4)
    again = Letters()
    np.testing.assert_array_equal(score(again, triples), logits)
    assert again.batches == []


def test_logits_of_pairs_of_another_shape_are_refused(triples):
    class Wrong(Letters):
        def score_pairs(self, images, captions):
            return [[0.0]] * len(captions)

    with pytest.raises(ValueError, match=r"one logit per pair, of shape \(\d+,\), got \(\d+, 1\)"):
        score(Wrong(), triples)


def test_a_function_gets_the_pairs_it_needs_unless_it_asks_for_more(triples):
    calls = []

    def lengths(images, captions):
        calls.append((len(images), len(captions)))
        return [[len(caption) / image.width for caption in captions] for image in images]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = score(lengths, triples)
    assert sum(images * captions for images, captions in calls) == num_pairs(triples)
    calls.clear()
    np.testing.assert_allclose(score(lengths, triples, batch_size=4), logits)
    assert [images for images, _ in calls] == [4, 4, 2]


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"device": "cpu"}, {"preprocessing": "openai"}]
)
@pytest.mark.parametrize("model", [Colours(), Letters(), lambda images, captions: 0])
def test_settings_that_would_not_be_heeded_are_refused(triples, model, options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"Expected {name} to be left out .* got '{value}'"):
        score(model, triples, **options)


@pytest.mark.parametrize("model", [Colours(), Letters(), lambda images, captions: [[1, 0, 2]]])
def test_results_of_what_is_no_model_of_transformers_travel_whole(benchmark, tmp_path, model):
    result = evaluate(model, benchmark, progress=False)
    result.save(tmp_path / "result")
    loaded = EvaluationResult.load(tmp_path / "result")
    assert loaded.metrics == result.metrics
    assert render_table(loaded).row_count >= 3
    assert f"model:{result.signature['model']['id']}|" in loaded.signature_line
    page = write_report([loaded], tmp_path / "page", dataset=benchmark)
    assert page.stat().st_size > 10_000


def test_pairs_both_ways_are_scored_once(triples):
    pictures = triples.select(range(0, 40, 4))
    rows = Dataset.from_dict(
        {
            "image_0": pictures[:5]["image"],
            "image_1": pictures[5:]["image"],
            "caption_0": [f"one {row}" for row in range(5)],
            "caption_1": [f"another {row}" for row in range(5)],
        },
        features=Features(
            {f"image_{n}": Image() for n in (0, 1)}
            | {f"caption_{n}": Value("string") for n in (0, 1)}
        ),
    )
    scorer = Letters()
    columns = Columns(pairs=[("image_0", "caption_0"), ("image_1", "caption_1")])
    logits = score(scorer, rows, columns=columns)
    assert logits.shape == (20, 2)
    assert sum(map(len, scorer.batches)) == 20  # each of both pictures with each of both captions
