"""Judgments in, accepted rows out: a dataset's folder whose column `checked` is true.

FOLDER, its judgments --majority--> OUTPUT, with review.json: agreement and human accuracies
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetInfo, Features, Image, IterableDataset, Value
from datasets.iterable_dataset import ExamplesIterable

from hard_positives.names import public_name
from hard_positives.review.agreement import agreement_of
from hard_positives.review.humans import REFUSALS, human_figures, refusal
from hard_positives.review.judgments import Judged, read_judgments
from hard_positives.review.loading import ReviewedFolder, open_folder
from hard_positives_dataset import build_parquet
from hard_positives_dataset.folders import write_whole

if TYPE_CHECKING:
    from rich.table import Table

REVIEW = "review.json"
RULE = (
    "Of those who judged a row whole, more than half judged the caption true, each hard positive "
    "true, and each hard negative false."
)


def write_accepted(
    folder: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    splits: Sequence[str] | None = None,
    progress: bool = True,
) -> Path:
    """Write the rows of a dataset's folder that people accepted, with `checked` set.

    A row is accepted if of those who judged it whole more than half judged the caption true, and so
    for each hard positive, and more than half judged each hard negative false. "Cannot tell" speaks
    against a row. The human accuracies are of all judged rows: those of the accepted ones would say
    no more than that they were accepted.

    Args:
        folder: A dataset's folder from ``hard-positives build``, ``generate`` or ``augment``, or
            another of images with our columns, judged with ``hard-positives review``. Without the
            column `image`, the hard positive and the hard negative are judged by the caption.
        output_dir: The folder to make, whole or not at all; must be absent or empty.
        splits: Which splits; all if left out.
        progress: Show bars.

    Returns:
        The folder, a dataset like the first, and `review.json`: the rule, counts by split,
        Krippendorff's alpha with its interval, and the human accuracies.

    Raises:
        ValueError: Nobody has judged a row whole, no row is accepted, or what
            `hard_positives.evaluate` raises for a dataset.
        FileExistsError: `output_dir` holds something.

    Examples:
        >>> write_accepted("CHECKED_BY_US", "ACCEPTED")  # doctest: +SKIP
        PosixPath('ACCEPTED')
    """
    reviewed = open_folder(folder, splits)
    judged = read_judgments(folder)
    record = summarise(reviewed, judged)
    if not any(of["judged"] for of in record["splits"].values()):
        raise ValueError(
            f"Expected rows of {folder} to be judged, got none that anybody judged whole. Judge "
            f"some: hard-positives review {folder}"
        )
    accepted = _accepted(reviewed, judged, record)
    if not accepted:
        refused: Counter[str] = sum(
            (Counter(of["refused"]) for of in record["splits"].values()), Counter()
        )
        why = ", ".join(f"{name} {number:,} times" for name, number in refused.most_common())
        raise ValueError(f"Expected at least one row to be accepted, got none: {why}. Judge more.")
    output = build_parquet(accepted, output_dir, progress=progress)
    with write_whole(output / REVIEW) as partial:
        partial.write_text(json.dumps(record, indent=2), "utf-8")
    return output


def summarise(reviewed: ReviewedFolder, judged: Judged) -> dict[str, Any]:
    """Count what was judged and accepted, and measure agreement and human accuracies.

    Returns:
        What `review.json` holds. Annotators are counted, not named.
    """
    rows = reviewed.rows
    counts: dict[str, Counter[str]] = {split: Counter() for split in reviewed.splits}
    for row in rows:
        reason = refusal(row, judged)
        counts[row.split]["rows"] += 1
        if reason is not None:
            counts[row.split][reason or "accepted"] += 1
    people = {name for row in rows for name in judged.get(row.key, ())}
    return {
        "source": public_name(str(reviewed.folder)),
        "rule": RULE,
        "annotators": len(people),
        "splits": {
            split: {
                "rows": of["rows"],
                "judged": of.total() - of["rows"],
                "accepted": of["accepted"],
                "refused": {reason: of[reason] for reason in REFUSALS},
            }
            for split, of in counts.items()
        },
        "agreement": asdict(agreement_of(rows, judged)),
        "humans": human_figures(rows, judged),
    }


def _accepted(
    reviewed: ReviewedFolder, judged: Judged, record: dict[str, Any]
) -> dict[str, IterableDataset]:
    """The accepted rows of each split that has any, in their order."""
    splits, start = {}, 0
    card = reviewed.folder / "README.md"
    terms = _terms_of(card.read_text("utf-8")) if card.is_file() else {}
    for split, rows in reviewed.splits.items():
        of_split = reviewed.rows[start : start + len(rows)]
        kept = [place for place, row in enumerate(of_split) if refusal(row, judged) == ""]
        start += len(rows)
        if kept:
            features = Features({**rows.features, "checked": Value("bool")})
            info = DatasetInfo(description=_description(record), features=features, **terms)
            examples = ExamplesIterable(_checked, {"rows": rows, "kept": kept})
            splits[split] = IterableDataset(examples, info)
    return splits


def _checked(rows: Dataset, kept: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))  # the file as it is
    for number, place in enumerate(kept):
        yield number, {**rows[place], "checked": True}


def _terms_of(card: str) -> dict[str, str]:
    """What a card of ours says of licence and citation, which hold for the accepted rows, too."""
    sections = dict(re.findall(r"^## (.+)\n\n((?:(?!## ).*\n)*)", card, re.MULTILINE))
    citation = re.sub(r"^```.*\n?", "", sections.get("Citation", ""), flags=re.MULTILINE)
    return {
        "license": sections.get("Licence and terms", "").strip(),
        "citation": citation.strip(),
    }


def _description(record: dict[str, Any]) -> str:
    counts = [
        f"`{split}` {of['accepted']:,} of {of['judged']:,} judged"
        for split, of in record["splits"].items()
    ]
    return (
        f"The rows of {record['source']} that people accepted ({', '.join(counts)}): "
        f"{RULE[0].lower()}{RULE[1:]} `{REVIEW}` has the counts and the agreement."
    )


def summary_table(record: dict[str, Any]) -> "Table":
    """What `summarise` found, for the terminal, in percent."""
    from rich.table import Table

    table = Table(title="Review", box=None, caption=_agreement_in_words(record["agreement"]))
    table.caption_justify = "left"
    table.add_column("split")
    for name in ("rows", "judged", "accepted", "original", "augmented", "brittleness"):
        table.add_column(name, justify="right")
    for split, of in record["splits"].items():
        macro = record["humans"].get(split, {})
        names = ("original_accuracy", "augmented_accuracy", "brittleness")
        figures = [f"{100 * macro[name]:.1f}" if name in macro else "" for name in names]
        counts = [f"{of[name]:,}" for name in ("rows", "judged", "accepted")]
        table.add_row(split, *counts, *figures)
    return table


def _agreement_in_words(found: dict[str, Any]) -> str:
    if found["alpha"] is None:
        return "Krippendorff's alpha: needs captions that two people judged, not all alike."
    ends = "no interval"
    if found["ci_low"] is not None:
        ends = f"95 % interval {found['ci_low']:.2f} to {found['ci_high']:.2f}"
    return (
        f"Krippendorff's alpha {found['alpha']:.2f} ({ends}), on {found['captions']:,} captions of "
        f"{found['rows']:,} rows that two or more people judged."
    )
