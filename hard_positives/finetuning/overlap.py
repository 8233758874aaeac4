"""What training rows and held-out rows share, found by content before a fine-tune starts.

Pictures are the same where their pixels are, whatever their files are called and whichever lossless
format they are in; texts are, whatever their case, spaces and punctuation. A picture that was
scaled, turned or compressed with loss again is not found, nor is a caption in other words.
"""

import hashlib
import string
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, compress
from typing import Any

import numpy as np
from PIL import Image

from hard_positives.finetuning.rows import TrainingRows
from hard_positives.machine import cores
from hard_positives.names import printable
from hard_positives.suite.columns import CAPTION_COLUMNS
from hard_positives.suite.comparisons import Comparisons
from hard_positives.suite.rows import decode_image, open_image

_AT_ONCE = 256  # pictures that wait for a thread
_BATCH = 4096  # rows whose texts are read at once


def find_overlap(
    training: TrainingRows, held_out: Mapping[str, Comparisons]
) -> dict[str, dict[str, Any]]:
    """Count the held-out rows that share a picture or a text with the training rows.

    Each distinct picture is decoded once, as an epoch does, and 8 bytes are kept of each picture
    and text. Texts are captions, hard positives and hard negatives alike, since one that was learnt
    as any of these is known; of the training rows, those that the recipe has chosen.

    Args:
        training: All that is trained on.
        held_out: Split -> comparisons of a picture with its captions, one for each row.

    Returns:
        Split -> `num_rows`; `num_same_picture` and `num_same_text`, how many of them share one; and
        of the first that does, `same_picture`: its number and that of a training row, and
        `same_text`, the text; None where none does.

    Raises:
        ValueError: A picture cannot be read.
    """
    known_pictures, known_texts = _training_pictures(training), _hashes(_training_texts(training))
    found = {}
    for split, index in held_out.items():
        pictures = _pixel_hashes(partial(open_image, index), range(len(index.pictures)))
        pictures = pictures[index.anchors]
        is_known = np.isin(_hashes(index.captions), known_texts)[index.candidates]
        same_picture = np.flatnonzero(np.isin(pictures, known_pictures))
        same_text = np.logical_or.reduceat(is_known, index.offsets[:-1])
        found[split] = {
            "num_rows": len(index),
            "num_same_picture": len(same_picture),
            "num_same_text": int(same_text.sum()),
            "same_picture": next(
                (
                    [int(row), int(np.flatnonzero(known_pictures == pictures[row])[0])]
                    for row in same_picture
                ),
                None,
            ),
            "same_text": next(
                (index.captions[place] for place in index.candidates[is_known]), None
            ),
        }
    return found


def overlap_in_words(overlap: Mapping[str, Mapping[str, Any]]) -> str:
    """Say in a clause how many held-out rows share what is trained on; nothing if none does.

    Examples:
        >>> print(overlap_in_words({"swap": {"num_rows": 9, "num_same_picture": 9,
        ...                                  "num_same_text": 2}}))
        of 9 held-out rows, 9 show a picture that is trained on and 2 have a text that is
        >>> overlap_in_words({"swap": {"num_rows": 9, "num_same_picture": 0, "num_same_text": 0}})
        ''
    """
    rows, pictures, texts = (
        sum(split[name] for split in overlap.values())
        for name in ("num_rows", "num_same_picture", "num_same_text")
    )
    if not pictures + texts:
        return ""
    return (
        f"of {rows:,} held-out rows, {pictures:,} show a picture that is trained on and {texts:,} "
        "have a text that is"
    )


def warn_of_overlap(overlap: Mapping[str, Mapping[str, Any]]) -> None:
    """Warn, with an example of each, that held-out rows share what is trained on; if any does."""
    clause = overlap_in_words(overlap)
    if not clause:
        return
    examples = []
    for split, found in overlap.items():
        if found["same_picture"]:
            row, trained = found["same_picture"]
            examples.append(f"row {row} of {split} shows the picture of training row {trained}")
        if found["same_text"]:
            examples.append(f"{split} has {printable(found['same_text'])!r}")
    warnings.warn(
        f"Expected held-out rows to share nothing with the training rows, got others: {clause} "
        f"({'; '.join(examples)}). Their figures tell what was memorised, too, and the card will "
        "say so: hold out other rows, or train without these.",
        stacklevel=2,
    )


def _training_pictures(training: TrainingRows) -> np.ndarray:
    """(N,) the hash of each row's pixels."""
    files = training.rows.select_columns(["image"])
    _, first, places = np.unique(training.content_ids[:, 0], return_index=True, return_inverse=True)
    hashes = _pixel_hashes(lambda row: decode_image(files[row]["image"], row), first.tolist())
    return hashes[places]


def _training_texts(training: TrainingRows) -> Iterator[str]:
    every = np.ones(len(training), dtype=bool)
    used = (every, training.use_hard_positive, training.use_hard_negative)
    for name, is_used in zip(CAPTION_COLUMNS, used, strict=True):
        column = training.rows.select_columns([name]).with_format("arrow")
        texts = (table[name].to_pylist() for table in column.iter(batch_size=_BATCH))
        yield from compress(chain.from_iterable(texts), is_used)


def _pixel_hashes(
    open_picture: Callable[[int], Image.Image], places: range | list[int]
) -> np.ndarray:
    def hash_of(place: int) -> int:
        picture = open_picture(place)
        return _hash(f"{picture.size} ".encode() + picture.tobytes())

    with ThreadPoolExecutor(cores()) as pool:  # decoding and hashing let other threads run
        starts = range(0, len(places), _AT_ONCE)
        some = (pool.map(hash_of, places[start : start + _AT_ONCE]) for start in starts)
        return np.fromiter(chain.from_iterable(some), np.uint64, len(places))


def _hashes(texts: Iterable[str]) -> np.ndarray:
    return np.fromiter((_hash(_normalised(text).encode()) for text in texts), np.uint64)


def _normalised(text: str) -> str:
    words = (word.strip(string.punctuation) for word in text.casefold().split())
    return " ".join(filter(None, words)) or text


def _hash(content: bytes) -> int:
    """Make 8 bytes of it: a million beside a million agree by chance once in ten million runs."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
