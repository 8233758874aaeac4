"""Measure generation by rules: captions a second, memory, shares, agreement with the authors.

    python benchmarks/generate.py --data DATA --captions 100000 --workers 2

DATA holds `coco_negatives/valid_neg_clip.tsv` and `replace/{original,hard_positive}/*.json`. The
4,839 COCO captions of the first are repeated, each time with one more full stop at the end, so that
no cache helps. For captions a second of one process give --workers 1.
"""

import argparse
import csv
import json
import random
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

from datasets import Dataset, load_dataset

from hard_positives.generation.captions import read_captions
from hard_positives.generation.rules import Rules, slots, substitute
from hard_positives.generation.run import TASKS, generate
from hard_positives_dataset.annotations import read_annotation_dir, read_triples


def coco_captions(data: Path, number: int) -> list[str]:
    with (data / "coco_negatives" / "valid_neg_clip.tsv").open(encoding="utf-8") as file:
        titles = [row["title"].strip(" .\n") for row in csv.DictReader(file, delimiter="\t")]
    return [titles[i % len(titles)] + "." * (i // len(titles)) for i in range(number)]


def measure(captions: list[str], workers: int, shown: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = read_captions(Dataset.from_dict({"caption": captions}))
        start = time.perf_counter()
        output = generate(source, Path(folder) / "train", Rules(), workers=workers)
        seconds = time.perf_counter() - start
        counts = json.loads((output / "generation.json").read_text())["counts"]
        rows = load_dataset(str(output), split="train", cache_dir=folder)
        print(f"{len(captions):,} captions -> {len(rows):,} rows, {workers} processes")
        times = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        core_seconds = sum(used.ru_utime + used.ru_stime for used in times)
        print(f"{len(captions) / core_seconds:,.0f} captions a second of one core's time")
        print(f"{seconds:.1f} s: {len(captions) / seconds:,.0f} captions/s")
        print(f"{len(rows) / seconds:,.0f} rows/s")
        for name, who in (("this process", "SELF"), ("largest worker", "CHILDREN")):
            peak = resource.getrusage(getattr(resource, f"RUSAGE_{who}")).ru_maxrss
            print(f"peak memory of {name}: {peak / 1024:,.0f} MiB")
        for task, numbers in counts.items():
            print(f"{task}: {numbers['edited'] / len(captions):.1%} edited")
        for place in random.Random(0).sample(range(len(rows)), shown):
            row = rows[place]
            print(f"\n  {row['caption'].rstrip('.')}\n  [{row['category']}]")
            print(f"  + {row['hard_positive']}\n  - {row['hard_negative']}")


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
    parser.add_argument("--shown", type=int, default=50)
    arguments = parser.parse_args()
    measure(coco_captions(arguments.data, arguments.captions), arguments.workers, arguments.shown)
    compare(arguments.data)
