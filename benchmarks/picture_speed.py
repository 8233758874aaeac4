"""Count the pictures that are prepared per second of one core, by whole image processors and cut.

    python benchmarks/picture_speed.py
    python benchmarks/picture_speed.py --processor openai/clip-vit-base-patch32 --images folder

One worker decodes and prepares the same JPEGs for this process, as when scoring; both ways in
turns. Seconds are those of the processor, of both processes together, so that other work on the
machine counts little. A worker's are told apart: where it is what a run waits for, they matter.

* whole: the worker runs the image processor to its end, and sends floats.
* cut: the worker sends bytes, and this process looks up their floats.
"""

import argparse
import io
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from render_images import render
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, CLIPImageProcessorPil, SiglipImageProcessorPil

from hard_positives.machine import keep_freed_memory
from hard_positives.models.pixels import CHECKED, cut_in_two, look_up
from hard_positives.models.preprocessing import choose_image_processor
from hard_positives.suite.rows import decode_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processor", help="Hub id or folder; CLIP's and SigLIP's if left out")
    parser.add_argument("--images", type=Path, help="folder of JPEGs; rendered if left out")
    parser.add_argument("--number", type=int, default=320)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    files = read_files(options.images, options.number)
    print(f"{len(files)} JPEGs of {sum(map(len, files)) / len(files) / 1e3:.0f} kB on average\n")
    print("| processor | whole | the worker | cut | the worker | pictures/s | kB sent |")
    print(f"|{'---|' * 7}")
    for name, processor in processors(options.processor).items():
        print(f"| {' | '.join([name, *measure(processor, files, options.turns)])} |", flush=True)


def read_files(folder: Path | None, number: int) -> list[bytes]:
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:number]]
    files = []
    for place in range(number):
        buffer = io.BytesIO()
        render(f"{place}.jpg").save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue())
    return files


def processors(name: str | None) -> dict[str, Callable]:
    if name is not None:
        return {name: AutoImageProcessor.from_pretrained(name, backend="pil")}
    clip = CLIPImageProcessorPil()
    openai = choose_image_processor(clip, "openai")
    return {"CLIP": clip, "CLIP, openai": openai, "SigLIP": SiglipImageProcessorPil()}


@dataclass(frozen=True)
class Prepared(torch.utils.data.Dataset):
    """The pictures of some files; as `PreparedImages`, without rows."""

    files: list[bytes]
    processor: Callable

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> torch.Tensor:
        image = decode_image({"bytes": self.files[place], "path": None}, place)
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


def measure(whole: Callable, files: list[bytes], turns: int) -> list[str]:
    """Return the cells of one row: milliseconds and kB per picture, pictures per second."""
    some = (decode_image({"bytes": file, "path": None}, 0) for file in files[:CHECKED])
    halves = cut_in_two(whole, some)
    cut, floats = halves.prepare.image_processor, halves.floats
    if floats is None:
        raise SystemExit("Expected a processor that can be cut in two, got one that stays whole.")

    def run(processor: Callable, finish: Callable) -> list[torch.Tensor]:
        loader = DataLoader(Prepared(files, processor), batch_size=16, num_workers=1)
        return [finish(batch)[0].clone() for batch in loader]

    ways = {
        "whole": lambda: run(whole, lambda batch: batch),
        "cut": lambda: run(cut, lambda batch: look_up(batch, floats)),
    }
    assert all(map(torch.equal, ways["whole"](), ways["cut"]()))
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, prepare_all in ways.items():
            before = os.times()
            prepare_all()
            pairs = zip(before, os.times(), strict=True)
            spent = [(after - start) / len(files) for start, after in pairs]
            seconds[way].append((sum(spent[:4]), sum(spent[2:4])))  # the last two: ended workers
    both = {way: statistics.median(total for total, _ in times) for way, times in seconds.items()}
    worker = {way: statistics.median(part for _, part in times) for way, times in seconds.items()}
    sizes = [Prepared(files, processor)[0].nbytes / 1e3 for processor in (whole, cut)]
    return [
        *(f"{of[way] * 1e3:.2f} ms" for way in ways for of in (both, worker)),
        f"{1 / both['whole']:.0f} -> {1 / both['cut']:.0f} ({both['whole'] / both['cut']:.2f} x)",
        " -> ".join(f"{size:.0f}" for size in sizes),
    ]


if __name__ == "__main__":
    main()
