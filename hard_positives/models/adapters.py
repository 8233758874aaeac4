"""PEFT adapters (LoRA and others) on a model's own weights: whole, or not at all."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hard_positives.names import public_name


def put_on(model: PreTrainedModel, adapter: str | Path) -> None:
    """Load an adapter into a model of transformers, under a name that the signature tells.

    Raises:
        ValueError: It does not fit the model.
    """
    _fitting(model, adapter, lambda: model.load_adapter(str(adapter), adapter_name=_name(adapter)))


def put_on_module(module: torch.nn.Module, adapter: str | Path) -> None:
    """Load an adapter into any module.

    Raises:
        ValueError: It does not fit the module.
    """
    import peft

    def load() -> Any:
        config = peft.PeftConfig.from_pretrained(str(adapter))
        wrapped = peft.PeftModel(module, config, _name(adapter))  # changes the module itself
        return wrapped.load_adapter(str(adapter), _name(adapter))

    _fitting(module, adapter, load)


def _name(adapter: str | Path) -> str:
    return str(public_name(adapter)).replace("/", "--").replace(".", "_")


def _fitting(model: torch.nn.Module, adapter: str | Path, load: Any) -> None:
    """Load, and refuse what has not all of its weights in their places."""
    try:
        info = load()
        wrong = [*info.missing_keys, *info.unexpected_keys]
        got = f"{len(wrong)} weights that are missing or have no place, first {wrong[:1]}"
    except RuntimeError:  # the libraries have logged which
        wrong, got = [""], "weights of other sizes"
    if wrong:
        raise ValueError(
            f"Expected the adapter {adapter} to fit {type(model).__name__}, got {got}. Give the "
            "model that it was trained on."
        )
