"""What runs over distinct inputs have in common: shares of processes, and what is kept on disk.

    distinct inputs -> chunks -> this process's share -> those not kept -> computed, kept, gathered

Every process takes its share of the chunks first and looks into its cache second. So each input has
exactly one process that answers for it, also where processes have different caches.
"""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from hard_positives.bars import new_bar
from hard_positives.interrupts import NothingKept
from hard_positives.machine import Options, Plan, is_main_process, processes
from hard_positives.models.loading import Model
from hard_positives.scoring.cache import EmbeddingCache, cache_root
from hard_positives.suite.comparisons import Comparisons
from hard_positives_dataset.folders import write_whole


def open_cache(model: Model, options: Options) -> "Cache":
    """Open the cache of a model; one that keeps nothing where that is asked for, or must be."""
    if not options.cache:
        return Cache(None)
    identity = model.identity
    if identity.problem:
        _warn(f"Embeddings of this model are not kept: {identity.problem}.")
        return Cache(None)
    described = identity.description
    about = [described[name] for name in ("dtype", "device") if name in described]
    name = described["model"]["id"] + (f" ({', '.join(about)})" if about else "")
    return Cache(EmbeddingCache(cache_root() / identity.cache_key, name))


def _warn(sentence: str) -> None:
    if is_main_process():
        warnings.warn(sentence, NothingKept, stacklevel=2)


class Cache:
    """A cache that the run can do without: where it fails, one warning, and on."""

    def __init__(self, cache: EmbeddingCache | None) -> None:
        self.cache = cache
        self.has_grown = False

    def find(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up inputs, see `EmbeddingCache.find`."""
        none = np.zeros(len(digests), bool), np.empty((0, 0), np.float32)
        return self._try(lambda cache: cache.find(digests)) or none

    def add(self, digests: np.ndarray, embeds: np.ndarray) -> None:
        """Keep a chunk of vectors, if all are finite."""
        if np.isfinite(embeds).all():  # what went wrong once is not kept
            self._try(lambda cache: cache.add(digests, embeds))
            self.has_grown = self.cache is not None

    def read_plan(self, threads: int) -> Plan | None:
        """Return the plan that an earlier run measured."""

        def read(cache: EmbeddingCache) -> Plan | None:
            path = cache.folder / f"plan_for_{threads}_threads.json"
            return Plan(**json.loads(path.read_text())) if path.is_file() else None

        try:
            return self._try(read)
        except (ValueError, TypeError):  # damaged: measured again
            return None

    def keep_plan(self, threads: int, plan: Plan) -> None:
        """Keep a plan for a run that resumes this one."""

        def write(cache: EmbeddingCache) -> None:
            cache.folder.mkdir(parents=True, exist_ok=True)
            with write_whole(cache.folder / f"plan_for_{threads}_threads.json") as partial:
                partial.write_text(json.dumps(asdict(plan)))

        self._try(write)

    def _try(self, use: Callable) -> Any:
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
class Share:
    """The distinct inputs of one kind, and the chunks of them that this process answers for.

    Attributes:
        name: `images`, `captions` or `pairs`.
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
        """Fill in vectors."""
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
        """Return how many inputs this process has to compute."""
        return sum(map(len, self.missing))


def cut(order: Sequence[int], size: int) -> list[np.ndarray]:
    """Cut an order of inputs into chunks of so many."""
    return [np.array(order[start : start + size]) for start in range(0, len(order), size)]


def share_out(name: str, digests: Sequence[str], chunks: Sequence[np.ndarray]) -> Share:
    """Take every n-th of all chunks, for n processes."""
    state = processes()
    keys = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8)
    keys = keys.reshape(len(digests), -1 if digests else 32)
    none, known = np.empty((len(digests), 0), np.float32), np.zeros(len(digests), bool)
    mine = list(chunks[state.process_index :: state.num_processes])
    return Share(name, keys, mine, none, known)


def share_captions(comparisons: Comparisons, size: int) -> Share:
    """Share out all distinct captions in chunks of so many, those of like length side by side.

    Sorted, so that chunks depend neither on the order of rows nor on where a killed run stopped.
    """
    captions = comparisons.captions
    by_length = sorted(range(len(captions)), key=lambda at: (len(captions[at]), captions[at]))
    return share_out("captions", comparisons.caption_digests, cut(by_length, size))


def look_up(cache: Cache, *shares: Share) -> None:
    """Fetch what the cache has of all shares, reading it once."""
    mine = [share.mine for share in shares]
    keys = [share.digests[places] for share, places in zip(shares, mine, strict=True)]
    found, embeds = cache.find(np.concatenate(keys))
    start = 0
    for share, places in zip(shares, mine, strict=True):
        here, found = found[: len(places)], found[len(places) :]
        share.put(places[here], embeds[start : start + here.sum()])
        start += here.sum()


def progress_bar(share: Share, options: Options) -> tqdm:
    """Show how much of a share is computed."""
    shown = options.progress and is_main_process() and bool(share.missing)
    return new_bar(share.name, share.count_missing(), shown=shown)


def announce(how: str, shares: Sequence[Share], options: Options) -> None:
    """Say how it will be computed, and how much."""
    number = processes().num_processes
    here = f", the share of one of {number} processes" if number > 1 else ""
    counts = [
        f"{share.count_missing():,} of {len(share.digests):,} distinct {share.name}"
        for share in shares
    ]
    tell(f"{how}. To compute: {', '.join(counts)}{here}.", options)


def tell(sentence: str, options: Options) -> None:
    """Print a line beside the progress bars, if there is one to print."""
    if sentence and options.progress and is_main_process():
        tqdm.write(sentence, file=sys.stderr)
