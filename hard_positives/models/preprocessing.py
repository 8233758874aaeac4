"""How an image becomes a model's input: as transformers does, or as the published code did.

The published figures were made with OpenAI's transform. It rounds where transformers' centre crop
floors, so that for a quarter of all image sizes the two see crops one pixel apart, which turned 17
of 1,200 rows of a small random CLIP. Neither is wrong; a figure has to say which one it has.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

PREPROCESSINGS = ("transformers", "openai")
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


def choose_image_processor(image_processor: Any, preprocessing: str) -> Any:
    """Return what prepares images under the name of a preprocessing.

    Args:
        image_processor: The model's own, from transformers.
        preprocessing: `"transformers"` leaves it as it is. `"openai"` computes what OpenAI's
            transform would, with the sizes, mean and standard deviation of `image_processor`.

    Raises:
        ValueError: An unknown name; or `image_processor` is not of CLIP's kind.
    """
    if preprocessing not in PREPROCESSINGS:
        raise ValueError(
            f"Expected preprocessing to be one of {list(PREPROCESSINGS)}, got {preprocessing!r}."
        )
    if preprocessing == "transformers":
        return image_processor
    problem = _unlike_clip(image_processor)
    if problem:
        raise ValueError(
            "Expected an image processor of CLIP's kind for preprocessing 'openai', got "
            f"{problem}. Use preprocessing 'transformers'."
        )
    size, crop = image_processor.size["shortest_edge"], image_processor.crop_size["height"]
    mean, std = image_processor.image_mean, image_processor.image_std
    return OpenAIPreprocessing(size, crop, tuple(map(float, mean)), tuple(map(float, std)))


def _unlike_clip(image_processor: Any) -> str:
    """What keeps a processor from being resize, centre crop, rescale and normalise; or nothing."""
    size, crop = (dict(getattr(image_processor, n, None) or {}) for n in ("size", "crop_size"))
    absent = [step for step in _STEPS if not getattr(image_processor, step, False)]
    if absent or getattr(image_processor, "do_pad", False):
        return f"{type(image_processor).__name__} without {', '.join(absent) or 'do_pad=False'}"
    if size.get("shortest_edge") is None or crop.get("height") != crop.get("width"):
        return f"sizes {size} and {crop}"
    if crop["height"] > size["shortest_edge"]:
        return f"a crop of {crop['height']} from a shorter side of {size['shortest_edge']}"
    if image_processor.resample != Image.Resampling.BICUBIC:
        return f"resample {image_processor.resample}"
    if abs(image_processor.rescale_factor * 255 - 1) > 1e-9:
        return f"rescale_factor {image_processor.rescale_factor}"
    return ""


@dataclass(frozen=True)
class OpenAIPreprocessing:
    """OpenAI's transform, to the bit: resize, centre crop, to [0, 1], normalise.

    Attributes:
        size: Pixels of the shorter side after resizing.
        crop_size: Pixels of the side of the square that is cut out.
        image_mean: Of red, green and blue, in [0, 1].
        image_std: Likewise.

    Examples:
        >>> clip = OpenAIPreprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        >>> tuple(clip(Image.new("RGB", (640, 427)))["pixel_values"].shape)
        (1, 3, 224, 224)

    Source:
        `_transform` in `clip/clip.py` of github.com/openai/CLIP, commit a1d0717, and
        `functional.resize`, `center_crop`, `to_tensor` and `normalize` of torchvision 0.28 on PIL
        images.
    """

    size: int
    crop_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    def __call__(
        self,
        image: Image.Image,
        return_tensors: str = "pt",
        *,
        do_resize: bool = True,
        do_center_crop: bool = True,
        do_rescale: bool = True,
        do_normalize: bool = True,
    ) -> BatchFeature:
        """Prepare one RGB image: `pixel_values` (1, 3, `crop_size`, `crop_size`), float32.

        Steps are left out as in transformers; what is not rescaled stays uint8.
        """
        image = self._resize(image) if do_resize else image
        image = self._crop(image) if do_center_crop else image
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, H, W) uint8
        values = pixels.to(torch.float32).div(255) if do_rescale else pixels
        if do_normalize:
            mean, std = (torch.tensor(v)[:, None, None] for v in (self.image_mean, self.image_std))
            values = values.sub(mean).div_(std)
        return BatchFeature({"pixel_values": values[None]})

    def _resize(self, image: Image.Image) -> Image.Image:
        shorter, longer = sorted(image.size)
        if shorter == self.size:
            return image
        other = int(self.size * longer / shorter)
        size = (self.size, other) if image.width <= image.height else (other, self.size)
        return image.resize(size, Image.Resampling.BICUBIC)

    def _crop(self, image: Image.Image) -> Image.Image:
        # Half to even, where transformers floors: the one difference.
        left, top = (round((side - self.crop_size) / 2) for side in image.size)
        return image.crop((left, top, left + self.crop_size, top + self.crop_size))
