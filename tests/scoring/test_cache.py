import hashlib
import os
import platform
import shutil
import threading

import numpy as np
import pytest
import safetensors.numpy

from hard_positives.scoring.cache import EmbeddingCache, cache_root, list_cache, trim_cache


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path))
    return tmp_path


def digests(*keys: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), -1)


def filled(folder, *, seed: int = 0, rows: int = 3) -> EmbeddingCache:
    cache = EmbeddingCache(folder)
    embeds = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    cache.add(digests(*(f"{seed:02x}{row:02x}" for row in range(rows))), embeds)
    return cache


def found(cache: EmbeddingCache) -> list[str]:
    """Which of the digests that `filled` uses with the seeds 0 and 1 are there."""
    keys = [f"{seed:02x}{row:02x}" for seed in (0, 1) for row in range(3)]
    return [key for key, here in zip(keys, cache.find(digests(*keys))[0], strict=True) if here]


def test_what_was_added_is_found_and_nothing_else(root):
    cache = filled(root / "model")
    filled(root / "model", seed=1)
    here, embeds = cache.find(digests("0102", "aaaa", "0000"))
    assert here.tolist() == [True, False, True]
    expected = [np.random.default_rng(s).normal(size=(3, 4)).astype(np.float32) for s in (1, 0)]
    np.testing.assert_array_equal(embeds, [expected[0][2], expected[1][0]])


def test_an_empty_folder_holds_nothing(root):
    here, embeds = EmbeddingCache(root / "none").find(digests("0000"))
    assert (here.tolist(), len(embeds)) == ([False], 0)
    assert list_cache() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: b"",
    ],
)
def test_a_damaged_chunk_is_removed_and_the_others_stay(root, damage):
    cache = filled(root / "model")
    (chunk,) = (root / "model").glob("*.safetensors")
    filled(root / "model", seed=1)
    chunk.write_bytes(damage(chunk.read_bytes()))
    assert found(cache) == ["0100", "0101", "0102"]
    assert not chunk.exists()


def test_a_foreign_file_does_not_pass_for_a_chunk(root):
    cache = filled(root / "model")
    (chunk,) = (root / "model").glob("*.safetensors")
    (root / "model" / "mine.safetensors").write_bytes(chunk.read_bytes())
    assert len(found(cache)) == 3
    assert not (root / "model" / "mine.safetensors").exists()


def test_a_half_written_chunk_does_not_count(root):
    cache = filled(root / "model")
    (root / "model" / "0123.partial").write_bytes(b"half of a chunk")
    assert len(found(cache)) == 3


def test_the_models_used_longest_ago_are_removed_first(root):
    for age, name in enumerate(["new", "middle", "old"]):
        filled(root / name)
        os.utime(root / name, (1e9 - age, 1e9 - age))
    size = list_cache()[0].size
    assert [model.folder.name for model in trim_cache(2 * size)] == ["old"]
    found(EmbeddingCache(root / "middle"))  # used just now
    assert [model.folder.name for model in trim_cache(size)] == ["new"]
    assert [model.folder.name for model in trim_cache(0)] == ["middle"]
    assert list_cache() == []


def test_the_cache_stands_beside_the_hubs_where_nothing_else_is_said(monkeypatch):
    monkeypatch.delenv("HARD_POSITIVES_CACHE", raising=False)
    assert cache_root().name == "hard_positives"
    assert str(cache_root().parent) == os.environ["HF_HOME"]


def test_what_is_no_chunk_within_is_removed_though_its_name_is_right(root):
    cache = filled(root / "model")
    for content in (b"no safetensors at all", safetensors.numpy.save({"digests": np.ones(3)})):
        path = root / "model" / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        path.write_bytes(content)
    assert len(found(cache)) == 3
    assert len(list((root / "model").glob("*.safetensors"))) == 1


def test_a_cache_that_others_empty_all_the_time_raises_nothing(root):
    cache, done = EmbeddingCache(root / "model"), threading.Event()

    def empty():
        while not done.is_set():
            shutil.rmtree(root / "model", ignore_errors=True)

    thread = threading.Thread(target=empty)
    thread.start()
    try:
        for round_ in range(300):
            filled(root / "model", seed=round_ % 2)
            found(cache)
            list_cache()
    finally:
        done.set()
        thread.join()
    shutil.rmtree(root / "model", ignore_errors=True)  # the last round may have outlived the thread
    filled(root / "model")
    assert found(cache) == ["0000", "0001", "0002"]


def test_the_size_counts_what_killed_writers_left_and_the_next_chunk_removes_it(root):
    filled(root / "model")
    before = list_cache()[0].size
    left = root / "model" / f".chunk.{platform.node()}.{2**22 + 1}.{'0' * 32}.partial"
    left.write_bytes(bytes(1000))
    assert list_cache()[0].size == before + 1000
    filled(root / "model", seed=1)
    assert not left.exists()
