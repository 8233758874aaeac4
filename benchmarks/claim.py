"""Show the paper's claim in miniature: `make claim`.

    python benchmarks/claim.py --output results/claim

From `shapes_clip`, tune (a) on captions only, (b) with hard negatives, (c) with hard negatives and
hard positives, three seeds each, and score them on a rendered world with habits, in which false
captions are less usual as text, as in real benchmarks. Beside them stands what text alone gets: a
small GPT-2, trained on the same captions, that sees no picture. Every run is the same but for the
texts that it may use. A run that was killed resumes: worlds, models and figures that are there are
not made again. It writes claim.json and claim.svg.

Training, development and test are three worlds, of a seed each, and `shapes_clip` was trained on a
fourth. Whatever there was to choose was chosen on the development world (`--development`, which
renders no test). The rule, written before the test world was first rendered: a part of the claim
(`PARTS`) is a sum of figures in points, seed by seed, and a threshold. It holds where the whole
95 % interval over seeds (Student's t) is above the threshold, does not hold where all of it is
below, and is open otherwise. The interval tells what seeds of tuning change, not what other
pictures would.
"""

import argparse
import itertools
import json
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import numpy as np
import torch
from blind import train
from datasets import load_dataset
from rich.console import Console
from rich.table import Table
from scipy import stats

from hard_positives import Recipe, evaluate, finetune
from hard_positives_dataset import HardPositives, build_parquet
from hard_positives_dataset.folders import write_whole

matplotlib.use("svg")
from matplotlib import pyplot as plt

INK, INK_IN_DARK = "#1b1f24", "#e6e9ed"
COLOURS = {
    "original_accuracy": "#1f77b4",
    "augmented_accuracy": "#1fa37c",
    "brittleness": "#e69f00",
}

LABELS = {
    "text": "text alone",
    "base": "not tuned",
    "a": "(a) captions only",
    "b": "(b) hard negatives",
    "c": "(c) both",
}
TEXTS = {
    "a": {"hard_negative_share": 0.0, "hard_positive_share": 0.0},
    "b": {"hard_positive_share": 0.0},
    "c": {},
}
WORLDS = {"train": 1, "development": 2, "test": 3}  # their seeds; that of shapes_clip is 0
SETTINGS = {
    # Text alone then tells on the development world about what it tells of COCO's captions.
    "usual": 0.5,
    "num_rows": 19200,
    "epochs_of_text_alone": 2,
    "schedule": {
        "batch_size": 64,
        "learning_rate": 1e-3,
        "epochs": 1.0,
        "warmup_steps": 15,
        "leave_out_true": False,  # as in the losses of the paper's models
    },
}
SPLITS = ("replace", "swap")
FIGURES = ("original_accuracy", "augmented_accuracy", "brittleness")
PARTS = (  # what it says, of which figure, the sum of runs, and what that is to be above
    ("(b) raises original over (a)", "original_accuracy", {"b": 1, "a": -1}, 0),
    ("(b) raises brittleness over (a)", "brittleness", {"b": 1, "a": -1}, 0),
    ("(c) keeps original within 3 of (b)", "original_accuracy", {"c": 1, "b": -1}, -3),
    ("(c) raises augmented over (b)", "augmented_accuracy", {"c": 1, "b": -1}, 0),
    ("(c) has under 2/3 of (b)'s brittleness", "brittleness", {"b": 2 / 3, "c": -1}, 0),
)
Found = dict[str, list[dict[str, float]]]  # by run, for each seed percent by split and figure


def keep_settings(output: Path, settings: dict) -> None:
    """Write down what all runs in a folder have in common; refuse a folder with anything else."""
    path = output / "settings.json"
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as partial:
            partial.write_text(json.dumps(settings, indent=2))
    if json.loads(path.read_text()) != settings:
        raise SystemExit(f"Expected {path} to hold the settings of this run. Take another folder.")


def render(output: Path, world: str) -> None:
    if (output / world).exists():
        return
    size = {"splits": ["train"], "num_rows": SETTINGS["num_rows"]} if world == "train" else {}
    rows = HardPositives(
        config_name="shapes", seed=WORLDS[world], usual=SETTINGS["usual"], **size
    ).as_streaming_dataset()
    build_parquet(rows, output / world, progress=False)


def tune(output: Path, base: str, run: str, seed: int) -> str | Path:
    """The model of a run; what of it is there is not done again."""
    folder = output / "models" / f"{run}-{seed}"
    if run == "base":
        return base
    if run == "text":
        if not (folder / "tokenizer.json").exists():  # what is saved last
            captions = list(load_dataset(str(output / "train"), split="train")["caption"])
            train(captions, folder, SETTINGS["epochs_of_text_alone"], seed)
        return f"lm:{folder}"
    if (folder / "README.md").exists():  # likewise
        return folder
    recipe = Recipe(**SETTINGS["schedule"], **TEXTS[run])
    return finetune(base, output / "train", folder, recipe=recipe, seed=seed, progress=False)


def measure(output: Path, base: str, run: str, seed: int, worlds: list[str]) -> None:
    """Write the figures of a run on those of the worlds that it has none of."""
    torch.set_num_threads(1)  # runs side by side waste less than threads within one
    paths = {world: figures_path(output, world, run, seed) for world in worlds}
    missing = {world: path for world, path in paths.items() if not path.exists()}
    if not missing:
        return
    start = time.perf_counter()
    model = tune(output, base, run, seed)
    for world, path in missing.items():
        result = evaluate(model, output / world, cache=False, progress=False)
        metrics = result.metrics["as_published"]
        percent = {
            f"{split} {name}": 100 * metrics[split]["macro"][name]
            for split in SPLITS
            for name in FIGURES
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as partial:
            partial.write_text(json.dumps(percent))
    print(f"{LABELS[run]}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)


def figures_path(output: Path, world: str, run: str, seed: int) -> Path:
    return output / "figures" / world / f"{run}-{seed}.json"


def measure_all(output: Path, base: str, seeds: int, worlds: list[str]) -> dict[str, Found]:
    """Make and score every run, one process a core; the figures by world."""
    runs = [(run, seed) for seed in range(seeds) for run in LABELS if run in TEXTS or seed == 0]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(render, output, world) for world in ("train", *worlds)]:
            future.result()
        for future in [pool.submit(measure, output, base, *run, worlds) for run in runs]:
            future.result()
    found = {world: {run: [] for run in LABELS} for world in worlds}
    for world, (run, seed) in itertools.product(worlds, runs):
        found[world][run].append(json.loads(figures_path(output, world, run, seed).read_text()))
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval over seeds, by Student's t."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    return float(np.mean(values)), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def in_words(values: list[float], sign: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{sign}.1f}" + (f" ± {half:.1f}" if len(values) > 1 else "")


def table_of(world: str, found: Found) -> Table:
    table = Table(title=f"{world} world: percent; mean over seeds with 95 % interval")
    table.add_column("run")
    for split in SPLITS:
        for name in FIGURES:
            table.add_column(f"{split}\n{name.removesuffix('_accuracy')}", justify="right")
    for run, of_seeds in found.items():
        cells = ([figures[name] for figures in of_seeds] for name in of_seeds[0])
        table.add_row(LABELS[run], *map(in_words, cells))
    return table


def verdicts(found: Found, split: str) -> list[tuple[str, str]]:
    """Whether each part of the claim holds on a split, and the part with its figures."""
    told = []
    for says, name, weights, threshold in PARTS:
        of_runs = [
            [weight * figures[f"{split} {name}"] for figures in found[run]]
            for run, weight in weights.items()
        ]
        sums = [sum(of_seed) for of_seed in zip(*of_runs, strict=True)]
        mean, half = interval(sums)
        holds = "holds" if mean - half > threshold else "open"
        told.append(("does not hold" if mean + half < threshold else holds,
                     f"{says}: {in_words(sums, '+')}, to be above {threshold}"))  # fmt: skip
    return told


def draw(found: Found, path: Path) -> None:
    """Draw all runs with their intervals; the picture follows the reader's light or dark scheme."""
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    plt.rcParams.update({**dict.fromkeys(inked, INK), "svg.fonttype": "none", "svg.hashsalt": ""})
    figure, panels = plt.subplots(len(SPLITS), figsize=(5.6, 6.8), sharey=True)
    for panel, split in zip(panels, SPLITS, strict=True):
        for place, name in enumerate(FIGURES):
            means, halves = zip(
                *(interval([figures[f"{split} {name}"] for figures in of_seeds])
                  for of_seeds in found.values()),
                strict=True,
            )  # fmt: skip
            at = np.arange(len(found)) + 0.27 * (place - 1)
            label, style = name.replace("_", " "), {"color": COLOURS[name], "ecolor": INK}
            panel.bar(at, means, 0.25, yerr=halves, error_kw={"lw": 1}, label=label, **style)
            if place == 0:
                label = f"{label} of text alone"
                panel.axhline(means[0], color=INK, lw=1, ls="--", zorder=0, label=label)
        panel.set_xticks(range(len(found)), [LABELS[run].replace(" ", "\n") for run in found])
        panel.set_title(f"{split.upper()}, percent of rows")
    labelled = panels[0].get_legend_handles_labels()
    figure.legend(*labelled, loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, transparent=True, metadata={"Date": None})
    in_dark = "".join(
        f'[style*="{kind}: {INK}"] {{ {kind}: {INK_IN_DARK} !important }}'
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{ {in_dark} }}</style>\n</svg>"
    path.write_text(path.read_text("utf-8").replace("</svg>", style), encoding="utf-8")


def processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="absent, or of this very run")
    parser.add_argument("--model", default="shapes_clip", help="folder of a CLIP to start from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--development", action="store_true", help="leave the test world alone")
    arguments = parser.parse_args()
    worlds = ["development"] if arguments.development else ["development", "test"]
    keep_settings(arguments.output, {**SETTINGS, "model": arguments.model})
    start = time.perf_counter()
    found = measure_all(arguments.output, arguments.model, arguments.seeds, worlds)
    seconds = time.perf_counter() - start
    told = {}
    for world in worlds:
        Console(width=110).print(table_of(world, found[world]))
        told[world] = {split: verdicts(found[world], split) for split in SPLITS}
        for split, parts in told[world].items():
            for holds, part in parts:
                print(f"{split.upper():8}{holds:14}{part}")
    print(f"{seconds:.0f} s, {processor_seconds():.0f} processor seconds")
    record = {"settings": SETTINGS, "worlds": WORLDS, "figures": found, "parts": told}
    (arguments.output / "claim.json").write_text(json.dumps(record, indent=2))
    draw(found[worlds[-1]], arguments.output / "claim.svg")


if __name__ == "__main__":
    main()
