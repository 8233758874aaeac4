"""`make claim`: what is there is not made again, and when a part of the claim holds."""

import sys

import pytest
from conftest import ROOT

pytest.importorskip("matplotlib", reason="extra claim")
sys.path.insert(0, str(ROOT / "benchmarks"))
import claim

FOUND = {
    run: [{"replace original_accuracy": original, "replace augmented_accuracy": 50.0,
           "replace brittleness": brittleness} for original, brittleness in figures]
    for run, figures in {
        "a": [(70, 10), (71, 11), (72, 12)],
        "b": [(80, 30), (81, 32), (82, 34)],
        "c": [(77, 19.9), (78, 22), (79, 22.3)],
    }.items()
}  # fmt: skip


def test_figures_that_are_there_are_not_made_again_and_others_are(tmp_path):
    for world in ("development", "test"):
        path = claim.figures_path(tmp_path, world, "b", 0)
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    nowhere = str(tmp_path / "no model")

    claim.measure(tmp_path, nowhere, "b", 0, ["development", "test"])
    with pytest.raises((OSError, ValueError)):
        claim.measure(tmp_path, nowhere, "b", 1, ["development", "test"])

    assert [path.name for path in sorted(tmp_path.glob("figures/*/*"))] == ["b-0.json"] * 2


def test_a_folder_of_other_settings_is_refused(tmp_path):
    claim.keep_settings(tmp_path / "new", {"usual": 0.5})
    claim.keep_settings(tmp_path / "new", {"usual": 0.5})
    with pytest.raises(SystemExit, match="to hold the settings of this run"):
        claim.keep_settings(tmp_path / "new", {"usual": 0.6})


def test_a_part_holds_where_its_whole_interval_is_above_the_threshold():
    told = {part.split(":")[0]: holds for holds, part in claim.verdicts(FOUND, "replace")}
    assert told == {
        "(b) raises original over (a)": "holds",  # +10 for each seed
        "(b) raises brittleness over (a)": "holds",  # +20, +21, +22
        "(c) keeps original within 3 of (b)": "open",  # -3 for each, not above it
        "(c) raises augmented over (b)": "open",  # 0 for each
        "(c) has under 2/3 of (b)'s brittleness": "open",  # 0.1, -0.67, 0.37
    }
    swapped = FOUND | {"a": FOUND["b"], "b": FOUND["a"]}
    holds, part = claim.verdicts(swapped, "replace")[0]
    assert holds == "does not hold"
    assert part.endswith("-10.0 ± 0.0, to be above 0")
