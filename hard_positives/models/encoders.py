"""Models: what each kind of image-text model needs in order to score comparisons.

* :class:`DualEncoder`, a tower for images and one for captions (CLIP and its kin): each distinct
  input is encoded once, kept on disk, and multiplied in float32.
* :class:`PairModel`, one network over image and caption together (BLIP's matching head): each
  distinct pair is scored once; nothing can be shared between pairs.
* :class:`CallableModel`, any function of images and captions, such as a few lines of open_clip.

A model knows how to embed or to score, and no cache, processes or progress bars of a whole run
(`scoring`). `loading.load_model` chooses among these kinds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from hard_positives.models.identity import Identity, identify
from hard_positives.models.preprocessing import choose_image_processor
from hard_positives.suite.comparisons import IMAGE_TO_TEXT, Comparisons
from hard_positives.suite.rows import open_image

# How a family wants its captions padded. "longest" where the padding behind a caption changes
# nothing: causal attention that is read at the end token (the first four), or an attention mask.
# All others get the padding that they were trained with, to the full length.
TRIMMED_FAMILIES = {"clip", "metaclip_2", "clipseg", "groupvit"} | {
    "chinese_clip",
    "altclip",
    "align",
    "blip",
}
MASKLESS_FAMILIES = {"siglip", "siglip2"}  # trained to attend to their padding


@dataclass(frozen=True)
class Options:
    """How to run, as :func:`hard_positives.score` takes it; none of it changes the logits."""

    batch_size: int | None = None
    num_workers: int | None = None
    cache: bool = True
    progress: bool = True

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"Expected {name} to be at least {least}, got {value}.")


class ImageTextModel(Protocol):
    """What all kinds of models have in common."""

    def describe(self) -> dict[str, Any]:
        """Return what the logits depend on, for a signature."""


@dataclass(frozen=True)
class DualEncoder:
    """A model with an image tower and a text tower, on its device, and its processor.

    Attributes:
        model: Left as it is, but for the mode while it scores.
        processor: With `image_processor` and `tokenizer`.
        preprocessing: What prepares images, see `preprocessing.choose_image_processor`.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    preprocessing: str = "transformers"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @cached_property
    def image_processor(self) -> Callable:
        """What prepares an image."""
        return choose_image_processor(self.processor.image_processor, self.preprocessing)

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on; hashing the weights is worth doing once."""
        return identify(self.model, self.processor, self.preprocessing)

    def describe(self) -> dict[str, Any]:
        """Return model, processor, dtype, device and precision."""
        return self.identity.description

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Turn captions into token ids, refusing what the model would misread in silence."""
        if not captions:
            return []
        token_ids = self.processor.tokenizer(list(captions), verbose=False)["input_ids"]
        _check_lengths(captions, token_ids, self.max_length)
        _check_tokenizer(captions, token_ids, self.model.config.get_text_config())
        return token_ids

    @property
    def max_length(self) -> int:
        """The most tokens that a caption can have."""
        positions = self.model.config.get_text_config().max_position_embeddings
        return min(positions, self.processor.tokenizer.model_max_length)

    def embed_captions(self, token_ids: list[list[int]]) -> torch.Tensor:
        """Encode one batch of captions into unit vectors, (captions, D) float32 on the device."""
        family = self.model.config.model_type
        inputs = self.processor.tokenizer.pad(
            {"input_ids": token_ids},
            padding="longest" if family in TRIMMED_FAMILIES else "max_length",
            max_length=self.max_length,
            padding_side="right",
            return_attention_mask=family not in MASKLESS_FAMILIES,
            return_tensors="pt",
        )
        return self._unit_vectors(self.model.get_text_features, dict(inputs))

    def embed_images(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Encode one batch of prepared images into unit vectors, (images, D) float32."""
        return self._unit_vectors(self.model.get_image_features, inputs)

    def _unit_vectors(self, tower: Callable, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {name: self._on_device(values) for name, values in inputs.items()}
        features = _halving(lambda batch: _pooled(tower(**batch)), inputs)
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def _on_device(self, values: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype if values.is_floating_point() else None
        return values.to(self.device, dtype, non_blocking=True)

    def match(
        self, comparisons: Comparisons, image_embeds: torch.Tensor, text_embeds: torch.Tensor
    ) -> np.ndarray:
        """Look up every candidate's unit vectors and multiply them in float32; (M,)."""
        cosines = torch.empty(len(comparisons.candidates))
        for direction, block, places in comparisons.blocks():
            sides = image_embeds, text_embeds
            anchors, candidates = sides if direction == IMAGE_TO_TEXT else sides[::-1]
            cosines[torch.from_numpy(places)] = torch.einsum(
                "nd,nkd->nk",
                anchors[comparisons.anchors[block]],
                candidates[comparisons.candidates[places]],
            )
        bias = getattr(self.model, "logit_bias", None)
        bias = 0.0 if bias is None else bias.detach().float().cpu()
        return (cosines * self._logit_scale() + bias).numpy()

    def _logit_scale(self) -> torch.Tensor:
        if hasattr(self.model, "temperature"):  # ALIGN
            return 1 / self.model.temperature.detach().float().cpu()
        scale = self.model.logit_scale.detach().float().cpu()
        if hasattr(self.model, "max_log_logit_scale"):  # AIMv2
            scale = scale.clamp(0.0, self.model.max_log_logit_scale)
        return scale.exp()


@dataclass(frozen=True)
class PairModel:
    """A network that reads image and caption together and says whether they match.

    The logit is that of "match" minus that of "no match" where the head has both (BLIP), else the
    one that it has (ViLT). Not its softmax, which is 1.0 for both of two good captions.
    """

    model: PreTrainedModel
    processor: ProcessorMixin

    def describe(self) -> dict[str, Any]:
        """Return model, processor, dtype, device and precision."""
        return identify(self.model, self.processor, "transformers").description

    def score(self, comparisons: Comparisons, options: Options) -> np.ndarray:
        """Score each distinct pair of an image and a caption once; float32 (M,)."""
        pairs, of_pair = np.unique(comparisons.pairs, axis=0, return_inverse=True)
        size = options.batch_size or (16 if self.model.device.type == "cpu" else 128)
        logits = []
        hidden = None if options.progress else True
        with inference(self.model), tqdm(total=len(pairs), unit=" pairs", disable=hidden) as bar:
            for batch in np.array_split(pairs, range(size, len(pairs), size)):
                logits.append(self._match(comparisons, batch))
                bar.update(len(batch))
        return torch.cat(logits).numpy()[of_pair.reshape(-1)]

    def _match(self, comparisons: Comparisons, pairs: np.ndarray) -> torch.Tensor:
        inputs = self.processor(
            images=[open_image(comparisons, place) for place in pairs[:, 0]],
            text=[comparisons.captions[place] for place in pairs[:, 1]],
            padding=True,
            return_tensors="pt",
        )
        inputs = inputs.to(self.model.device, self.model.dtype)
        outputs = _halving(lambda batch: _first_scores(self.model(**batch)), dict(inputs)).float()
        scores = outputs[:, 1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs[:, 0]
        return scores.cpu()


def _first_scores(outputs: Any) -> torch.Tensor:
    return outputs.itm_score if "itm_score" in outputs else outputs.logits


@dataclass(frozen=True)
class CallableModel:
    """Any function ``(images, captions) -> logits``.

    It gets B distinct PIL images (RGB) and C distinct captions, all that these
    images are compared with, and returns (B, C) logits: an array, a tensor or nested lists.
    """

    function: Callable[[list, list[str]], Any]

    def describe(self) -> dict[str, Any]:
        """Return the function's name; what it depends on cannot be known from outside."""
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return {"model": {"id": name, "revision": None, "architecture": "callable"}}

    def score(self, comparisons: Comparisons, options: Options) -> np.ndarray:
        """Call the function for a batch of distinct images at a time; float32 (M,)."""
        pairs, size = comparisons.pairs, options.batch_size or 32
        logits = np.empty(len(pairs), np.float32)
        order = np.argsort(pairs[:, 0], kind="stable")
        first_of_batch = np.searchsorted(
            pairs[order, 0], np.arange(size, len(comparisons.pictures), size)
        )
        hidden = None if options.progress else True
        with tqdm(total=len(pairs), unit=" pairs", disable=hidden) as bar:
            for batch in np.split(order, first_of_batch):
                logits[batch] = self._score_batch(comparisons, *pairs[batch].T)
                bar.update(len(batch))
        return logits

    def _score_batch(
        self, comparisons: Comparisons, of_image: np.ndarray, of_caption: np.ndarray
    ) -> np.ndarray:
        images, rows = np.unique(of_image, return_inverse=True)
        captions, columns = np.unique(of_caption, return_inverse=True)
        matrix = self.function(
            [open_image(comparisons, place) for place in images],
            [comparisons.captions[place] for place in captions],
        )
        if isinstance(matrix, torch.Tensor):
            matrix = matrix.detach().float().cpu()
        matrix = np.asarray(matrix, dtype=np.float32)
        if matrix.shape != (len(images), len(captions)):
            raise ValueError(
                f"Expected the callable to return logits of shape {len(images), len(captions)} "
                f"(images, captions), got {matrix.shape}. Return one row per image."
            )
        return matrix[rows, columns]


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Run a model for its outputs alone, in its own type; every module keeps the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def _check_lengths(captions: Sequence[str], token_ids: list[list[int]], limit: int) -> None:
    over = [place for place, ids in enumerate(token_ids) if len(ids) > limit]
    if over:
        raise ValueError(
            f"Expected captions to be at most {limit} tokens long, got {len(over)} longer ones, "
            f"such as {captions[over[0]][:80]!r} with {len(token_ids[over[0]])}. Shorten them: cut "
            "off, a hard positive and a hard negative could become the same."
        )


def _check_tokenizer(captions: Sequence[str], token_ids: list[list[int]], config: Any) -> None:
    highest = max(max(ids) for ids in token_ids)
    if highest >= config.vocab_size:
        raise ValueError(
            f"Expected the tokenizer to belong to the model, with ids below {config.vocab_size}, "
            f"got {highest}. Pass the model's own processor."
        )
    # Letter case and spaces may be lost to a tokenizer, but never half of the captions.
    distinct = len(set(map(tuple, token_ids)))
    if distinct < len(captions) / 2:
        raise ValueError(
            f"Expected the tokenizer to tell {len(captions)} captions apart, got {distinct} "
            "different token sequences. Load it with AutoTokenizer from the model's own folder."
        )
    # CLIP reads a caption at its end token; where there is none it reads the start token instead.
    # (eos_token_id 2 marks old configurations, which read at the highest id.)
    end = config.eos_token_id
    if config.model_type == "clip_text_model" and end != 2:
        without = [place for place, ids in enumerate(token_ids) if end not in ids]
        if without:
            raise ValueError(
                f"Expected every caption to hold the end token {end}, got {len(without)} without, "
                f"such as {captions[without[0]][:80]!r}. Pass the model's own processor."
            )


def _halving(encode: Callable, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Encode a batch; where the device's memory is too small for it, in halves."""
    size = len(next(iter(batch.values())))
    try:
        return encode(batch)
    except torch.OutOfMemoryError:
        if size == 1:
            raise
    halves = [
        {name: values[part] for name, values in batch.items()}
        for part in (slice(size // 2), slice(size // 2, None))
    ]
    return torch.cat([_halving(encode, half) for half in halves])


def _pooled(features: Any) -> torch.Tensor:
    # transformers 5 returns an output object, its predecessors the tensor itself.
    return getattr(features, "pooler_output", features)
