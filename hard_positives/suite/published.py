"""What the paper reports, and whether the rows that were scored are the paper's.

The figures are second-hand: read in summaries of the paper, not in its own tables. The rows are
known by their captions, not by their number.
"""

from collections import defaultdict

import pyarrow as pa
import pyarrow.compute

from hard_positives.suite.columns import CAPTION_COLUMNS
from hard_positives_dataset.content import ContentHash

HUMANS = {"original_accuracy": "97", "augmented_accuracy": "97", "brittleness": "0", "drop": "0"}
FIGURES = (
    ("REPLACE macro", "CLIP ViT-B/32", "61.6", "46.8", "23.2"),
    ("REPLACE macro", "NegCLIP", "68.6", "52.1", ""),
    ("REPLACE macro", "DAC-LLM", "87.6", "48.9", "40.1"),
    ("REPLACE macro", "CLIP tuned on hard negatives", "", "55.7", "21.0"),
    ("REPLACE macro", "CLIP tuned on hard positives and hard negatives", "69.0", "58.0", "16.9"),
    ("REPLACE macro", "humans", "97", "97", "0"),
    ("swap", "CLIP ViT-B/32", "60.5 (derived)", "49.6", ""),
    ("swap", "CLIP tuned on hard positives and hard negatives", "73.2 (derived)", "61.1", ""),
)
# Category -> hash of its captions, hard positives and hard negatives in the order of the ids, from
# the files of `hard_positives_dataset.annotations.PUBLISHED_COMMIT`. SWAP's files could not be had
# where this was written: of its rows only the number can be compared.
CAPTION_HASHES = {
    "attribute": "8700d1c04dd5565845c1d309526fb6d3036a6d454ae5d6f9e6ccf1db21f8f9e3",
    "relation": "d875ba6fc53d03d10cfbd7cc266495d21df730d3076afde2355cacca72a10fa3",
}
NUM_SWAP_ROWS = 28_748


def are_triples(scores: pa.Table) -> bool:
    """Whether all rows have the shape of the published ones, with which humans can be compared.

    Examples:
        >>> are_triples(pa.table({"labels": [[True, True, False]]}))
        True
    """
    labels = scores["labels"].combine_chunks()
    alike = pa.compute.equal(labels.value_lengths(), 3).to_numpy(zero_copy_only=False).all()
    return bool(alike) and bool(
        (labels.flatten().to_numpy(zero_copy_only=False).reshape(-1, 3) == [1, 1, 0]).all()
    )


def caption_hashes(scores: pa.Table) -> dict[str, str | None]:
    """Hash the captions of every category, in the order of the ids.

    Args:
        scores: As in `hard_positives.EvaluationResult`.

    Returns:
        Category -> SHA-256 of its rows' captions, hard positives and hard negatives. None where
        some row is no such triple.

    Examples:
        >>> triple = {"captions": [["a", "b", "c"]], "labels": [[True, True, False]]}
        >>> caption_hashes(pa.table({"id": ["1"], "category": ["x"], **triple}))["x"][:8]
        'c116ec4d'
    """
    hashes, others = defaultdict(ContentHash), set()
    rows = scores.select(["id", "category", "captions", "labels"]).to_pylist()
    for row in sorted(rows, key=lambda row: row["id"]):
        if row["labels"] != [True, True, False] or len(row["captions"]) != 3:
            others.add(row["category"])
        triple = zip(CAPTION_COLUMNS, row["captions"], strict=False)
        hashes[row["category"]].add(dict(triple))
    return {
        category: None if category in others else content.hexdigest()
        for category, content in hashes.items()
    }


def has_published(scores: pa.Table) -> bool:
    """Whether rows of REPLACE with the published captions are among them, which humans judged.

    Examples:
        >>> triple = {"captions": [["a", "b", "c"]], "labels": [[True, True, False]]}
        >>> has_published(pa.table({"id": ["1"], "category": ["relation"], **triple}))
        False
    """
    hashes = caption_hashes(scores) if are_triples(scores) else {}
    return any(CAPTION_HASHES.get(category) == found for category, found in hashes.items())


def describe_rows(scores: pa.Table) -> str:
    """Say which of the scored categories have the published captions, which others.

    Examples:
        >>> triple = {"captions": [["a", "b", "c"]], "labels": [[True, True, False]]}
        >>> describe_rows(pa.table({"id": ["1"], "category": ["x"], **triple}))
        'The rows of x scored here are other rows: compare the pattern, not the values.'
    """
    hashes = caption_hashes(scores)
    same = [category for category in hashes if CAPTION_HASHES.get(category, "") == hashes[category]]
    num_swap_rows = scores["category"].to_pylist().count("swap")
    unknown = ["swap"] if num_swap_rows == NUM_SWAP_ROWS else []
    other = [category for category in hashes if category not in (*same, *unknown)]
    sentences = {
        "The captions of {} scored here are the published ones.": same,
        "Of {} as many rows were scored as published; their captions were not compared.": unknown,
        "The rows of {} scored here are other rows: compare the pattern, not the values.": other,
    }
    return " ".join(text.format(" and ".join(names)) for text, names in sentences.items() if names)
