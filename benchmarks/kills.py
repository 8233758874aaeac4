"""Kill a scoring run again and again, and count what that cost.

    python benchmarks/kills.py --model MODEL --dataset REPLACE --kills 50

`hard-positives evaluate` runs in a process of its own that is killed with SIGKILL at a random time,
`--kills` times over or until it gets through, and then runs to its end. Printed are the chunks that
stood after each kill, how many images and captions were encoded in all beyond the distinct ones, in
chunks a kill, and whether the result has the bytes of a run that nobody killed. Exits with 1 where
it has not.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# What is encoded is written down as it happens, by the process that is killed.
PROGRAM = """
import os
from hard_positives.models import encoders
from hard_positives.cli import app

def counted(method):
    def embed(self, batch):
        embeds = method(self, batch)
        with open(os.environ["ENCODED"], "a") as file:
            file.write(f"{method.__name__} {len(embeds)}\\n")
        return embeds
    return embed

for name in ("embed_images", "embed_captions"):
    setattr(encoders.DualEncoder, name, counted(getattr(encoders.DualEncoder, name)))
app()
"""


def start(options: argparse.Namespace, folder: Path) -> subprocess.Popen:
    command = ["evaluate", options.model, "--dataset", options.dataset, "--quiet"]
    command += ["--output", str(folder / "result")]
    environment = {
        **os.environ,
        "HARD_POSITIVES_CACHE": str(folder / "cache"),
        "ENCODED": str(folder / "encoded.txt"),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command], env=environment, stdout=subprocess.DEVNULL
    )


def encoded(folder: Path) -> dict[str, int]:
    totals = {"embed_images": 0, "embed_captions": 0}
    for line in (folder / "encoded.txt").read_text().splitlines():
        name, count = line.split()
        totals[name] += int(count)
    return totals


def chunks(folder: Path) -> int:
    return len(list((folder / "cache").glob("*/*.safetensors")))


def result_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "result").iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
        whole.mkdir(), killed.mkdir()
        began = time.monotonic()
        process = start(options, whole)
        while process.poll() is None and not (whole / "encoded.txt").exists():
            time.sleep(0.05)
        start_up = time.monotonic() - began
        if process.wait():
            sys.exit("The run that nobody killed failed.")
        work = time.monotonic() - began - start_up
        print(
            f"not killed: {start_up:.1f} s to start, {work:.1f} s of work, {chunks(whole)} chunks",
            flush=True,
        )
        # How it computes is measured, and may be measured otherwise: not what is asked here.
        for plan in (whole / "cache").glob("*/plan_*.json"):
            copy = killed / plan.relative_to(whole)
            copy.parent.mkdir(parents=True)
            shutil.copy(plan, copy)

        # Later or sooner, so that the work is done about when the last kill is.
        times, latest, standing = random.Random(0), start_up, []
        for _ in range(options.kills):
            process = start(options, killed)
            try:
                process.wait(times.uniform(0, latest))
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            standing.append(chunks(killed))
            is_ahead = standing[-1] / chunks(whole) > len(standing) / options.kills
            latest *= 0.85 if is_ahead else 1.05
        done = len(standing)
        print(f"{done} kills; chunks that stood after each: {standing}")
        results = killed / "result" / "results.json"
        if not results.exists() and start(options, killed).wait():
            sys.exit("The last run failed.")
        from hard_positives.scoring.encoding import CAPTIONS_PER_CHUNK, IMAGES_PER_CHUNK

        signature = json.loads(results.read_text())["signature"]
        for name, size in {"images": IMAGES_PER_CHUNK, "captions": CAPTIONS_PER_CHUNK}.items():
            again = encoded(killed)[f"embed_{name}"] - signature[f"num_distinct_{name}"]
            print(f"{again} {name} encoded again, {again / size / max(1, done):.2f} chunks a kill")
        same = result_bytes(killed) == result_bytes(whole)
        print("The result has the same bytes." if same else "The result has OTHER bytes.")
        sys.exit(not same)


if __name__ == "__main__":
    main()
