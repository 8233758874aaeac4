"""Publish a built folder to a Hub on loopback, load it back by its id, and say what that takes.

    python benchmarks/hub_round.py REPLACE

Prints the bytes of the Parquet files against those of the distinct images, and the seconds to
publish, and to load and iterate over all rows (every image decoded): from the repository's id in a
new cache, streaming and not, and from the folder.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hub"))
from stand_in_hub import WRITER, StandInHub

ITERATE = """
import sys, time
import datasets
start = time.perf_counter()
splits = datasets.load_dataset(sys.argv[1], streaming=sys.argv[2] == "streaming")
loaded = time.perf_counter()
count = sum(row["image"].size is not None for rows in splits.values() for row in rows)
print(f"{loaded - start:7.1f} s to load, {time.perf_counter() - loaded:7.1f} s for {count:,} rows")
"""


def distinct_image_bytes(files: list[Path]) -> int:
    sizes = {}
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=256, columns=["image"]):
            for content in batch.column("image").field("bytes").unique():
                sizes[hashlib.sha256(content.as_py()).digest()] = len(content.as_py())
    return sum(sizes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    files = sorted(folder.glob("data/*.parquet"))
    parquet, images = sum(file.stat().st_size for file in files), distinct_image_bytes(files)
    print(f"Parquet {parquet:,} bytes, distinct images {images:,} bytes: {parquet / images:.4f}")
    with StandInHub() as hub, tempfile.TemporaryDirectory() as cache:
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0", "HF_HOME": f"{cache}/first"}
        publish = [sys.executable, "-m", "hard_positives", "publish", "dataset", folder, "org/data"]
        for _ in range(2):
            subprocess.run(
                ["bash", "-c", 'time -p "$@"', "_", *publish], env=environment, check=True
            )
        for source in ("org/data", str(folder)):
            for mode in ("streaming", "not streaming"):
                environment["HF_HOME"] = f"{cache}/{len(source)}{len(mode)}"
                command = [sys.executable, "-c", ITERATE, source, mode]
                print(f"{source}, {mode}: ", end="", flush=True)
                subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
