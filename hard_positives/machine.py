"""What a run uses of a machine: processes, image workers, threads, batch sizes; asked or measured.

Nothing here knows of models: what is measured comes in as a function.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import PartialState


@dataclass(frozen=True)
class Options:
    """How to run, as `hard_positives.score` takes it; none of it changes the logits.

    Attributes:
        batch_size: Images per batch; chosen if None.
        num_workers: Processes that prepare images; chosen if None.
        cache: Whether to keep embeddings and logits of pairs on disk and use those that are there.
        progress: Whether to show progress bars where stderr is a terminal.
        keep_images: Whether to keep prepared images on disk too, for the next model.
    """

    batch_size: int | None = None
    num_workers: int | None = None
    cache: bool = True
    progress: bool = True
    keep_images: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"Expected {name} to be at least {least}, got {value}.")


def processes() -> PartialState:
    """Return this process's place among those of `accelerate launch` or `torchrun`."""
    return PartialState(cpu=not torch.accelerator.is_available())


def is_main_process() -> bool:
    """Say whether this process is the one that prints and writes."""
    return processes().is_main_process


def cores() -> int:
    """Count the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def image_workers(num_workers: int | None, num_images: int, device: str) -> int:
    """Choose how many processes decode images, where nothing else is asked for or measured."""
    if num_workers is not None:
        return num_workers
    if num_images < 1000:  # starting processes takes longer than decoding
        return 0
    return 1 if device == "cpu" else min(16, cores())


@dataclass(frozen=True)
class Plan:
    """Threads of torch, images per batch, workers that prepare images (None: not measured)."""

    threads: int
    batch_size: int
    workers: int | None = None


def fastest_plan(
    seconds_per_image: Callable[[int, int], float], preparing: float, threads: int
) -> Plan:
    """Choose by measuring: the threads that let model and workers get on, and how many workers.

    Args:
        seconds_per_image: Runs the model with so many threads on a batch of so many images.
        preparing: Seconds that one process takes to prepare an image.
        threads: The most to use; a container can have fewer cores than it shows.
    """

    def seconds(threads: int) -> float:
        running = seconds_per_image(threads, 16)
        return max(running, (preparing + threads * running) / cores())  # both share the cores

    seconds_per_image(threads, 16)  # warms up
    best = seconds(threads)
    while threads > 1:
        halved = seconds(threads // 2)
        if halved > 1.05 * best:  # less is noise; what threads leave over, workers take
            break
        threads, best = threads // 2, min(best, halved)
    fastest = {size: seconds_per_image(threads, size) for size in (16, 32, 64)}
    size = min(fastest, key=fastest.__getitem__)
    return Plan(threads, size, min(cores(), math.ceil(preparing / fastest[size])))


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads, then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Have glibc keep what a layer frees for the next one, rather than ask the system again.

    Freeing one large block raises its dynamic mmap threshold (mallopt(3)). Without this, page
    faults take up to 7 % of the time of a ViT-B/32.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
