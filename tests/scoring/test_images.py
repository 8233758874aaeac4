"""Prepared images, kept for the next model of the same preparation."""

import os

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from hard_positives import evaluate_all
from hard_positives.machine import Options
from hard_positives.models import pixels
from hard_positives.models.loading import load_model
from hard_positives.scoring import images
from hard_positives.scoring.cache import list_cache, trim_cache
from hard_positives.scoring.score import score_comparisons
from hard_positives.suite.comparisons import read_comparisons

KEEPING = Options(keep_images=True, progress=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def another_clip(tiny_clip, tmp_path):
    """The same processor, other weights."""
    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)
    torch.nn.init.normal_(model.visual_projection.weight)
    model.save_pretrained(tmp_path / "another")
    AutoProcessor.from_pretrained(tiny_clip, backend="pil").save_pretrained(tmp_path / "another")
    return tmp_path / "another"


@pytest.fixture
def opened(monkeypatch) -> list[int]:
    """Places of the pictures that were decoded in order to be prepared."""
    open_image, places = images.open_image, []

    def noting(comparisons, place):
        places.append(place)
        return open_image(comparisons, place)

    monkeypatch.setattr(images, "open_image", noting)
    return places


def logits_of(model, rows, options=KEEPING) -> np.ndarray:
    return score_comparisons(load_model(model), read_comparisons(rows), options)


def test_a_model_of_the_same_preparation_decodes_nothing(tiny_clip, another_clip, triples, opened):
    logits_of(tiny_clip, triples)
    assert sorted(opened) == list(range(10))
    opened.clear()
    found = logits_of(another_clip, triples)
    assert opened == []
    expected = logits_of(another_clip, triples, Options(cache=False, progress=False))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_keep_and_find_them_too(tiny_clip, another_clip, triples, own_cache, num_workers):
    options = Options(num_workers=num_workers, keep_images=True, progress=False)
    logits_of(tiny_clip, triples, options)
    assert len(list(own_cache.glob("images-*/*.safetensors"))) == 10
    found = logits_of(another_clip, triples, options)
    expected = logits_of(another_clip, triples, Options(cache=False, progress=False))
    np.testing.assert_array_equal(found, expected)


def test_they_are_kept_where_that_is_asked_for_only(tiny_clip, triples, own_cache):
    logits_of(tiny_clip, triples, Options(progress=False))
    assert not list(own_cache.glob("images-*"))
    logits_of(tiny_clip, triples, Options(cache=False, keep_images=True, progress=False))
    assert not list(own_cache.glob("images-*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"",
        lambda content: content[:31],
    ],
)
def test_a_damaged_file_is_made_again(tiny_clip, another_clip, triples, own_cache, opened, damage):
    logits_of(tiny_clip, triples)
    path = sorted(own_cache.glob("images-*/*.safetensors"))[3]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    opened.clear()
    found = logits_of(another_clip, triples)
    assert len(opened) == 1
    expected = logits_of(another_clip, triples, Options(cache=False, progress=False))
    np.testing.assert_array_equal(found, expected)
    assert path.read_bytes() == whole


def test_a_file_of_another_picture_is_not_believed(
    tiny_clip, another_clip, triples, own_cache, opened
):
    logits_of(tiny_clip, triples)
    one, two = sorted(own_cache.glob("images-*/*.safetensors"))[:2]
    one.write_bytes(two.read_bytes())
    opened.clear()
    logits_of(another_clip, triples)
    assert len(opened) == 1


def test_another_preparation_has_a_folder_of_its_own(tiny_clip, triples, own_cache, opened):
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    comparisons = read_comparisons(triples)
    score_comparisons(load_model(tiny_clip), comparisons, KEEPING)
    processor.image_processor.resample = 2
    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)
    other = load_model(model, processor=processor)
    opened.clear()
    score_comparisons(other, comparisons, KEEPING)
    assert len(opened) == 10
    openai = load_model(tiny_clip, preprocessing="openai")
    score_comparisons(openai, comparisons, KEEPING)
    assert len(opened) == 20
    assert len(list(own_cache.glob("images-*"))) == 3


def test_other_versions_of_the_libraries_have_a_folder_of_their_own(tiny_clip, monkeypatch):
    preparation = load_model(tiny_clip).preparation([])
    before = preparation.name
    assert preparation.name == before
    monkeypatch.setattr("hard_positives.models.identity._versions", lambda: {"pillow": "0"})
    assert preparation.name != before


def test_what_is_no_bytes_is_not_kept(tiny_clip, triples, own_cache, monkeypatch):
    monkeypatch.setattr(pixels, "_is_the_same", lambda *parts: False)
    logits_of(tiny_clip, triples)
    assert not list(own_cache.glob("images-*"))


def test_a_folder_that_cannot_be_written_to_changes_nothing(tiny_clip, triples, own_cache):
    expected = logits_of(tiny_clip, triples, Options(cache=False, progress=False))
    own_cache.mkdir()
    name = load_model(tiny_clip).preparation([]).name
    (own_cache / f"images-{name[:32]}").write_text("a file in its place")
    np.testing.assert_array_equal(logits_of(tiny_clip, triples), expected)


def test_they_are_listed_and_removed_with_the_cache(tiny_clip, triples, own_cache):
    logits_of(tiny_clip, triples)
    assert "prepared images" in {kept.name for kept in list_cache()}
    trim_cache(0)
    assert not os.listdir(own_cache)


def test_several_models_of_one_call_share_them(tiny_clip, another_clip, triples, tmp_path, opened):
    folder = tmp_path / "rows"
    (folder / "data").mkdir(parents=True)
    triples.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    evaluate_all([tiny_clip, another_clip], [folder], tmp_path / "out", progress=False)
    assert len(opened) == 10
