"""Rows for training: check all of them, choose shares of them, make batches of them.

    loaded rows -> checked rows -> ids of what is equal in them
                -> decoded images and chosen texts -> a batch

No model here, only its processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image
from transformers import ProcessorMixin

from hard_positives.finetuning.recipes import Recipe
from hard_positives.scoring.score import NAMED
from hard_positives.suite.columns import CAPTION_COLUMNS, Columns
from hard_positives.suite.comparisons import check_columns
from hard_positives.suite.rows import decode_image, picture_digests


def check_training_rows(splits: dict[str, Dataset]) -> Dataset:
    """Take the one split of what was loaded, and check all of its rows.

    Args:
        splits: Split -> rows with `image`, `caption`, `hard_positive` and `hard_negative`; the last
            two may be null in any row.

    Returns:
        The rows, images undecoded.

    Raises:
        TypeError: A column is of the wrong kind, or a caption is null.
        ValueError: No rows, a missing column, several splits, an empty caption, or a hard negative
            that equals its caption or its hard positive.
    """
    if len(splits) != 1:
        raise ValueError(
            f"Expected data to have one split, got {list(splits)}. Choose one with split."
        )
    [rows] = splits.values()
    check_columns(rows, Columns())
    for name in CAPTION_COLUMNS:
        if rows.features[name].dtype not in ("string", "large_string"):
            raise TypeError(
                f"Expected the column {name!r} to hold strings, got {rows.features[name]}. Use "
                "dataset.cast_column."
            )
    rows = rows.cast_column("image", Image(decode=False))
    _check_texts(rows)
    return rows


def _check_texts(rows: Dataset) -> None:
    texts = {name: rows.with_format("arrow")[name].to_pylist() for name in CAPTION_COLUMNS}
    captions, positives, negatives = texts.values()
    nulls = [row for row, text in enumerate(captions) if text is None]
    if nulls:
        raise TypeError(_about("Expected every row to have a caption, got none in", nulls))
    for name, column in texts.items():
        empty = [row for row, text in enumerate(column) if text is not None and not text.strip()]
        if empty:
            raise ValueError(_about(f"Expected {name} to be text, or null, got '' in", empty))
    same = [
        row
        for row, negative in enumerate(negatives)
        if negative is not None and negative in (captions[row], positives[row])
    ]
    if same:
        raise ValueError(
            _about(
                "Expected hard negatives to differ from what is true, got the same text in", same
            )
        )


def _about(sentence: str, rows: Sequence[int]) -> str:
    named = ", ".join(map(str, rows[:NAMED]))
    return f"{sentence} {len(rows)} rows, first {named}. Remove or repair these rows."


def check_lengths(rows: Dataset, processor: ProcessorMixin, limit: int) -> None:
    """Refuse captions over ``limit`` tokens: cut off, two of a row could become the same."""
    for name in CAPTION_COLUMNS:
        column = rows.with_format("arrow")[name].to_pylist()
        # A token is at least a byte, so that most captions need no tokenizer.
        long = [row for row, text in enumerate(column) if text and len(text.encode()) > limit - 2]
        lengths = _token_counts([column[row] for row in long], processor)
        over = [row for row, length in zip(long, lengths, strict=True) if length > limit]
        if over:
            raise ValueError(
                _about(f"Expected {name} to be at most {limit} tokens long, got more in", over)
            )


def _token_counts(texts: list[str], processor: ProcessorMixin) -> list[int]:
    if not texts:
        return []
    return list(map(len, processor.tokenizer(texts, verbose=False)["input_ids"]))


def choose_texts(rows: Dataset, recipe: Recipe, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose whose hard positive and whose hard negative is used: two arrays of booleans.

    With one seed a smaller share is a part of a larger one, and the two are drawn apart.
    """
    positives, negatives = (
        rows.with_format("arrow")[name].is_valid().to_numpy()
        for name in ("hard_positive", "hard_negative")
    )
    if recipe.hard_positive_kind:
        if "category" not in rows.column_names:
            raise ValueError(
                "Expected the rows to have the column 'category' for hard_positive_kind, got "
                f"{rows.column_names}. Add it, or leave hard_positive_kind out."
            )
        is_swap = np.array([category == "swap" for category in _categories(rows)])
        positives = positives & (is_swap == (recipe.hard_positive_kind == "swap"))
    return (
        _share_of(positives, recipe.hard_positive_share, [seed, 0]),
        _share_of(negatives, recipe.hard_negative_share, [seed, 1]),
    )


def _categories(rows: Dataset) -> list[str]:
    """Read the column `category`, also of class labels, as strings.

    Raises:
        TypeError: Something else is in it.
    """
    categories = rows.with_format("arrow")["category"].to_pylist()
    feature = rows.features["category"]
    if isinstance(feature, ClassLabel):
        categories = [place if place is None else feature.int2str(place) for place in categories]
    wrong = [row for row, name in enumerate(categories) if not isinstance(name, str)]
    if wrong:
        what = f"Expected the column 'category' to hold strings, got {categories[wrong[0]]!r} in"
        raise TypeError(_about(what, wrong))
    return categories


def identify_content(rows: Dataset) -> tuple[np.ndarray, list[str]]:
    """Find which rows share an image or a text. Every image file is read, none is decoded.

    Returns:
        (N, 4) integers of image, caption, hard positive and hard negative: equal where the bytes of
        the image or the text are, texts of all columns counted together; -1 where a row has none.
        And the SHA-256 of each row's image.
    """
    images = rows.select_columns(["image"]).cast_column("image", Image(decode=False))
    digests = list(picture_digests(images))
    texts: dict[str, int] = {}
    columns = [np.unique(digests, return_inverse=True)[1]]
    for name in CAPTION_COLUMNS:
        column = rows.with_format("arrow")[name].to_pylist()
        numbers = [-1 if text is None else texts.setdefault(text, len(texts)) for text in column]
        columns.append(np.array(numbers))
    return np.stack(columns, axis=1), digests


def _share_of(present: np.ndarray, share: float, seed: list[int]) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(np.flatnonzero(present))
    chosen = np.zeros_like(present)
    chosen[order[: round(share * len(order))]] = True
    return chosen


@dataclass(frozen=True)
class TrainingRows(torch.utils.data.Dataset):
    """What a batch is made of: decoded images and the texts that the recipe chose.

    Attributes:
        rows: From `check_training_rows`.
        content_ids: (N, 4) from `identify_content`.
        use_hard_positive: (N,) booleans from `choose_texts`.
        use_hard_negative: (N,) likewise.
    """

    rows: Dataset
    content_ids: np.ndarray
    use_hard_positive: np.ndarray
    use_hard_negative: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self.rows[place]
        used = [True, True, self.use_hard_positive[place], self.use_hard_negative[place]]
        return {
            "image": decode_image(row["image"], place),
            "content_ids": np.where(used, self.content_ids[place], -1),
            **{
                name: row[name] if use else None
                for name, use in zip(CAPTION_COLUMNS, used[1:], strict=True)
            },
        }


@dataclass(frozen=True)
class Collator:
    """Rows -> one batch, its captions padded to the longest of them and no further."""

    processor: ProcessorMixin

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Prepare B rows.

        Returns:
            `pixel_values` (B, 3, H, W); `input_ids` (T, L) of the captions, then the hard
            positives, then the hard negatives that are used; `content_ids` (B, 4), -1 where a text
            is not.
        """
        texts = [row[name] for name in CAPTION_COLUMNS for row in rows if row[name] is not None]
        images = self.processor.image_processor([row["image"] for row in rows], return_tensors="pt")
        # Padding behind a caption changes nothing in CLIP: no attention mask.
        tokens = self.processor.tokenizer(
            texts,
            padding="longest",
            padding_side="right",
            return_attention_mask=False,
            return_tensors="pt",
        )
        return {
            "pixel_values": images["pixel_values"],
            "input_ids": tokens["input_ids"],
            "content_ids": torch.from_numpy(np.stack([row["content_ids"] for row in rows])),
        }
