"""Write a randomly initialised ViT-B/32 with CLIP's own tokenizer: for timing, never for figures.

    pip install --no-deps clip-anytorch      # brings CLIP's vocabulary, 1.3 MB, and needs no torch
    python benchmarks/random_clip.py --output random_clip

The weights are those of ``CLIPModel(CLIPConfig())`` under a seed, which has ViT-B/32's shape.
"""

import argparse
import gzip
from importlib.metadata import files
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = 49152 - 256 - 2


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, from the vocabulary file in the package clip-anytorch."""
    packed = next(file for file in files("clip-anytorch") if file.name == VOCABULARY_FILE)
    lines = gzip.decompress(packed.read_binary()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : NUM_MERGES + 1]]
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: place for place, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _byte_letters() -> list[str]:
    """The printable letter that byte-level BPE has for each byte, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]


def write_model(output: Path, *, seed: int = 0) -> None:
    """Save model and processor, as ``from_pretrained`` reads them."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    config = CLIPConfig()
    config.text_config.eos_token_id = tokenizer.eos_token_id
    config.text_config.bos_token_id = tokenizer.bos_token_id
    CLIPModel(config).save_pretrained(output)
    CLIPProcessor(CLIPImageProcessorPil(), tokenizer).save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    write_model(parser.parse_args().output)
