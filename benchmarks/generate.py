"""Measure generation by rules: captions a second, memory, kills, agreement with the authors.

    python benchmarks/generate.py --data DATA --captions 1000000 --workers 2
    python benchmarks/generate.py --data DATA --captions 40000 --kills 10

DATA holds `coco_negatives/valid_neg_clip.tsv` and `replace/{original,hard_positive}/*.json`. The
beginnings of their captions meet the ends of others, so that a million are all different, and as
long as captions are. Memory is what a process has for itself (RssAnon), sampled five times a
second. With --kills another run is killed with SIGKILL so many times, spread over all of it, each
time at a random moment after a chunk has been kept, and must end in the same bytes.
"""

import argparse
import csv
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil
from datasets import load_dataset

from hard_positives.generation.captions import read_captions
from hard_positives.generation.rules import Rules, slots, substitute
from hard_positives.generation.run import TASKS, generate
from hard_positives_dataset.annotations import read_annotation_dir, read_triples

CHUNKS = 50  # at least, so that there are some to be killed between
KILLED_RUN = """
import sys
from hard_positives import Rules, generate, read_captions

captions, output, chunk_size, workers = sys.argv[1:]
Rules.chunk_size = int(chunk_size)
generate(read_captions(captions), output, Rules(), workers=int(workers), progress=False)
"""


def write_captions(data: Path, number: int, path: Path) -> None:
    with (data / "coco_negatives" / "valid_neg_clip.tsv").open(encoding="utf-8") as file:
        captions = [row["title"].strip(" .\n") for row in csv.DictReader(file, delimiter="\t")]
    contents = read_annotation_dir(data / "replace", ("replace",))
    captions += [triple.caption for triple in read_triples(contents, "replace")]
    middle = re.compile(
        " (?=(?:on|in|with|at|near|of|by|next|under|behind|and|while|for|to|over) )"
    )
    parts = [middle.split(caption, maxsplit=1) for caption in captions if middle.search(caption)]
    heads, tails = (list(dict.fromkeys(column)) for column in zip(*parts, strict=True))
    with path.open("w", encoding="utf-8") as file:
        for place in range(number):
            again, head = divmod(place, len(heads))
            print(heads[head], tails[(7919 * again + place) % len(tails)], file=file)


def measure(path: Path, folder: Path, workers: int, shown: int) -> None:
    start = time.perf_counter()
    with memory_peaks() as peaks:
        source = read_captions(path)
        output = generate(source, folder / "train", Rules(), workers=workers)
    seconds = time.perf_counter() - start
    counts = json.loads((output / "generation.json").read_text())["counts"]
    rows = load_dataset(str(output), split="train", cache_dir=str(folder / "cache"))
    print(f"{len(source):,} captions -> {len(rows):,} rows, {workers} processes")
    times = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    core_seconds = sum(used.ru_utime + used.ru_stime for used in times)
    print(f"{len(source) / core_seconds:,.0f} captions a second of one core's time")
    print(f"{seconds:.1f} s: {len(source) / seconds:,.0f} captions/s")
    print(f"{len(rows) / seconds:,.0f} rows/s")
    for name, peak in peaks.items():
        print(f"peak memory of {name}: {peak / 2**20:,.0f} MiB")
    for task, numbers in counts.items():
        print(f"{task}: {numbers['edited'] / len(source):.1%} edited")
    for place in random.Random(0).sample(range(len(rows)), shown):
        row = rows[place]
        print(f"\n  {row['caption']}\n  [{row['category']}]")
        print(f"  + {row['hard_positive']}\n  - {row['hard_negative']}")


@contextmanager
def memory_peaks() -> Iterator[dict[str, int]]:
    """The most that this process, and the largest of its workers, had for themselves, in bytes."""
    peaks, ended, this = {"this process": 0, "the largest worker": 0}, Event(), psutil.Process()

    def own(process: psutil.Process) -> int:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            return 0
        return memory.rss - memory.shared

    def sample() -> None:
        while not ended.wait(0.2):
            workers = [own(worker) for worker in this.children()]
            for name, most in zip(peaks, (own(this), max(workers, default=0)), strict=True):
                peaks[name] = max(peaks[name], most)

    thread = Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def kill(path: Path, folder: Path, workers: int, kills: int, number: int) -> None:
    """Exits with 1 where the bytes are others than those of the run that nobody killed."""
    killed = folder / "killed"
    command = [sys.executable, "-c", KILLED_RUN, path, killed, str(Rules.chunk_size), str(workers)]
    chunks = -(-number // Rules.chunk_size)
    start, moments, standing = time.perf_counter(), random.Random(0), []
    for place in range(1, kills + 1):
        process, began = subprocess.Popen(command), time.perf_counter()
        before, wanted = parts_of(killed), place * chunks // (kills + 1)
        while process.poll() is None and parts_of(killed) <= max(before, wanted - 1):
            time.sleep(0.02)
        chunk_seconds = (time.perf_counter() - began) / max(1, parts_of(killed) - before)
        try:
            process.wait(moments.uniform(0, chunk_seconds))
            break  # done already
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        standing.append(parts_of(killed))
    subprocess.run(command, check=True)
    print(f"{len(standing)} kills; chunks of {chunks} that stood after each: {standing}")
    print(f"killed and resumed: {time.perf_counter() - start:.1f} s")
    same = files_of(folder / "train") == files_of(killed)
    print("The set has the same bytes." if same else "The set has OTHER bytes.")
    sys.exit(not same)


def parts_of(output: Path) -> int:
    return len(list(output.with_name(f".{output.name}.parts").glob("part-*.parquet")))


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def compare(data: Path) -> None:
    """How often the rules make the very hard positive that the authors published."""
    contents = read_annotation_dir(data / "replace", ("replace",))
    rules, counts, differences = Rules(), Counter(), Counter()
    for triple in read_triples(contents, "replace"):
        ours = rules.edit(triple.caption, TASKS[0]).caption
        offered = {
            substitute(triple.caption, slot, words)
            for slot in slots(triple.caption)
            for words in slot.hard_positive
        }
        outcome = "no edit" if ours is None else "another edit"
        outcome = "offered, another one chosen" if triple.hard_positive in offered else outcome
        outcome = "equal" if ours == triple.hard_positive else outcome
        counts[triple.category, outcome] += 1
        if outcome in ("no edit", "another edit"):
            differences[triple.category, outcome, triple.substitution] += 1
    totals = Counter(category for category, _ in counts.elements())
    for (category, outcome), number in sorted(counts.items()):
        print(f"{category}: {outcome}: {number:,} ({number / totals[category]:.1%})")
    equal = sum(number for (_, outcome), number in counts.items() if outcome == "equal")
    print(f"both: equal: {equal:,} ({equal / counts.total():.1%})")
    for (category, outcome, substitution), number in differences.most_common(20):
        print(f"  {number:6,}  {category}: {substitution}: {outcome}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--shown", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "captions.txt"
        write_captions(arguments.data, arguments.captions, source)
        if arguments.kills:
            Rules.chunk_size = min(Rules.chunk_size, max(1, arguments.captions // CHUNKS))
        measure(source, Path(scratch), arguments.workers, arguments.shown)
        if arguments.kills:
            kill(source, Path(scratch), arguments.workers, arguments.kills, arguments.captions)
    compare(arguments.data)
