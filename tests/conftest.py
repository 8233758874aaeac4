"""What the tests share: small real models and small real data, made here and now."""

import os
import tempfile

# Read when the libraries are imported, so before any test imports them.
_hf_home = tempfile.TemporaryDirectory(prefix="hf_home_", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _hf_home.name  # also where embeddings are cached
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

ROOT = Path(__file__).parents[1]
TINY_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """A folder with a random CLIP of 0.1 M parameters that reads letter by letter."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[])
    text = {
        "vocab_size": len(words),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 77,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**TINY_TOWER, **text},
        vision_config={**TINY_TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    folder = tmp_path_factory.mktemp("tiny_clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def triples() -> Dataset:
    """Forty rows over ten images, with captions of many lengths, some of them repeated."""
    random = np.random.default_rng(0)
    pictures = [
        PILImage.fromarray(random.integers(0, 256, (40 + 3 * i, 60 - 2 * i, 3), dtype=np.uint8))
        for i in range(10)
    ]
    things = ["cat", "dog", "umbrella", "mug", "fire hydrant"]
    records = [
        {
            "id": f"replace-attribute-{i:05d}",
            "image": pictures[i // 4],
            "caption": f"white {things[i % 5]}" + " on a table" * (i % 3),
            "hard_positive": f"ivory {things[i % 5]}" + " on a table" * (i % 3),
            "hard_negative": f"black {things[i % 5]}" + " on a table" * (i % 3),
            "image_id": str(i // 4),
        }
        for i in range(40)
    ]
    features = Features(
        {name: Image() if name == "image" else Value("string") for name in records[0]}
    )
    return Dataset.from_list(records, features=features)


def as_scores(columns: dict) -> dict:
    """Columns of triples, as a dataset has them, as those of an `EvaluationResult`."""
    columns = dict(columns)
    captions = [columns.pop(name) for name in ("caption", "hard_positive", "hard_negative")]
    digests, number = columns.pop("image_sha256"), len(captions[0])
    return {
        **{name: values for name, values in columns.items() if name != "image_id"},
        "cluster": columns["image_id"],
        "direction": ["image_to_text"] * number,
        "set": pa.nulls(number, pa.string()),
        "images": [[digest] for digest in digests],
        "captions": [list(texts) for texts in zip(*captions, strict=True)],
        "labels": [[True, True, False]] * number,
    }
