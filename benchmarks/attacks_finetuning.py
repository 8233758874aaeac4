"""Damage what a fine-tuning run resumes from, one bit at a time, and count what is noticed.

    python benchmarks/attacks_finetuning.py --count 1000

A small run is stopped after its second checkpoint. Then, again and again, one bit of one file of
the last checkpoint is turned in a copy of it, and the function that chooses where to resume is
asked; likewise for the record `finetuning.json`. Nothing is trained to the end: that a run from the
checkpoint before ends with the same bytes is for `tests/test_finetuning.py`. Exits with 1 if any
damage was accepted.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hard_positives import Recipe, finetune
from hard_positives.checkpoints import in_order, last_whole
from hard_positives.finetuning import read_record
from hard_positives.trainer import TrainingGuard
from hard_positives_dataset import HardPositives, build_parquet

# `shapes_clip` on 64 rendered rows: 16 steps in 2 s. With checkpoint_steps=1, 16 checkpoints.
RECIPE = Recipe(batch_size=8, learning_rate=1e-3, epochs=2.0, warmup_steps=2)


def small_rows(folder: Path) -> Path:
    """Build the rows that a small run trains on."""
    world = HardPositives(config_name="shapes", splits=["train"], num_rows=64, seed=1)
    return build_parquet(world.as_streaming_dataset(), folder, progress=False)


@contextmanager
def stopped_after(checkpoints: int) -> Iterator[None]:
    """Have runs inside end as by Ctrl-C, right after so many checkpoints are sealed."""
    sealing, sealed = TrainingGuard.on_save, []

    def seal_and_stop(self, *given, **options):
        sealing(self, *given, **options)
        sealed.append(True)
        if len(sealed) == checkpoints:
            raise KeyboardInterrupt

    TrainingGuard.on_save = seal_and_stop
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        TrainingGuard.on_save = sealing


def flip(path: Path, chance: random.Random) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def flip_checkpoints(seed: int, count: int) -> Counter:
    """Flip bits in the last of two checkpoints, each file as often as any other.

    Returns:
        How often the damage was `noticed` (the one before was chosen, and a warning says so) or
        `accepted`.
    """
    chance, counts = random.Random(seed), Counter(noticed=0, accepted=0)
    with tempfile.TemporaryDirectory() as scratch:
        kept, damaged = _stopped_run(Path(scratch)) / "checkpoints", Path(scratch) / "damaged"
        before, last = in_order(kept)
        files = sorted(last.iterdir())
        shutil.copytree(kept, damaged)
        for _ in range(count):
            shutil.rmtree(damaged / last.name, ignore_errors=True)
            shutil.copytree(last, damaged / last.name)
            flip(damaged / last.name / chance.choice(files).name, chance)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                chosen = last_whole(damaged)
            said = any(f"Resuming from {before.name}" in str(w.message) for w in caught)
            counts["noticed" if chosen == damaged / before.name and said else "accepted"] += 1
    return counts


def flip_records(seed: int, count: int) -> Counter:
    """Flip bits in the record of a run that was stopped.

    Returns:
        How often it was `noticed` (an error that names the file), `harmless` (another spelling of
        the same content) or `accepted`.
    """
    chance, counts = random.Random(seed), Counter(noticed=0, harmless=0, accepted=0)
    with tempfile.TemporaryDirectory() as scratch:
        record = _stopped_run(Path(scratch)) / "finetuning.json"
        kept = record.read_bytes()
        for _ in range(count):
            record.write_bytes(kept)
            flip(record, chance)
            try:
                read_record(record.parent)
            except ValueError as error:
                counts["noticed" if str(record) in str(error) else "accepted"] += 1
            else:
                same = json.loads(record.read_bytes()) == json.loads(kept)
                counts["harmless" if same else "accepted"] += 1
    return counts


def _stopped_run(folder: Path) -> Path:
    output = folder / "model"
    with stopped_after(2):
        finetune(
            "shapes_clip",
            small_rows(folder / "rows"),
            output,
            recipe=RECIPE,
            checkpoint_steps=1,
            progress=False,
        )
    return output


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    accepted = 0
    for attack in (flip_checkpoints, flip_records):
        counts = attack(options.seed, options.count)
        print(attack.__name__, dict(counts), flush=True)
        accepted += counts["accepted"]
    sys.exit(accepted > 0)


if __name__ == "__main__":
    main()
