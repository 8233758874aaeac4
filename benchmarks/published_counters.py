"""Compare our outcomes with the published script's five counters, at image sizes of all kinds.

    python benchmarks/published_counters.py --annotations published --model random_clip

The published script scores image, caption, hard positive and hard negative row by row, on images
prepared by OpenAI's transform, and counts five things. Its comparing code is written anew here as a
plain reference, one row at a time, without anything of ours; the transform is torchvision's where
that can be imported, and its steps in NumPy elsewhere. Images are rendered in 40 sizes, of which a
quarter is cut one pixel further by transformers. Exits with 1 where a row flips in the published
preprocessing.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from render_images import render
from transformers import AutoProcessor, CLIPModel

from hard_positive_metric import OUTCOMES, row_outcomes
from hard_positives import score

FILES = {
    "attribute": "vl_checklist_attributes.json",
    "relation": "vl_checklist_relations.json",
}
random = np.random.default_rng(0)
SIZES = [tuple(size) for size in random.integers((200, 200), (1280, 1024), (40, 2)).tolist()]


def read_rows(annotations: Path, category: str, count: int) -> list[dict]:
    """Read evenly spread triples of the published files."""
    layouts = [("original", "hard_positive"), ("data", "swapped_data")]
    folders = next(names for names in layouts if (annotations / names[0]).is_dir())
    original, positive = (
        json.loads((annotations / folder / FILES[category]).read_bytes()) for folder in folders
    )
    places = np.linspace(0, len(original) - 1, count).astype(int)
    return [
        {
            "image": picture(original[place]["image_path"]),
            "caption": original[place]["true_caption"],
            "hard_positive": positive[place]["true_caption"],
            "hard_negative": original[place]["false_caption"],
        }
        for place in places
    ]


def picture(image_path: str) -> dict:
    buffer = io.BytesIO()
    render(image_path, SIZES).save(buffer, "JPEG", quality=85)
    return {"bytes": buffer.getvalue(), "path": None}


def openai_transform(side: int, mean: list[float], std: list[float]) -> tuple[str, Callable]:
    """Return OpenAI's transform, and by whom it is computed."""
    try:
        from torchvision import transforms
    except (ImportError, RuntimeError):
        return "NumPy", lambda image: transform_in_numpy(image, side, mean, std)
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [
        transforms.Resize(side, interpolation=bicubic),
        transforms.CenterCrop(side),
        lambda image: image.convert("RGB"),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    return "torchvision", transforms.Compose(steps)


def transform_in_numpy(
    image: PILImage.Image, side: int, mean: list[float], std: list[float]
) -> torch.Tensor:
    width, height = image.size
    if width <= height:
        image = image.resize((side, int(side * height / width)), PILImage.Resampling.BICUBIC)
    else:
        image = image.resize((int(side * width / height), side), PILImage.Resampling.BICUBIC)
    top, left = (round((length - side) / 2.0) for length in (image.height, image.width))
    pixels = np.asarray(image, np.float32)[top : top + side, left : left + side] / np.float32(255)
    pixels = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@torch.inference_mode()
def published(model: CLIPModel, processor, rows: list[dict]) -> list[int]:
    """Give each row the number of the published counter that counts it."""
    images = processor.image_processor
    side = images.crop_size["height"]
    by_whom, transform = openai_transform(side, list(images.image_mean), list(images.image_std))
    print(f"The reference's images are prepared by {by_whom}.")
    counters = []
    for row in rows:
        opened = PILImage.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        texts = [row[name] for name in ("caption", "hard_positive", "hard_negative")]
        tokens = processor.tokenizer(
            texts, padding="max_length", max_length=77, return_tensors="pt"
        )
        image = model.get_image_features(pixel_values=transform(opened)[None]).pooler_output
        text = model.get_text_features(**tokens).pooler_output
        image, text = (v / v.norm(dim=-1, keepdim=True) for v in (image, text))
        caption, positive, negative = (image @ text.T)[0].tolist()
        if caption > negative and positive > negative:
            counters.append(0)
        elif caption > negative > positive:
            counters.append(1)
        elif positive > negative > caption:
            counters.append(2)
        elif negative > caption and negative > positive:
            counters.append(3)
        else:
            counters.append(4)
    return counters


def main() -> None:
    """Print both sides' counters, by category and preprocessing, and the rows that flip."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True, help="folder with original/")
    parser.add_argument("--model", required=True, help="a CLIP, such as random_clip")
    parser.add_argument("--rows", type=int, default=600, help="of each category")
    options = parser.parse_args()
    model = CLIPModel.from_pretrained(options.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(options.model, backend="pil")
    flips = 0
    for category in FILES:
        rows = read_rows(options.annotations, category, options.rows)
        expected = published(model, processor, rows)
        features = Features({n: Image() if n == "image" else Value("string") for n in rows[0]})
        dataset = Dataset.from_list(rows, features=features)
        print(f"{category}, {len(rows)} rows, {', '.join(OUTCOMES)}")
        print(f"  published script          {np.bincount(expected, minlength=5).tolist()}")
        for preprocessing in ("openai", "transformers"):
            logits = score(
                model,
                dataset,
                processor=processor,
                preprocessing=preprocessing,
                device="cpu",
                cache=False,
                progress=False,
            )
            found = [OUTCOMES.index(outcome) for outcome in row_outcomes(logits).outcome]
            differing = sum(a != b for a, b in zip(expected, found, strict=True))
            counts = np.bincount(found, minlength=5).tolist()
            print(f"  ours, {preprocessing:19s} {counts}, {differing} rows flip")
            flips += differing if preprocessing == "openai" else 0
    sys.exit(flips > 0)


if __name__ == "__main__":
    main()
