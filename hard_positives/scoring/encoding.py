"""The distinct images and captions of comparisons -> two matrices of unit vectors.

    distinct inputs -> chunks -> this process's share -> those not cached -> encoded, kept, gathered

Every process takes its share of the chunks first and looks into its cache second. So each input has
exactly one process that answers for it, also where processes have different caches.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from hard_positives.machine import (
    Plan,
    fastest_plan,
    image_workers,
    is_main_process,
    keep_freed_memory,
    processes,
    use_threads,
)
from hard_positives.models.pixels import CHECKED, cut_in_two, look_up
from hard_positives.scoring.cache import EmbeddingCache, cache_root, trim_cache
from hard_positives.suite.comparisons import Comparisons
from hard_positives.suite.rows import PreparedImages, open_image
from hard_positives.workers import end_with
from hard_positives_dataset.folders import write_whole

if TYPE_CHECKING:
    from hard_positives.models.encoders import DualEncoder, Options

# The unit of the cache, of what a killed run does again, and of what processes share.
IMAGES_PER_CHUNK, CAPTIONS_PER_CHUNK = 256, 4096
MEASURED_FROM = 2000  # images on a CPU, from which measuring threads and batch sizes pays
# Of captions per batch, for each image per batch: what a CPU's cache holds, what fills a GPU.
TOKENS_PER_IMAGE_ON_CPU, TOKENS_PER_IMAGE = 100, 200


def encode(
    encoder: "DualEncoder", comparisons: Comparisons, options: "Options"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode what is not cached, sharing the work among processes.

    Returns:
        The unit vectors of all distinct images, (images, D), and captions, (captions, D), float32
        on the CPU, in the order of `comparisons`; the same in every process.
    """
    cache = _Cache(_open_cache(encoder) if options.cache else None)
    # Sorted, so that chunks depend neither on the order of rows nor on where a killed run stopped.
    # Captions of like length stand together.
    captions, digests = comparisons.captions, comparisons.image_digests
    by_length = sorted(range(len(captions)), key=lambda at: (len(captions[at]), captions[at]))
    by_digest = sorted(range(len(digests)), key=digests.__getitem__)
    texts = _share("captions", comparisons.caption_digests, by_length, CAPTIONS_PER_CHUNK)
    images = _share("images", digests, by_digest, IMAGES_PER_CHUNK)
    _look_up(cache, images, texts)
    _Run(encoder, comparisons, options, cache, images, texts).encode_missing()
    both = images.gathered(), texts.gathered()
    if cache.has_grown and processes().is_local_main_process:  # now that no process adds to it
        trim_cache()
    return both


def _open_cache(encoder: "DualEncoder") -> EmbeddingCache | None:
    identity = encoder.identity
    if identity.problem:
        _warn(f"Embeddings of this model are not kept: {identity.problem}.")
        return None
    model, dtype, device = (identity.description[name] for name in ("model", "dtype", "device"))
    return EmbeddingCache(cache_root() / identity.cache_key, f"{model['id']} ({dtype}, {device})")


def _warn(sentence: str) -> None:
    if is_main_process():
        warnings.warn(sentence, stacklevel=2)


class _Cache:
    """A cache that the run can do without: where it fails, one warning, and on."""

    def __init__(self, cache: EmbeddingCache | None):
        self.cache = cache
        self.has_grown = False

    def find(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        none = np.zeros(len(digests), bool), np.empty((0, 0), np.float32)
        return self._try(lambda cache: cache.find(digests)) or none

    def add(self, digests: np.ndarray, embeds: np.ndarray) -> None:
        if np.isfinite(embeds).all():  # what went wrong once is not kept
            self._try(lambda cache: cache.add(digests, embeds))
            self.has_grown = self.cache is not None

    def read_plan(self, threads: int) -> Plan | None:
        def read(cache: EmbeddingCache) -> Plan | None:
            path = cache.folder / f"plan_for_{threads}_threads.json"
            return Plan(**json.loads(path.read_text())) if path.is_file() else None

        try:
            return self._try(read)
        except (ValueError, TypeError):  # damaged: measured again
            return None

    def keep_plan(self, threads: int, plan: Plan) -> None:
        def write(cache: EmbeddingCache) -> None:
            cache.folder.mkdir(parents=True, exist_ok=True)
            with write_whole(cache.folder / f"plan_for_{threads}_threads.json") as partial:
                partial.write_text(json.dumps(asdict(plan)))

        self._try(write)

    def _try(self, use: Callable):
        if self.cache is None:
            return None
        try:
            return use(self.cache)
        except OSError as error:
            _warn(
                f"The cache of embeddings in {cache_root()} cannot be used ({error}), so this run "
                "does without. Set HARD_POSITIVES_CACHE to another folder."
            )
            self.cache = None
            return None


@dataclass
class _Share:
    """The distinct inputs of one kind, and the chunks of them that this process answers for.

    Attributes:
        name: `images` or `captions`.
        digests: (n, 32) uint8, SHA-256 of all inputs.
        chunks: Places of the inputs of this process.
        embeds: (n, D) float32; (n, 0) until the first vectors come.
        known: (n,) bool, which rows of `embeds` hold a vector.
    """

    name: str
    digests: np.ndarray
    chunks: list[np.ndarray]
    embeds: np.ndarray
    known: np.ndarray

    @property
    def mine(self) -> np.ndarray:
        """Places of all inputs of this process."""
        return np.concatenate([np.empty(0, int), *self.chunks])

    @cached_property
    def missing(self) -> list[np.ndarray]:
        """What of the chunks was not there when this was asked first, before encoding."""
        left = [chunk[~self.known[chunk]] for chunk in self.chunks]
        return [chunk for chunk in left if len(chunk)]

    def put(self, places: np.ndarray, embeds: np.ndarray) -> None:
        if not len(places):
            return
        if not self.embeds.shape[1]:
            self.embeds = np.empty((len(self.digests), embeds.shape[1]), np.float32)
        self.embeds[places] = embeds
        self.known[places] = True

    def gathered(self) -> torch.Tensor:
        """Join the shares of all processes; (n, D)."""
        if processes().num_processes > 1:
            for places, embeds in gather_object([(self.mine, self.embeds[self.mine])]):
                self.put(places, embeds)
        if not self.known.all():
            raise RuntimeError(f"{(~self.known).sum()} {self.name} were encoded by no process.")
        return torch.from_numpy(self.embeds)

    def count_missing(self) -> int:
        return sum(map(len, self.missing))


def _share(name: str, digests: list[str], order: list[int], size: int) -> _Share:
    """Cut the order into chunks and take every n-th, for n processes."""
    state = processes()
    chunks = [np.array(order[start : start + size]) for start in range(0, len(order), size)]
    keys = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), -1)
    none, known = np.empty((len(digests), 0), np.float32), np.zeros(len(digests), bool)
    return _Share(name, keys, chunks[state.process_index :: state.num_processes], none, known)


def _look_up(cache: _Cache, *shares: _Share) -> None:
    """Fetch what the cache has of all shares, reading it once."""
    mine = [share.mine for share in shares]
    keys = [share.digests[places] for share, places in zip(shares, mine, strict=True)]
    found, embeds = cache.find(np.concatenate(keys))
    start = 0
    for share, places in zip(shares, mine, strict=True):
        here, found = found[: len(places)], found[len(places) :]
        share.put(places[here], embeds[start : start + here.sum()])
        start += here.sum()


@dataclass
class _Run:
    """One pass of a model over what is missing: batches, workers, progress.

    Attributes:
        floats: What stands for the bytes that workers send, on the device and in the type of the
            model; None where they send what the whole image processor makes.
    """

    encoder: "DualEncoder"
    comparisons: Comparisons
    options: "Options"
    cache: _Cache
    images: _Share
    captions: _Share
    floats: torch.Tensor | None = None

    def encode_missing(self) -> None:
        """Encode all chunks, captions in step with images.

        So a GPU has captions to encode while images are decoded, and no worker waits until all
        captions are done.
        """
        files = self._prepared_images()
        plan = self._plan(files)
        batch_size = self.options.batch_size or plan.batch_size
        self._tell(plan, batch_size)
        # Workers prepare images from here on, while captions are tokenised.
        images = self._embedded_images(files, batch_size)
        captions = self._embedded_captions(self._tokenized(), batch_size)
        keep_freed_memory()
        with (
            use_threads(plan.threads),
            self._bar(self.captions) as caption_bar,
            self._bar(self.images) as image_bar,
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

    def _prepared_images(self) -> PreparedImages:
        missing = islice(chain(*self.images.missing), CHECKED)
        prepare, floats = cut_in_two(
            self.encoder.image_processor, (open_image(self.comparisons, place) for place in missing)
        )
        if floats is not None:
            self.floats = floats.to(self.encoder.device, self.encoder.model.dtype)
        return PreparedImages(self.comparisons, prepare)

    def _embed_images(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.floats is not None:
            pixels = inputs["pixel_values"].to(self.floats.device, non_blocking=True)
            inputs = {"pixel_values": look_up(pixels, self.floats)}
        return self.encoder.embed_images(inputs)

    def _embedded_images(self, files: PreparedImages, batch_size: int) -> Callable:
        """Give a function that encodes the next chunk, with workers already at work."""
        chunks = iter(self.images.missing)
        prepared = iter(self._image_loader(files, batch_size))

        def next_chunk(bar: tqdm) -> tuple[np.ndarray, np.ndarray]:
            chunk, parts = next(chunks), []
            for inputs in islice(prepared, len(_batches(chunk, batch_size))):
                parts.append(self._embed_images(inputs))
                bar.update(len(parts[-1]))
            return chunk, torch.cat(parts).cpu().numpy()  # the one wait for the device in a chunk

        return next_chunk

    def _image_loader(self, files: PreparedImages, batch_size: int) -> DataLoader:
        device = self.encoder.device.type
        workers = image_workers(self.options.num_workers, self.images.count_missing(), device)
        return DataLoader(
            files,
            batch_sampler=[
                batch.tolist()
                for chunk in self.images.missing
                for batch in _batches(chunk, batch_size)
            ],
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=device == "cuda",
            worker_init_fn=partial(end_with, os.getpid()),
        )

    def _tokenized(self) -> Iterator[tuple[np.ndarray, list[list[int]]]]:
        """Tokenise all before anything is encoded: a caption too long should not cost a night."""
        texts = [
            self.comparisons.captions[place] for chunk in self.captions.missing for place in chunk
        ]
        token_ids = iter(self.encoder.tokenize(texts))
        return iter(
            [(chunk, list(islice(token_ids, len(chunk)))) for chunk in self.captions.missing]
        )

    def _embedded_captions(self, tokenized: Iterator, batch_size: int) -> Callable:
        on_cpu = self.encoder.device.type == "cpu"
        tokens = batch_size * (TOKENS_PER_IMAGE_ON_CPU if on_cpu else TOKENS_PER_IMAGE)

        def next_chunk(bar: tqdm) -> tuple[np.ndarray, np.ndarray]:
            chunk, token_ids = next(tokenized)
            order = sorted(range(len(chunk)), key=lambda at: len(token_ids[at]))
            parts = []
            for batch in _batches_of_one_length([token_ids[at] for at in order], tokens):
                parts.append(self.encoder.embed_captions(batch))
                bar.update(len(batch))
            return chunk[order], torch.cat(parts).cpu().numpy()

        return next_chunk

    def _bar(self, share: _Share) -> tqdm:
        # disable=None: no bar where stderr is not a terminal.
        shown = self.options.progress and is_main_process() and share.missing
        name, total = share.name, share.count_missing()
        return tqdm(total=total, desc=name, unit=f" {name}", disable=None if shown else True)

    def _plan(self, files: PreparedImages) -> Plan:
        """Measure on a CPU, where it pays; remembered, so that a resumed run computes alike."""
        threads = torch.get_num_threads()
        if self.encoder.device.type != "cpu":
            return Plan(threads, 64)  # decoding is the wall; small batches keep all workers busy
        if len(self.images.digests) < MEASURED_FROM:
            return Plan(threads, 16)
        plan = self.cache.read_plan(threads)
        if plan is None and self.images.missing:
            place = self.images.missing[0][0]
            plan = fastest_plan(lambda plan: self._seconds_per_image(plan, files[place]), threads)
            self.cache.keep_plan(threads, plan)
        return plan or Plan(threads, 16)

    def _seconds_per_image(self, plan: Plan, image: dict[str, torch.Tensor]) -> float:
        batch = default_collate([image] * plan.batch_size)
        with use_threads(plan.threads):
            start = time.perf_counter()
            self._embed_images(batch)
            return (time.perf_counter() - start) / plan.batch_size

    def _tell(self, plan: Plan, batch_size: int) -> None:
        if not (self.options.progress and is_main_process()):
            return
        device, number = self.encoder.device.type, processes().num_processes
        threads = f", {plan.threads} threads" if device == "cpu" else ""
        here = f", the share of one of {number} processes" if number > 1 else ""
        dtype = str(self.encoder.model.dtype).removeprefix("torch.")
        counts = [
            f"{share.count_missing():,} of {len(share.digests):,} distinct {share.name}"
            for share in (self.images, self.captions)
        ]
        tqdm.write(
            f"{device}{threads}, {dtype}, {batch_size} images per batch. To encode: "
            f"{', '.join(counts)}{here}.",
            file=sys.stderr,
        )


def _batches(chunk: np.ndarray, size: int) -> list[np.ndarray]:
    return [chunk[start : start + size] for start in range(0, len(chunk), size)]


def _batches_of_one_length(token_ids: list[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Cut captions that stand in order of length so that no padding is computed."""
    batch: list[list[int]] = []
    for ids in token_ids:
        most = max(1, tokens // len(ids))
        if batch and (len(batch) >= most or len(ids) != len(batch[0])):
            yield batch
            batch = []
        batch.append(ids)
    yield batch
