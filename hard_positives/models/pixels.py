"""An image processor cut in two: bytes where pictures are decoded, floats where the model runs.

Rescaling and normalising, a processor's last steps, turn each byte into one float, whatever is
around it. So a table of 256 floats for each channel replaces them on any device, to the bit; and
what a worker sends is bytes, a quarter of the size. A processor of which this is not true, or not
known, stays whole.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from transformers import BatchFeature

from hard_positives.models.identity import code_key, unknown_code

try:
    from transformers.image_processing_backends import PilBackend
except ImportError:
    PilBackend = None  # type: ignore[assignment, misc]  # the first releases of transformers 5

CHECKED = 8  # images of the run itself, for which the two halves must give the whole
_STEPS = ("preprocess", "process_image", "_preprocess", "resize", "center_crop")


@dataclass(frozen=True)
class Preparation:
    """What is done to a picture before a model sees it: here, and where the model is.

    Attributes:
        prepare: Gets an RGB image, in a worker; holds no model.
        floats: What stands for the bytes that `prepare` returns, on the device and in the type of
            the model; None where it returns what the model takes.
        collate: Makes a batch of what `prepare` returns.
    """

    prepare: Callable[[Image.Image], Any]
    floats: torch.Tensor | None = None
    collate: Callable[[list], Any] = default_collate

    def to(self, device: torch.device, dtype: torch.dtype) -> "Preparation":
        """Return the same for a model's device and type."""
        floats = None if self.floats is None else self.floats.to(device, dtype)
        return replace(self, floats=floats)

    @property
    def name(self) -> str | None:
        """What prepared bytes can be kept under, for another model; None for all but bytes."""
        return None if self.floats is None else code_key(self.prepare)

    def finish(self, batch: Any) -> Any:
        """Do the rest where the model is."""
        if self.floats is None:
            return batch
        pixels = batch["pixel_values"].to(self.floats.device, non_blocking=True)
        return {"pixel_values": look_up(pixels, self.floats)}


@dataclass(frozen=True)
class UnscaledProcessor:
    """An image processor without its last steps: resized and cropped bytes.

    Attributes:
        image_processor: From transformers, or `preprocessing.OpenAIPreprocessing`.
    """

    image_processor: Any

    def __call__(self, image: Image.Image, return_tensors: str = "pt") -> BatchFeature:
        """Prepare one RGB image: `pixel_values` (1, 3, height, width), uint8."""
        return self.image_processor(
            image, do_rescale=False, do_normalize=False, return_tensors=return_tensors
        )


@dataclass(frozen=True)
class PillowProcessor:
    """Resize and crop as transformers' Pillow backend does, without its arrays in between.

    Attributes:
        size: Height and width after resizing; or one number, for the shorter side.
        crop_size: Height and width of what is cut out of the middle; None for all.
        resample: Pillow's filter.
    """

    size: tuple[int, ...]
    crop_size: tuple[int, int] | None
    resample: int

    def __call__(self, image: Image.Image, return_tensors: str = "pt") -> BatchFeature:
        """Prepare one RGB image: `pixel_values` (1, 3, height, width), uint8."""
        width, height = self._resized(image)
        image = image.resize((width, height), self.resample)
        if self.crop_size is not None:
            top, left = (height - self.crop_size[0]) // 2, (width - self.crop_size[1]) // 2
            image = image.crop((left, top, left + self.crop_size[1], top + self.crop_size[0]))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return BatchFeature({"pixel_values": pixels[None].contiguous()})

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        if len(self.size) == 2:
            return self.size[1], self.size[0]
        (size,), (shorter, longer) = self.size, sorted(image.size)
        other = int(size * longer / shorter)
        return (size, other) if image.width <= image.height else (other, size)


def _by_pillow(image_processor: Any) -> PillowProcessor | None:
    """Return the same in Pillow alone; None for all but the commonest processors."""
    kind = type(image_processor)
    if (
        PilBackend is None
        or not issubclass(kind, PilBackend)
        or any(getattr(kind, step) is not getattr(PilBackend, step) for step in _STEPS)
        or not image_processor.do_resize
        or not isinstance(image_processor.resample, int)
    ):
        return None
    size = _without_none(image_processor.size)
    if set(size) not in ({"shortest_edge"}, {"height", "width"}):
        return None
    sides = tuple(size[name] for name in ("shortest_edge", "height", "width") if name in size)
    if not image_processor.do_center_crop:
        return PillowProcessor(sides, None, image_processor.resample)
    crop = _without_none(image_processor.crop_size)
    if set(crop) != {"height", "width"} or max(crop.values()) > min(sides):
        return None  # what is smaller than the crop, transformers pads
    crop_size = crop["height"], crop["width"]
    return PillowProcessor(sides, crop_size, image_processor.resample)


def _without_none(size: Any) -> dict[str, int]:
    return {name: side for name, side in dict(size or {}).items() if side is not None}


@dataclass(frozen=True)
class OneImage:
    """An image processor for one image at a time, without the dimension of a batch."""

    image_processor: Callable

    def __call__(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Prepare one RGB image."""
        inputs = self.image_processor(image, return_tensors="pt")
        return {name: values[0] for name, values in inputs.items()}


def cut_in_two(image_processor: Any, images: Iterable[Image.Image]) -> Preparation:
    """Split a processor into what makes bytes of an image and the floats that stand for the bytes.

    Args:
        image_processor: Prepares one RGB image.
        images: Some of those it will get; on each of them the halves must give what the whole does.

    Returns:
        What prepares an image to bytes, with the float32 table (3, 256) for `look_up`; or the
        whole processor, without a table.

    Examples:
        >>> from transformers import CLIPImageProcessorPil
        >>> image = Image.effect_noise((640, 427), 50).convert("RGB")
        >>> whole = CLIPImageProcessorPil()
        >>> halves = cut_in_two(whole, [image])
        >>> pixels = halves.prepare(image)["pixel_values"][None]
        >>> expected = whole(image, return_tensors="pt")["pixel_values"]
        >>> pixels.dtype, torch.equal(look_up(pixels, halves.floats), expected)
        (torch.uint8, True)
    """
    whole = Preparation(OneImage(image_processor))
    # What code from outside does with the next image, nobody knows.
    if any(unknown_code(image_processor)):
        return whole
    try:
        floats = _floats_of_bytes(image_processor)
    except Exception:  # it cannot leave out a step, and says so in its own way
        return whole
    if floats.dtype != torch.float32:  # neither step is done: bytes for the model too
        return whole
    unscaled = _by_pillow(image_processor) or UnscaledProcessor(image_processor)
    if all(_is_the_same(unscaled, floats, image_processor, image) for image in images):
        return Preparation(OneImage(unscaled), floats)
    return whole


def look_up(pixels: torch.Tensor, floats: torch.Tensor) -> torch.Tensor:
    """Replace every byte by its float.

    Args:
        pixels: (images, 3, height, width) uint8.
        floats: (3, 256), on the same device.

    Returns:
        (images, 3, height, width) in the type of `floats`.

    Examples:
        >>> pixels = torch.tensor([0, 0, 255], dtype=torch.uint8)[None, :, None, None]
        >>> look_up(pixels, torch.arange(768).view(3, 256)).flatten().tolist()
        [0, 256, 767]
    """
    # Of torch's ways the fastest on a CPU: three times as fast as `take` and `embedding`.
    places = pixels.int()
    places += torch.arange(0, 768, 256, dtype=torch.int32, device=pixels.device)[:, None, None]
    return floats.flatten().index_select(0, places.flatten()).view_as(pixels)


def _floats_of_bytes(image_processor: Any) -> torch.Tensor:
    every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    prepared = image_processor(
        Image.fromarray(every_byte), do_resize=False, do_center_crop=False, return_tensors="pt"
    )
    return prepared["pixel_values"].reshape(3, 256)


def _is_the_same(
    unscaled: Callable, floats: torch.Tensor, image_processor: Any, image: Image.Image
) -> bool:
    whole = image_processor(image, return_tensors="pt")
    try:
        halves = unscaled(image)
    except Exception:
        return False
    if not set(halves) == set(whole) == {"pixel_values"}:
        return False
    pixels = halves["pixel_values"]
    return (pixels.dtype, pixels.ndim, pixels.shape[1]) == (torch.uint8, 4, 3) and torch.equal(
        look_up(pixels, floats), whole["pixel_values"]
    )
