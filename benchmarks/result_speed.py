"""Time everything around a model: reading rows, metric, save, load, table and page.

    python benchmarks/result_speed.py --rows 56191             # triples, as REPLACE and SWAP are
    python benchmarks/result_speed.py --rows 250000 --ragged   # 1 to 5 positives, 1 to 8 negatives

The model is a few lines that draw random vectors, so that what is timed is all the rest. Captions
are distinct; every eight rows share a picture. Peak memory is that of the process so far.
"""

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from hard_positives import Columns, EvaluationResult, evaluate, render_table, write_report

DIMENSIONS = 16
COLUMNS = Columns(positives=["positives"], negatives=["negatives"])


class RandomVectors:
    """An embedder that knows each input again, and nothing of it."""

    def embed_images(self, images: list) -> np.ndarray:
        """Embed pictures: (n, D)."""
        return np.stack([self._vector(image.tobytes()) for image in images])

    def embed_captions(self, captions: list[str]) -> np.ndarray:
        """Embed captions: (n, D)."""
        return np.stack([self._vector(caption.encode()) for caption in captions])

    def describe(self) -> dict:
        """Say what this is."""
        return {"id": "random vectors"}

    def _vector(self, content: bytes) -> np.ndarray:
        return np.frombuffer(hashlib.sha256(content).digest()[:DIMENSIONS], np.int8).astype(float)


def write_rows(folder: Path, num_rows: int, ragged: bool) -> None:
    """Write a dataset of pictures of noise and numbered captions, in eight categories."""
    random = np.random.default_rng(0)
    paths = []
    for place in range(num_rows // 8 + 1):
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        paths.append(str(folder / f"{place}.png"))
        PILImage.fromarray(pixels).save(paths[-1])
    most = (5, 8) if ragged else (1, 1)
    counts = [random.integers(1, top + 1, num_rows) for top in most]
    kept = 2 if not ragged else 0  # triples: two positives
    table = {
        "image": [paths[row // 8] for row in range(num_rows)],
        "category": [f"kind {row % 8}" for row in range(num_rows)],
        "positives": [
            [f"row {row} positive {place}" for place in range(kept or count)]
            for row, count in enumerate(counts[0])
        ],
        "negatives": [
            [f"row {row} negative {place}" for place in range(count)]
            for row, count in enumerate(counts[1])
        ],
    }
    texts = List(Value("string"))
    features = Features(
        {"image": Image(), "category": Value("string"), "positives": texts, "negatives": texts}
    )
    (folder / "data").mkdir()
    rows = Dataset.from_dict(table, features=features)
    rows.to_parquet(folder / "data" / "test-00000-of-00001.parquet")


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {what} | {seconds:.2f} | {peak:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=56_191)
    parser.add_argument("--ragged", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, output = Path(place, "rows"), Path(place, "result")
        folder.mkdir()
        write_rows(folder, options.rows, options.ragged)
        print("| stage | seconds | peak memory, GB |\n|---|---|---|")
        with timed("evaluate: rows read, scored by random vectors"):
            result = evaluate(RandomVectors(), folder, columns=COLUMNS, cache=False, progress=False)
        with timed("metric, both views"):
            metrics = result.metrics
        with timed("save"):
            result.save(output)
        with timed("load"):
            loaded = EvaluationResult.load(output)
        with timed("metric, of what was loaded"):
            assert loaded.metrics == metrics
        with timed("table"):
            render_table(loaded)
        with timed("page"):
            page = write_report([loaded], Path(place, "page"), dataset=folder)
        size = page.stat().st_size / 1e6
        candidates = len(result.scores["labels"].combine_chunks().flatten())
        about = f"{len(result.scores):,} comparisons, {candidates:,} candidates"
        print(f"\n{about}; a page of {size:.1f} MB")


if __name__ == "__main__":
    main()
