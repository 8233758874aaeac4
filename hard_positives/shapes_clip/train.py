"""Train `shapes_clip`, the tiny CLIP that comes along, on the rendered world `shapes`.

    python -m hard_positives.shapes_clip.train --output DIR

Contrastive, from scratch, on true captions only: no hard positive and no hard negative is seen. A
batch holds captions of one category; after the first steps it holds whole families of scenes, as
albums of photographs do: for relations the same objects in other places, for the others the same
shapes and colours dealt out anew.
This file measures nothing: `hard-positives evaluate DIR shapes` does.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

from hard_positives_dataset import shapes

MAX_TOKENS = 24
IMAGE_SIDE, PATCH_SIDE = 36, 12  # pixels; the pictures are shrunk, and a patch is a cell
ROWS_PER_SCENE = shapes.ROWS_PER_CATEGORY * len(shapes.SPLIT_CATEGORIES["train"])
CATEGORY_WEIGHTS = (1, 3, 1)  # how often a batch is of attributes, relations and swap
ANY_SCENES_SHARE = 0.15  # of the steps, before batches hold families


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every word of the world; other words become `<unk>`."""
    phrases = [*shapes.SYNONYMS, *itertools.chain(*shapes.SYNONYMS.values()), *shapes.SHAPES]
    words = sorted({word for phrase in phrases for word in phrase.split()} | {"the", "and"})
    # The end token has the highest id: CLIP finds the end of a caption there, old way and new.
    vocabulary = ["<pad>", "<unk>", *words, "<start>", "<end>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[("<start>", ids["<start>"]), ("<end>", ids["<end>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor() -> CLIPProcessor:
    """The tokenizer with an image processor that needs no torchvision."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE},
        crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=build_tokenizer())


def build_model(tokenizer: PreTrainedTokenizerFast, *, width: int = 96) -> CLIPModel:
    """An untrained CLIP."""
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 32,
        "projection_dim": width,
    }
    text = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 3,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": IMAGE_SIDE, "patch_size": PATCH_SIDE, "num_hidden_layers": 4}
    return CLIPModel(
        CLIPConfig(
            text_config={**tower, **text},
            vision_config={**tower, **vision},
            projection_dim=width,
        )
    )


def _render(start: int, num_scenes: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Pixels (num_scenes, 3, side, side) and captions, `ROWS_PER_SCENE` of each scene."""
    rows = list(
        shapes.generate_rows(
            "train", num_scenes * ROWS_PER_SCENE, seed=seed, start=start * ROWS_PER_SCENE
        )
    )
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows[::ROWS_PER_SCENE]]
    pixels = build_processor().image_processor(images, return_tensors="np")["pixel_values"]
    return pixels, [row["caption"] for row in rows]


def load_scenes(
    tokenizer: PreTrainedTokenizerFast, *, num_scenes: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (S, 3, side, side), captions (S, `ROWS_PER_SCENE`, length) as token ids."""
    chunk = 200
    starts = range(0, num_scenes, chunk)
    sizes = [min(chunk, num_scenes - start) for start in starts]
    with ProcessPoolExecutor() as pool:
        pixels, captions = zip(
            *pool.map(_render, starts, sizes, itertools.repeat(seed)), strict=True
        )
    tokens = tokenizer(list(itertools.chain(*captions)), padding=True, return_tensors="pt")
    return (
        torch.from_numpy(np.concatenate(pixels)),
        tokens["input_ids"].view(num_scenes, ROWS_PER_SCENE, -1),
    )


def contrastive_loss(
    model: CLIPModel, images: torch.Tensor, captions: torch.Tensor
) -> torch.Tensor:
    """CLIP's loss for images (B, 3, side, side) and captions (B, C, length), mean over the C.

    Captions are trimmed and have no mask: attention is causal and the end token is pooled, so that
    padding changes nothing.
    """
    batch, count, _ = captions.shape
    length = int(captions.ne(model.config.get_text_config().pad_token_id).sum(-1).max())
    output = model(pixel_values=images, input_ids=captions[..., :length].flatten(0, 1))
    texts = output.text_embeds.view(batch, count, -1)
    # (C, B, B): every caption of a scene against the captions in the same place of the others
    logits = model.logit_scale.exp() * torch.einsum("bd,tcd->cbt", output.image_embeds, texts)
    target = torch.arange(batch).expand(count, batch).flatten()
    to_text = F.cross_entropy(logits.flatten(0, 1), target)
    to_image = F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), target)
    return (to_text + to_image) / 2


def train(
    *, steps: int, num_scenes: int, batch_size: int, learning_rate: float, seed: int
) -> tuple[CLIPModel, CLIPProcessor]:
    """A trained model and its processor.

    Args:
        steps: Optimiser steps.
        num_scenes: Different training scenes, rendered once.
        batch_size: Scenes a step; a multiple of `shapes.FAMILY_SIZE`.
        learning_rate: At its highest, after 200 steps; then it falls as a cosine.
        seed: Of the scenes, the first weights and the order.
    """
    torch.manual_seed(seed)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    images, captions = load_scenes(processor.tokenizer, num_scenes=num_scenes, seed=seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / 200) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    started = time.perf_counter()
    batches = _batches(num_scenes, batch_size, steps)
    for step, (scenes, columns) in enumerate(batches, start=1):
        loss = contrastive_loss(model, images[scenes], captions[scenes][:, columns])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"{step:6d}  loss {loss.item():.3f}  {time.perf_counter() - started:.0f} s")
    return model, processor


def _batches(
    num_scenes: int, batch_size: int, steps: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Indices of scenes, and of which of their captions are used: all those of one category."""
    scenes = torch.arange(num_scenes)
    families = scenes.view(-1, shapes.FAMILY_SIZE)
    columns = torch.arange(ROWS_PER_SCENE).view(-1, shapes.ROWS_PER_CATEGORY)
    weights = torch.tensor(CATEGORY_WEIGHTS, dtype=torch.float)
    for step in range(steps):
        category = int(torch.multinomial(weights, 1))
        if step < ANY_SCENES_SHARE * steps:
            groups = scenes[:, None]
        else:  # every second family is of the same objects in other places
            is_relation = shapes.SPLIT_CATEGORIES["train"][category] == "relation"
            groups = families[0 if is_relation else 1 :: 2]
        chosen = torch.randperm(len(groups))[: batch_size // groups.shape[1]]
        yield groups[chosen].flatten(), columns[category]


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--num-scenes", type=int, default=20000)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    model, processor = train(**arguments)
    model.save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    main()
