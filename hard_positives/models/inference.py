"""Running a model for its outputs alone: in its own type, within the memory that there is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """Run a model for its outputs alone, in its own type; every module keeps the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    device = next(model.parameters()).device
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def on_device(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move inputs to a model, those of floats in its type."""
    return {
        name: values.to(
            model.device, model.dtype if values.is_floating_point() else None, non_blocking=True
        )
        for name, values in inputs.items()
    }


def halving(run: Callable, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run a batch; where the device's memory is too small for it, in halves."""
    size = len(next(iter(batch.values())))
    try:
        return run(batch)
    except RuntimeError as error:
        is_memory = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
        if size == 1 or not is_memory:
            raise
    halves = [
        {name: values[part] for name, values in batch.items()}
        for part in (slice(size // 2), slice(size // 2, None))
    ]
    return torch.cat([halving(run, half) for half in halves])
