"""Models of open_clip, with its own preparation of images and its own tokenizers.

* `open_clip:ARCH/CHECKPOINT`: an architecture, and a tag of weights or a file.
* `hf-hub:ORG/REPO` and `local-dir:FOLDER`: what open_clip reads its configuration from.
* A loaded ``(model, preprocess, tokenizer)``.

open_clip cuts captions off and takes random weights where it is given none; here both are errors.
Nothing of the package is imported until a model asks for it.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hard_positives.models.adapters import put_on_module
from hard_positives.models.encoders import CAPTIONS_PER_IMAGE
from hard_positives.models.identity import Identity, identify_modules, state_hash
from hard_positives.models.inference import halving, inference
from hard_positives.models.kinds import Settings
from hard_positives.models.pixels import Preparation

PREFIX = "open_clip:"
PREFIXES = (PREFIX, "hf-hub:", "local-dir:")
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_MISMATCH = "QuickGELU mismatch"  # how open_clip's warning begins


def load_open_clip(
    name: str, settings: Settings, device: torch.device, dtype: torch.dtype
) -> "OpenClipEncoder":
    """Load a model by its name.

    Raises:
        ValueError: No checkpoint is named, it is not there, or it was trained with another
            activation than the architecture has.
    """
    import open_clip

    architecture, checkpoint = name, None
    if name.startswith(PREFIX):
        architecture, _, tag = name.removeprefix(PREFIX).partition("/")
        if not tag:
            raise ValueError(
                f"Expected {name} to name a checkpoint behind the architecture, such as "
                f"{name}/{next(iter(open_clip.list_pretrained_tags_by_model(architecture)), 'TAG')}"
                ", got none. Its weights would be random."
            )
        checkpoint = tag
    if checkpoint is not None and Path(checkpoint).is_file():
        _warn_of_activation(architecture, checkpoint, open_clip.list_models())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_MISMATCH)
            model, preprocess = open_clip.create_model_from_pretrained(
                architecture, checkpoint, precision=_PRECISIONS[dtype], device=device
            )
    except UserWarning as error:
        raise ValueError(
            f"Expected the activation of {architecture} to be the one that {checkpoint} was "
            f"trained with, got another ({error}). Name the architecture with -quickgelu behind "
            "it, or without."
        ) from error
    except RuntimeError as error:  # of all kinds: unknown names, weights that do not fit
        raise ValueError(
            f"Expected {name} to be a model that open_clip can load, got an error ({error})."
        ) from error
    if settings.get("adapter"):
        put_on_module(model, settings["adapter"])
    return OpenClipEncoder(model, preprocess, open_clip.get_tokenizer(architecture), name)


def _warn_of_activation(architecture: str, checkpoint: str, architectures: list[str]) -> None:
    """A file does not tell its activation, and open_clip does not ask."""
    other = architecture.removesuffix("-quickgelu")
    if other == architecture:
        other += "-quickgelu"
    if other in architectures:
        warnings.warn(
            f"{checkpoint} does not tell its activation. It is scored as {architecture}; if it was "
            f"trained as {other}, as OpenAI's, DFN's and MetaCLIP's weights and what is tuned from "
            "them mostly are with -quickgelu, name that.",
            stacklevel=2,
        )


def is_open_clip(model: Any) -> bool:
    """Tell whether this is a loaded ``(model, preprocess, tokenizer)``."""
    return (
        isinstance(model, (tuple, list))
        and len(model) == 3
        and all(hasattr(model[0], name) for name in ("encode_image", "encode_text", "logit_scale"))
        and callable(model[1])
        and callable(model[2])
    )


@dataclass(frozen=True)
class Transform:
    """open_clip's preparation of one image, in a worker; holds no model."""

    preprocess: Callable[[Image.Image], torch.Tensor]

    def __call__(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Prepare one RGB image."""
        return {"pixel_values": self.preprocess(image)}


@dataclass(frozen=True)
class OpenClipEncoder:
    """A model of open_clip, as `encoders.DualEncoder` is one of transformers.

    Attributes:
        model: With `encode_image`, `encode_text` and `logit_scale`.
        preprocess: Turns a PIL image into a tensor.
        tokenizer: Turns captions into token ids of one length.
        name: What it was loaded by; empty if it came loaded.
    """

    model: Any
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenizer: Any
    name: str = ""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.logit_scale.device

    @property
    def _dtype(self) -> torch.dtype:
        # Of the image tower's largest layer: half precision leaves some parameters in float32.
        return max(self.model.visual.parameters(), key=torch.Tensor.numel).dtype

    @property
    def dtype(self) -> str:
        """The type that the towers run in."""
        return str(self._dtype).removeprefix("torch.")

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on; hashing the weights is worth doing once."""
        words = {key: part for key, part in vars(self.tokenizer).items() if key != "cache"}
        about = {
            "id": self.name or type(self.model).__name__,
            # An address of memory is another in every process.
            "preparation": re.sub(r" at 0x\w+", "", repr(self.preprocess)),
            "tokenizer_sha256": state_hash([type(self.tokenizer), words]),
        }
        return identify_modules(self.model, about, self.device, self.dtype)

    def running(self) -> AbstractContextManager:
        """Run for outputs alone."""
        return inference(self.model)

    def preparation(self, images: Iterable[Image.Image]) -> Preparation:
        """Prepare images by open_clip's transforms."""
        return Preparation(Transform(self.preprocess))

    def tokenize(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """Turn captions into token ids, refusing those that open_clip would cut off."""
        if not captions:
            return []
        most = self.model.context_length
        twice = self.tokenizer(["", *captions], context_length=2 * most)
        padding = twice[0, -1]
        too_long = (twice[1:, most:] != padding).any(1)
        if too_long.any():
            first = captions[int(too_long.nonzero()[0])]
            raise ValueError(
                f"Expected captions of at most {most} tokens, got {int(too_long.sum())} that are "
                f"longer, first {first[:80]!r}. Shorten them; open_clip would cut them off."
            )
        return list(self.tokenizer(list(captions), context_length=most))

    def caption_batches(self, token_ids: list[torch.Tensor], batch_size: int) -> Iterator[range]:
        """Cut captions into batches; yields their places."""
        size = CAPTIONS_PER_IMAGE * batch_size
        for start in range(0, len(token_ids), size):
            yield range(start, min(start + size, len(token_ids)))

    def embed_captions(self, token_ids: list[torch.Tensor]) -> torch.Tensor:
        """Encode one batch of captions into unit vectors, (captions, D) float32 on the device."""
        batch = {"text": torch.stack(token_ids).to(self.device)}
        return _unit(halving(lambda part: self.model.encode_text(part["text"]), batch))

    def embed_images(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Encode one batch of prepared images into unit vectors, (images, D) float32."""
        batch = {"image": inputs["pixel_values"].to(self.device, self._dtype, non_blocking=True)}
        return _unit(halving(lambda part: self.model.encode_image(part["image"]), batch))

    @property
    def scale(self) -> torch.Tensor:
        """What a cosine is multiplied by: float32, no dimension."""
        return self.model.logit_scale.detach().float().cpu().reshape(()).exp()

    @property
    def bias(self) -> torch.Tensor:
        """What is added then: float32, no dimension."""
        bias = getattr(self.model, "logit_bias", None)
        return torch.zeros(()) if bias is None else bias.detach().float().cpu().reshape(())


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)
