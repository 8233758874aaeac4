"""Run by CI in an environment that holds the wheel alone: all parts are there and load by path."""

from pathlib import Path

import evaluate
from datasets import load_dataset

import hard_positive_metric
import hard_positives
import hard_positives_dataset
from hard_positives.suite.benchmarks import known_benchmarks


def folder(module) -> str:
    path = Path(module.__file__).parent
    assert "site-packages" in path.parts, f"not the installed wheel: {path}"
    return str(path)


for module in (hard_positive_metric, hard_positives, hard_positives_dataset):
    assert Path(folder(module), "py.typed").is_file(), f"{module.__name__} without its types"

metric = evaluate.load(folder(hard_positive_metric))
assert metric.compute(predictions=[[3.0, 2.0, 1.0]])["augmented_accuracy"] == 1.0

swap = load_dataset(folder(hard_positives_dataset), split="swap")
assert {"image", "caption", "hard_positive", "hard_negative"} <= set(swap.column_names)

listed = known_benchmarks()
assert len(listed) > 20, f"{len(listed)} benchmarks in the wheel"

result = hard_positives.evaluate("shapes_clip", "shapes", splits=["swap"])
print(f"{folder(hard_positives)}: {result.scores.num_rows} rows scored from the wheel")
