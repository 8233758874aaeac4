"""Models that embed images and captions apart: each distinct input once, for any number of pairs.

* `DualEncoder`, a model of transformers with two towers (CLIP and its kin).
* `OutsideEmbedder`, any object with the methods of `protocols.Embedder`.

Both know how to prepare and embed a batch, and no cache, processes or progress bars of a whole run
(`scoring`). `loading.load_model` chooses among all kinds of models.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import ProcessorMixin

from hard_positives.models.identity import Identity, identify, identify_outside
from hard_positives.models.inference import halving, inference, on_device
from hard_positives.models.pixels import Preparation, cut_in_two
from hard_positives.models.preprocessing import choose_image_processor
from hard_positives.models.protocols import Embedder
from hard_positives.models.tokens import batches_of_one_length, pad, tokenize

# Of captions per batch, for each image per batch: what a CPU's cache holds, what fills a GPU.
TOKENS_PER_IMAGE_ON_CPU, TOKENS_PER_IMAGE = 100, 200
CAPTIONS_PER_IMAGE = 8  # where nobody knows of tokens


@dataclass(frozen=True)
class DualEncoder:
    """A model with an image tower and a text tower, on its device, and its processor.

    Attributes:
        model: A `PreTrainedModel`, left as it is, but for the mode while it scores.
        processor: With `image_processor` and `tokenizer`.
        preprocessing: What prepares images, see `preprocessing.choose_image_processor`.
    """

    model: Any  # a type checker knows no methods of a PreTrainedModel
    processor: ProcessorMixin
    preprocessing: str = "transformers"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """The type that the towers run in."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on; hashing the weights is worth doing once."""
        return identify(self.model, self.processor, self.preprocessing)

    def running(self) -> AbstractContextManager:
        """Run for outputs alone."""
        return inference(self.model)

    def preparation(self, images: Iterable[Image.Image]) -> Preparation:
        """Choose how images are prepared, by some of those that will come."""
        chosen = choose_image_processor(self.processor.image_processor, self.preprocessing)
        return cut_in_two(chosen, images).to(self.device, self.model.dtype)

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Turn captions into token ids, refusing what the model would misread in silence."""
        return tokenize(self.processor.tokenizer, captions, self.model.config.get_text_config())

    def caption_batches(self, token_ids: list[list[int]], batch_size: int) -> Iterator[list[int]]:
        """Cut captions into batches, beside so many images per batch; yields their places."""
        on_cpu = self.device.type == "cpu"
        tokens = batch_size * (TOKENS_PER_IMAGE_ON_CPU if on_cpu else TOKENS_PER_IMAGE)
        return batches_of_one_length(token_ids, tokens)

    def embed_captions(self, token_ids: list[list[int]]) -> torch.Tensor:
        """Encode one batch of captions into unit vectors, (captions, D) float32 on the device."""
        config = self.model.config
        inputs = pad(
            self.processor.tokenizer, token_ids, config.get_text_config(), config.model_type
        )
        return self._unit_vectors(self.model.get_text_features, inputs)

    def embed_images(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Encode one batch of prepared images into unit vectors, (images, D) float32."""
        return self._unit_vectors(self.model.get_image_features, inputs)

    def _unit_vectors(self, tower: Callable, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        features = halving(lambda batch: _pooled(tower(**batch)), on_device(self.model, inputs))
        if self.model.config.model_type == "flava":  # gives all tokens, and is trained on the first
            features = features[:, 0]
        return torch.nn.functional.normalize(features.float(), dim=-1)

    @property
    def scale(self) -> torch.Tensor:
        """What a cosine is multiplied by: float32, no dimension."""
        if hasattr(self.model, "temperature"):  # ALIGN
            return 1 / self.model.temperature.detach().float().cpu()
        scale = self.model.logit_scale.detach().float().cpu()
        if hasattr(self.model, "max_log_logit_scale"):  # AIMv2
            scale = scale.clamp(0.0, self.model.max_log_logit_scale)
        return scale.exp()

    @property
    def bias(self) -> torch.Tensor:
        """What is added then: float32, no dimension."""
        bias = getattr(self.model, "logit_bias", None)
        return torch.zeros(()) if bias is None else bias.detach().float().cpu()


@dataclass(frozen=True)
class OutsideEmbedder:
    """Any object that embeds images and captions: see `protocols.Embedder`."""

    embedder: Embedder
    dtype: ClassVar[str] = ""  # its own affair

    @property
    def device(self) -> torch.device:
        """Where it says that it runs; the CPU if it does not."""
        return torch.device(getattr(self.embedder, "device", None) or "cpu")

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on, as far as it can be told."""
        return identify_outside(self.embedder)

    def running(self) -> AbstractContextManager:
        """Leave to the object how it runs, without gradients."""
        return torch.no_grad()

    def preparation(self, images: Iterable[Image.Image]) -> Preparation:
        """Leave pictures as they are."""
        return Preparation(_as_it_is, collate=list)

    def tokenize(self, captions: Sequence[str]) -> list[str]:
        """Leave captions as they are."""
        return list(captions)

    def caption_batches(self, captions: list[str], batch_size: int) -> Iterator[range]:
        """Cut captions into batches; yields their places."""
        size = CAPTIONS_PER_IMAGE * batch_size
        for start in range(0, len(captions), size):
            yield range(start, min(start + size, len(captions)))

    def embed_captions(self, captions: list[str]) -> torch.Tensor:
        """Encode one batch of captions into unit vectors, (captions, D) float32."""
        return _checked(self.embedder.embed_captions(captions), "embed_captions", len(captions))

    def embed_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Encode one batch of pictures into unit vectors, (images, D) float32."""
        return _checked(self.embedder.embed_images(images), "embed_images", len(images))

    @property
    def scale(self) -> float:
        """What a cosine is multiplied by."""
        scale = float(getattr(self.embedder, "scale", 1.0))
        if not 0 < scale < float("inf"):
            raise ValueError(
                f"Expected the scale of {type(self.embedder).__name__} to be a number above 0, got "
                f"{scale}. A higher logit must mean a better match."
            )
        return scale

    @property
    def bias(self) -> float:
        """What is added then."""
        return float(getattr(self.embedder, "bias", 0.0))


def _checked(embeds: Any, method: str, number: int) -> torch.Tensor:
    embeds = torch.as_tensor(embeds).detach().float().cpu()
    if embeds.ndim != 2 or len(embeds) != number:
        raise ValueError(
            f"Expected {method} to return one vector for each input, of shape ({number}, D), got "
            f"{tuple(embeds.shape)}. Return an array with one row per input."
        )
    return torch.nn.functional.normalize(embeds, dim=-1)


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def _pooled(features: Any) -> torch.Tensor:
    # transformers 5 returns an output object, its predecessors the tensor itself.
    return getattr(features, "pooler_output", features)
