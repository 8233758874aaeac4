"""Time the scorer against the published loop, one pass a row, and the floor, side by side.

    python benchmarks/random_clip.py --output random_clip
    python benchmarks/scoring_speed.py --model random_clip --dataset REPLACE --rows 2000

Every way scores the same rows (drawn by image, so that they repeat themselves as the whole does)
with the same weights, in a process of its own. Imports and loading the model are not timed.

* published: the loop of the published script written anew: rows twice, image and two captions each
  time, batches of 16, captions padded to 77 tokens.
* per row: one pass over the rows, image and three captions each, as most toolkits do.
* ours, cold and cached: ``hard_positives.score``, with an empty cache and with a full one.
* ours, next: the same with an empty cache, but for the images that another model has prepared.
* floor: forward passes on ready tensors of exactly the distinct inputs, at the best batch size.
* decode: reading and preparing the distinct images alone, with the workers of "ours".

On a GPU, "busy" is the time that its kernels and copies take, seen by torch's profiler in a run
more, as a share of the seconds of the run without it.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import groupby

WAYS = ("published", "per row", "ours, cold", "ours, next", "ours, cached", "floor", "decode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True, help="folder from hard-positives build")
    parser.add_argument("--split", default="replace")
    parser.add_argument("--rows", type=int, help="at least so many rows, by image; all if left out")
    parser.add_argument("--repeats", type=int, default=3, help="of all but published and per row")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Run every way in a process of its own, in turns, and print the table."""
    results: dict[str, list[dict]] = {way: [] for way in options.ways}
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(options.repeats):
            for way in options.ways:
                if turn and way in ("published", "per row"):
                    continue
                results[way].append(run_apart(way, cache))
                print(f"{way}: {results[way][-1]}", file=sys.stderr)
    print_table(results)


def run_apart(way: str, cache: str) -> dict:
    environment = {**os.environ, "HARD_POSITIVES_CACHE": cache}
    command = [sys.executable, *sys.argv, "--way", way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_table(results: dict[str, list[dict]]) -> None:
    seconds = {
        way: statistics.median(run["seconds"] for run in runs) for way, runs in results.items()
    }
    ours = seconds.get("ours, cold")
    print(f"\n{machine()}\n")
    counted = ("images", "captions", "tokens")
    header = ["way", "seconds", "ours is", *counted, "images/s", "busy", "peak memory"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for way, runs in results.items():
        run = runs[0]
        ratio = f"{seconds[way] / ours:.2f} x as fast" if ours else ""
        cells = ["" if run[name] is None else f"{run[name]:,}" for name in counted]
        rate = f"{run['images'] / seconds[way]:.0f}" if run["images"] else ""
        busy = f"{statistics.median(run['busy'] for run in runs):.0%}" if "busy" in run else ""
        cells = [way, f"{seconds[way]:.1f}", ratio, *cells, rate, busy, f"{run['peak_mb']:,} MB"]
        print(f"| {' | '.join(cells)} |")


def machine() -> str:
    import torch

    names = ("torch", "transformers", "datasets", "pillow")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores ({platform.machine()}){gpu}; {packages}"


def measure(options: argparse.Namespace) -> dict:
    """Time one way; what it encoded is counted where the towers are called, not told by the way."""
    from datasets import load_dataset

    from hard_positives.models.loading import load_model

    rows = load_dataset(options.dataset, split=options.split)
    if options.rows:
        rows = rows.select(range(by_image(rows["image_id"], options.rows)))
    encoder = load_model(options.model, dtype=options.dtype)
    seen = watch(encoder, options.way)
    seconds = RUNNERS[options.way](encoder, rows)
    if options.way == "floor":  # tries batch sizes first
        seen = dict.fromkeys(seen)
    result = {"seconds": round(seconds, 2), **seen}
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if encoder.device.type == "cuda" and options.way != "floor":
        result["busy"] = gpu_seconds(lambda: RUNNERS[options.way](encoder, rows)) / seconds
    return result


def gpu_seconds(run: Callable[[], object]) -> float:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6


def by_image(image_ids: list[str], least: int) -> int:
    """Return how many rows from the start hold at least ``least``, all rows of every image."""
    total = 0
    for _, group in groupby(image_ids):
        if total >= least:
            break
        total += len(list(group))
    return total


def watch(encoder, way: str) -> dict[str, int]:
    """Count what the towers get.

    By hooks; for ours, whose cache a hook would switch off, in the two methods that call them.
    """
    from hard_positives.models.encoders import DualEncoder

    seen = {"images": 0, "captions": 0, "tokens": 0}

    def saw_images(pixels):
        seen["images"] += len(pixels)

    def saw_captions(token_ids):
        seen["captions"] += len(token_ids)
        seen["tokens"] += sum(map(len, token_ids))

    if way.startswith("ours"):
        embed_images, embed_captions = DualEncoder.embed_images, DualEncoder.embed_captions

        def counted_images(self, inputs):
            saw_images(inputs["pixel_values"])
            return embed_images(self, inputs)

        def counted_captions(self, token_ids):
            saw_captions(token_ids)
            return embed_captions(self, token_ids)

        DualEncoder.embed_images, DualEncoder.embed_captions = counted_images, counted_captions
        return seen
    for tower, saw, name in (
        (encoder.model.vision_model, saw_images, "pixel_values"),
        (encoder.model.text_model, saw_captions, "input_ids"),
    ):
        tower.register_forward_pre_hook(
            lambda module, args, kwargs, saw=saw, name=name: saw(kwargs[name]), with_kwargs=True
        )
    return seen


def clock(function: Callable[[], object], encoder) -> float:
    import torch

    def wait() -> None:
        if encoder.device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    with torch.inference_mode():
        function()
    wait()
    return time.perf_counter() - start


def batches(rows, size: int) -> Iterator[list[dict]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def encode_rows(encoder, rows, columns: tuple[str, ...], size: int) -> None:
    """Encode image and captions of every row, repeats and all, captions padded to 77 tokens."""
    processor, model = encoder.processor, encoder.model
    for batch in batches(rows, size):
        pictures = [row["image"].convert("RGB") for row in batch]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        model.get_image_features(pixel_values=pixels.to(model.device, model.dtype))
        for column in columns:
            captions = [row[column] for row in batch]
            text = processor.tokenizer(
                captions, padding="max_length", max_length=77, return_tensors="pt"
            )
            model.get_text_features(**text.to(model.device)).pooler_output.cpu()


def run_published(encoder, rows) -> float:
    def loop() -> None:
        encode_rows(encoder, rows, ("hard_negative", "caption"), 16)
        encode_rows(encoder, rows, ("hard_negative", "hard_positive"), 16)

    return clock(loop, encoder)


def run_per_row(encoder, rows) -> float:
    columns = ("caption", "hard_positive", "hard_negative")
    return clock(lambda: encode_rows(encoder, rows, columns, 32), encoder)


def run_cold(encoder, rows) -> float:
    from hard_positives.scoring.cache import trim_cache

    trim_cache(0)
    return run_ours(encoder, rows)


def run_ours(encoder, rows) -> float:
    from hard_positives import score

    return clock(lambda: score(encoder.model, rows, processor=encoder.processor), encoder)


def run_next(encoder, rows) -> float:
    """Time a model after another one of the same preparation, as `evaluate_all` runs them."""
    import torch

    from hard_positives.machine import Options
    from hard_positives.models.encoders import DualEncoder
    from hard_positives.scoring.cache import trim_cache
    from hard_positives.scoring.score import score_comparisons
    from hard_positives.suite.comparisons import read_comparisons

    trim_cache(0)
    options = Options(keep_images=True)
    score_comparisons(encoder, read_comparisons(rows), options)
    with torch.no_grad():
        encoder.model.visual_projection.weight += 1e-3
    following = DualEncoder(encoder.model, encoder.processor)
    return clock(lambda: score_comparisons(following, read_comparisons(rows), options), encoder)


def run_floor(encoder, rows) -> float:
    """Time what the arithmetic takes at least: ready tensors, no padding, the best batch size."""
    import torch

    from hard_positives.suite.comparisons import read_comparisons

    index = read_comparisons(rows)
    by_length: dict[int, list[list[int]]] = {}
    for ids in encoder.processor.tokenizer(index.captions)["input_ids"]:
        by_length.setdefault(len(ids), []).append(ids)
    vision = encoder.model.config.vision_config
    pixels = torch.randn(256, 3, vision.image_size, vision.image_size)
    pixels = pixels.to(encoder.device, encoder.model.dtype)

    def images(size: int, total: int) -> None:
        for start in range(0, total, size):
            encoder.model.get_image_features(pixel_values=pixels[: min(size, total - start)])

    def captions(size: int) -> None:
        for ids in by_length.values():
            tensor = torch.tensor(ids, device=encoder.device)
            for part in tensor.split(size):
                encoder.model.get_text_features(input_ids=part)

    sizes = (16, 32, 64) if encoder.device.type == "cpu" else (64, 128, 256)
    images(sizes[0], sizes[0])  # warm up
    best = min(sizes, key=lambda size: clock(lambda: images(size, 128), encoder))
    total = len(index.pictures)
    seconds = clock(lambda: images(best, total), encoder)
    return seconds + min(clock(lambda size=size: captions(size), encoder) for size in (128, 256))


def run_decode(encoder, rows) -> float:
    from torch.utils.data import DataLoader

    from hard_positives.machine import cores
    from hard_positives.models.pixels import CHECKED
    from hard_positives.scoring.images import PreparedImages
    from hard_positives.suite.comparisons import read_comparisons
    from hard_positives.suite.rows import open_image

    on_cpu = encoder.device.type == "cpu"

    def loop() -> None:
        index = read_comparisons(rows)
        some = (open_image(index, place) for place in range(min(CHECKED, len(index.pictures))))
        files = PreparedImages(index, encoder.preparation(some).prepare)
        workers = min(16, cores())
        loader = DataLoader(
            files,
            batch_size=32 if on_cpu else 64,
            num_workers=workers,
            prefetch_factor=4,
            pin_memory=not on_cpu,
        )
        for _ in loader:
            pass

    return clock(loop, encoder)


RUNNERS = {
    "published": run_published,
    "per row": run_per_row,
    "ours, cold": run_cold,
    "ours, next": run_next,
    "ours, cached": run_ours,
    "floor": run_floor,
    "decode": run_decode,
}

if __name__ == "__main__":
    main()
