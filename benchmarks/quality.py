"""Draw edits by rules to be read and judged, and count what was judged.

    python benchmarks/quality.py --data DATA --part mending --round 0 --output READ.tsv
    python benchmarks/quality.py --data DATA --judged READ.tsv

DATA holds `coco_negatives/valid_neg_clip.tsv`. Half of its images are held back: their captions are
for judging alone, those of the other half for mending lexicon and rules. A round is a sample of its
own, the same on every call. In the column `fails` the reader names the criteria that an edit fails
(docs/trainer.md says what they are), with a blank between; the column stays empty for a good edit.

Without --output, no text is shown: how many captions get an edit, and how much of all replacing the
ten most frequent substitutions do.
"""

import argparse
import csv
import random
from collections import Counter, defaultdict
from pathlib import Path

from scipy.stats import binomtest

from hard_positives.generation.rules import Rules
from hard_positives.generation.run import TASKS, Edit, Task, changed_words, flaw_of, words_of

COLUMNS = ("line", "task", "category", "caption", "edit", "fails")
CRITERIA = {
    "hard_positive": ("meaning", "grammar", "usage"),
    "hard_negative": ("true", "grammar", "implausible"),
}


def captions_of(data: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The captions of each image, and the images in an order of their own."""
    captions = defaultdict(list)
    with (data / "coco_negatives" / "valid_neg_clip.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            captions[row["filepath"]].append(row["title"].strip())
    images = sorted(captions)
    random.Random(16).shuffle(images)
    return captions, images


def sample(data: Path, part: str, round_: int, number: int) -> list[str]:
    captions, images = captions_of(data)
    half = len(images) // 2
    images = images[:half] if part == "held-back" else images[half:]
    drawn = [caption for image in images for caption in captions[image]]
    return drawn[number * round_ : number * (round_ + 1)]


def edit_of(caption: str, task: Task) -> Edit:
    edit = Rules().edit(caption, task)
    flaw = edit.reason or flaw_of(caption, edit.caption, task)
    return Edit(reason=flaw) if flaw else edit


def write(captions: list[str], output: Path) -> None:
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for line, caption in enumerate(captions):
            for task in TASKS:
                edit = edit_of(caption, task)
                if edit.caption:
                    writer.writerow((line, task, edit.category, caption, edit.caption, ""))


def count(judged: Path) -> None:
    with judged.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for task in (*map(str, TASKS), "hard_positive", "hard_negative"):
        fails = [set(row["fails"].split()) for row in rows if row["task"].startswith(task)]
        criteria = CRITERIA[task[:13]]
        unknown = set().union(*fails) - set(criteria)
        if unknown:
            raise SystemExit(f"Expected {', '.join(criteria)} for {task}, got {unknown}.")
        for name in ("any", *criteria):
            good = sum(not fail if name == "any" else name not in fail for fail in fails)
            low, high = binomtest(good, len(fails)).proportion_ci(method="wilson")
            share = f"{good / len(fails):.1%} ({low:.1%} to {high:.1%})"
            print(f"{task}: not {name}: {good} of {len(fails)}, {share}")


def survey(data: Path) -> None:
    """Coverage by task, and whether few substitutions do most of the work."""
    captions = [caption for of in captions_of(data)[0].values() for caption in of]
    for task in TASKS:
        made = Counter()
        for caption in captions:
            edit = edit_of(caption, task)
            if edit.caption:
                old, new = changed_words(words_of(caption), words_of(edit.caption))
                made[f"{' '.join(old)} > {' '.join(new)}"] += 1
        print(f"{task}: {made.total():,} of {len(captions):,}, {made.total() / len(captions):.1%}")
        if task.kind == "replace":
            most = made.most_common(10)
            print(f"  ten substitutions: {sum(n for _, n in most) / made.total():.1%}")
            print("  " + ", ".join(f"{name} {n / made.total():.1%}" for name, n in most))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("mending", "held-back"), default="mending")
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--judged", type=Path)
    arguments = parser.parse_args()
    if arguments.judged:
        count(arguments.judged)
    elif arguments.output:
        drawn = sample(arguments.data, arguments.part, arguments.round, arguments.captions)
        write(drawn, arguments.output)
    else:
        survey(arguments.data)
