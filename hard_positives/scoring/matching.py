"""Comparisons scored pair by pair, by models that read an image and a caption together.

    distinct pairs -> pictures with all their captions -> batches -> logits, kept on disk

What is kept and shared is as for embeddings: the logit of a pair is a vector of one number.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from hard_positives.machine import Options, image_workers, is_main_process, processes
from hard_positives.models.loading import Matcher
from hard_positives.models.pairs import FunctionModel
from hard_positives.scoring.cache import trim_cache
from hard_positives.scoring.sharing import (
    announce,
    look_up,
    open_cache,
    progress_bar,
    share_out,
    tell,
)
from hard_positives.suite.comparisons import Comparisons
from hard_positives.suite.rows import open_image
from hard_positives.workers import end_with

IMAGES_PER_CHUNK = 32  # with all their captions: what a killed run does again


def match_pairs(matcher: Matcher, comparisons: Comparisons, options: Options) -> np.ndarray:
    """Score each distinct pair of an image and a caption once; float32 (M,)."""
    if isinstance(matcher, FunctionModel) and matcher.identity.problem:
        options = replace(options, cache=False)  # as with most functions: no need to warn
    pairs, of_pair = _distinct_pairs(comparisons)
    matcher.check([comparisons.captions[place] for place in np.unique(pairs[:, 1])])
    cache = open_cache(matcher, options)
    per_chunk = getattr(matcher, "images_per_chunk", IMAGES_PER_CHUNK)
    share = share_out("pairs", _digests(comparisons, pairs), _chunks(pairs, per_chunk))
    look_up(cache, share)
    size = options.batch_size or matcher.images_per_batch
    batches = [[chunk[batch] for batch in _chunks(pairs[chunk], size)] for chunk in share.missing]
    announce(f"{matcher.device.type}, {size} images per batch", [share], options)
    prepared = iter(_loader(matcher, comparisons, pairs, chain(*batches), options))
    with matcher.running(), progress_bar(share, options) as bar:
        for chunk, parts in zip(share.missing, batches, strict=True):
            logits = []
            for batch in parts:
                captions = [comparisons.captions[place] for place in pairs[batch, 1]]
                _, of_image = np.unique(pairs[batch, 0], return_inverse=True)
                logits.append(matcher.score_pairs(next(prepared), of_image, captions))
                if chunk is share.missing[0] and len(logits) == 1:
                    tell(getattr(matcher, "way", ""), options)
                bar.update(len(batch))
            of_chunk = np.concatenate([np.asarray(part) for part in logits])
            of_chunk = of_chunk.reshape(len(chunk), -1)
            cache.add(share.digests[chunk], of_chunk)
            share.put(chunk, of_chunk)
    scored = share.gathered().numpy()[of_pair]
    if hasattr(matcher, "remark") and is_main_process():
        matcher.remark(scored)
    if cache.has_grown and processes().is_local_main_process:
        trim_cache()
    return scored[:, 0]


def _distinct_pairs(comparisons: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs, those of a picture side by side, and which one each of M is.

    The order depends on the pictures and captions alone, not on that of the rows.
    """
    orders = [
        np.argsort(np.argsort(np.array(digests)))
        for digests in (comparisons.image_digests, comparisons.caption_digests)
    ]
    ranks = np.stack([order[comparisons.pairs[:, side]] for side, order in enumerate(orders)], 1)
    _, first, of_pair = np.unique(ranks, axis=0, return_index=True, return_inverse=True)
    return comparisons.pairs[first], of_pair.reshape(-1)


def _digests(comparisons: Comparisons, pairs: np.ndarray) -> list[str]:
    images, captions = comparisons.image_digests, comparisons.caption_digests
    return [
        hashlib.sha256(bytes.fromhex(images[image] + captions[caption])).hexdigest()
        for image, caption in pairs
    ]


def _chunks(pairs: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut pairs that stand picture by picture into places of so many pictures each."""
    begins = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))[::size]
    return [np.arange(*bounds) for bounds in pairwise([*begins, len(pairs)])]


@dataclass(frozen=True)
class _Batches(torch.utils.data.Dataset):
    """The pictures of batches of pairs, as a matcher prepares them."""

    comparisons: Comparisons
    prepare: Callable
    pictures: list[list[int]]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, batch: int) -> Any:
        return self.prepare([open_image(self.comparisons, at) for at in self.pictures[batch]])


def _loader(
    matcher: Matcher,
    comparisons: Comparisons,
    pairs: np.ndarray,
    batches: Iterable[np.ndarray],
    options: Options,
) -> DataLoader:
    pictures = [np.unique(pairs[batch, 0]).tolist() for batch in batches]
    device = matcher.device.type
    workers = image_workers(options.num_workers, sum(map(len, pictures)), device)
    return DataLoader(
        _Batches(comparisons, matcher.prepare, pictures),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=partial(end_with, os.getpid()),
    )
