"""The distinct images and captions of comparisons -> two matrices of unit vectors.

Images are prepared in workers, captions are encoded in step with them, and each chunk is kept on
disk as soon as it is whole.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from hard_positives.machine import (
    Options,
    Plan,
    fastest_plan,
    image_workers,
    keep_freed_memory,
    processes,
    use_threads,
)
from hard_positives.models.loading import Encoder
from hard_positives.models.pixels import CHECKED, Preparation
from hard_positives.scoring.cache import trim_cache
from hard_positives.scoring.images import PreparedImages, open_store
from hard_positives.scoring.sharing import (
    Cache,
    Share,
    announce,
    cut,
    look_up,
    open_cache,
    progress_bar,
    share_captions,
    share_out,
)
from hard_positives.suite.comparisons import Comparisons
from hard_positives.suite.rows import open_image
from hard_positives.workers import end_with

# The unit of the cache, of what a killed run does again, and of what processes share.
IMAGES_PER_CHUNK, CAPTIONS_PER_CHUNK = 256, 4096
MEASURED_FROM = 2000  # images on a CPU, from which measuring threads and batch sizes pays


def encode(
    encoder: Encoder, comparisons: Comparisons, options: Options
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode what is not cached, sharing the work among processes.

    Returns:
        The unit vectors of all distinct images, (images, D), and captions, (captions, D), float32
        on the CPU, in the order of `comparisons`; the same in every process.
    """
    cache = open_cache(encoder, options)
    digests = comparisons.image_digests
    by_digest = sorted(range(len(digests)), key=digests.__getitem__)  # whatever the order of rows
    texts = share_captions(comparisons, CAPTIONS_PER_CHUNK)
    images = share_out("images", digests, cut(by_digest, IMAGES_PER_CHUNK))
    look_up(cache, images, texts)
    with encoder.running():
        _Run(encoder, comparisons, options, cache, images, texts).encode_missing()
    both = images.gathered(), texts.gathered()
    if cache.has_grown and processes().is_local_main_process:  # now that no process adds to it
        trim_cache()
    return both


@dataclass
class _Run:
    """One pass of a model over what is missing: batches, workers, progress."""

    encoder: Encoder
    comparisons: Comparisons
    options: Options
    cache: Cache
    images: Share
    captions: Share

    def encode_missing(self) -> None:
        """Encode all chunks, captions in step with images.

        So a GPU has captions to encode while images are decoded, and no worker waits until all
        captions are done.
        """
        store = open_store(self.preparation, self.options)
        keep = self.options.keep_images
        files = PreparedImages(self.comparisons, self.preparation.prepare, store, keep)
        plan = self._plan(files)
        batch_size = self.options.batch_size or plan.batch_size
        self._announce(plan, batch_size)
        # Workers prepare images from here on, while captions are tokenised.
        images = self._embedded_images(files, batch_size, plan.workers)
        captions = self._embedded_captions(self._tokenized(), batch_size)
        keep_freed_memory()
        with (
            use_threads(plan.threads),
            progress_bar(self.captions, self.options) as caption_bar,
            progress_bar(self.images, self.options) as image_bar,
        ):
            steps = [
                (done / len(share.missing), share, source, bar)
                for share, source, bar in (
                    (self.captions, captions, caption_bar),
                    (self.images, images, image_bar),
                )
                for done in range(len(share.missing))
            ]
            # The side that is behind comes next.
            for _, share, source, bar in sorted(steps, key=lambda step: step[0]):
                places, embeds = source(bar)
                self.cache.add(share.digests[places], embeds)
                share.put(places, embeds)

    @cached_property
    def preparation(self) -> Preparation:
        """What is done to images, chosen by the first of them."""
        missing = islice(chain(*self.images.missing), CHECKED)
        return self.encoder.preparation(open_image(self.comparisons, place) for place in missing)

    def _embedded_images(
        self, files: PreparedImages, batch_size: int, workers: int | None
    ) -> Callable:
        """Give a function that encodes the next chunk, with workers already at work."""
        chunks = iter(self.images.missing)
        prepared = iter(self._image_loader(files, batch_size, workers))

        def next_chunk(bar: tqdm) -> tuple[np.ndarray, np.ndarray]:
            chunk, parts = next(chunks), []
            for inputs in islice(prepared, len(_batches(chunk, batch_size))):
                parts.append(self.encoder.embed_images(self.preparation.finish(inputs)))
                bar.update(len(parts[-1]))
            return chunk, torch.cat(parts).cpu().numpy()  # the one wait for the device in a chunk

        return next_chunk

    def _image_loader(
        self, files: PreparedImages, batch_size: int, workers: int | None
    ) -> DataLoader:
        device = self.encoder.device.type
        if workers is None or self.options.num_workers is not None:
            workers = image_workers(self.options.num_workers, self.images.count_missing(), device)
        return DataLoader(
            files,
            batch_sampler=[
                batch.tolist()
                for chunk in self.images.missing
                for batch in _batches(chunk, batch_size)
            ],
            collate_fn=self.preparation.collate,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=device == "cuda",
            worker_init_fn=partial(end_with, os.getpid()),
        )

    def _tokenized(self) -> Iterator[tuple[np.ndarray, list]]:
        """Tokenise all before anything is encoded: a caption too long should not cost a night."""
        texts = [
            self.comparisons.captions[place] for chunk in self.captions.missing for place in chunk
        ]
        tokens = iter(self.encoder.tokenize(texts))
        return iter([(chunk, list(islice(tokens, len(chunk)))) for chunk in self.captions.missing])

    def _embedded_captions(self, tokenized: Iterator, batch_size: int) -> Callable:
        def next_chunk(bar: tqdm) -> tuple[np.ndarray, np.ndarray]:
            chunk, captions = next(tokenized)
            order, parts = [], []
            for places in self.encoder.caption_batches(captions, batch_size):
                parts.append(self.encoder.embed_captions([captions[at] for at in places]))
                order.extend(places)
                bar.update(len(places))
            return chunk[order], torch.cat(parts).cpu().numpy()

        return next_chunk

    def _plan(self, files: PreparedImages) -> Plan:
        """Measure on a CPU, where it pays; remembered, so that a resumed run computes alike."""
        threads = torch.get_num_threads()
        if self.encoder.device.type != "cpu":
            return Plan(threads, 64)  # decoding is the wall; small batches keep all workers busy
        if len(self.images.digests) < MEASURED_FROM:
            return Plan(threads, 16)
        plan = self.cache.read_plan(threads)
        if plan is None and self.images.missing:
            places = self.images.missing[0][:8]
            start = time.perf_counter()
            prepared = [files[place] for place in places]
            preparing = (time.perf_counter() - start) / len(places)
            seconds = partial(self._seconds_per_image, prepared[0])
            plan = fastest_plan(seconds, preparing, threads)
            self.cache.keep_plan(threads, plan)
        return plan or Plan(threads, 16)

    def _seconds_per_image(self, image: Any, threads: int, batch_size: int) -> float:
        batch = self.preparation.collate([image] * batch_size)
        with use_threads(threads):
            start = time.perf_counter()
            self.encoder.embed_images(self.preparation.finish(batch))
            return (time.perf_counter() - start) / batch_size

    def _announce(self, plan: Plan, batch_size: int) -> None:
        device = self.encoder.device.type
        threads = f"{plan.threads} threads" if device == "cpu" else ""
        parts = filter(
            None, (device, threads, self.encoder.dtype, f"{batch_size} images per batch")
        )
        announce(", ".join(parts), (self.images, self.captions), self.options)


def _batches(chunk: np.ndarray, size: int) -> list[np.ndarray]:
    return [chunk[start : start + size] for start in range(0, len(chunk), size)]
