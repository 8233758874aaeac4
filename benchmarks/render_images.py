"""Render one JPEG for every image that the REPLACE annotations name.

Stand-ins for Visual Genome's 15 GB where only their number, sizes and paths matter: soft shapes and
grain in the dimensions and file sizes of photographs. An image depends on its path alone, so that
any machine renders the same pixels. They show nothing that a caption says.

    python benchmarks/render_images.py --annotations published --output images
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Sequence
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

FILES = ("vl_checklist_attributes.json", "vl_checklist_relations.json")
SIZES = ((500, 375), (500, 333), (375, 500), (500, 400), (640, 480), (500, 281), (333, 500))


def image_paths(annotation_dir: Path) -> list[str]:
    folders = [annotation_dir / name for name in ("original", "data")]
    folder = next(folder for folder in folders if folder.is_dir())
    rows = [row for name in FILES for row in json.loads((folder / name).read_bytes())]
    return list(dict.fromkeys(row["image_path"] for row in rows))


def render(image_path: str, sizes: Sequence[tuple[int, int]] = SIZES) -> Image.Image:
    seed = int.from_bytes(hashlib.sha256(image_path.encode()).digest()[:8], "big")
    random = np.random.default_rng(seed)
    width, height = sizes[random.integers(len(sizes))]
    pixels = np.zeros((height, width, 3), np.float32)
    # Noise of several scales: what gives a photograph's JPEG its size.
    for cells, weight in ((4, 70), (12, 40), (40, 25)):
        coarse = random.integers(0, 256, (cells, cells, 3), np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
        pixels += (np.asarray(layer, np.float32) - 128) * (weight / 64)
    grain = random.integers(-1, 2, (height, width, 1), np.int8) * random.uniform(6, 16)
    return Image.fromarray(np.clip(pixels + grain + 128, 0, 255).astype(np.uint8))


def save(task: tuple[str, Path]) -> int:
    image_path, path = task
    temporary = path.with_suffix(".part")
    render(image_path).save(temporary, "JPEG", quality=85)
    os.replace(temporary, path)
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True, help="folder with original/")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, help="render only the first so many images")
    options = parser.parse_args()
    start = time.perf_counter()
    paths = image_paths(options.annotations)[: options.images]
    tasks = [(path, options.output / path) for path in paths]
    for folder in {path.parent for _, path in tasks}:
        folder.mkdir(parents=True, exist_ok=True)
    with Pool() as pool:
        size = sum(pool.imap_unordered(save, tasks, chunksize=32))
    seconds = time.perf_counter() - start
    each = size / len(tasks) / 1e3
    print(f"{len(tasks)} images, {size / 1e6:.0f} MB, {each:.0f} kB each, {seconds:.0f} s")


if __name__ == "__main__":
    main()
