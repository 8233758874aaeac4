"""How often text alone tells the caption from its hard negative, before and after --plausible-by.

    python benchmarks/blind.py --data DATA --output FOLDER

DATA holds `coco_negatives/valid_neg_clip.tsv` and `replace/original/*.json`: 4,815 and 15,697
distinct captions. Two small GPT-2s are trained, each on one half of both (minutes on one core), and
each judges the edits of the half that it has not seen. No pictures, no download.
"""

import argparse
import csv
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hard_positives.generation.captions import read_captions
from hard_positives.generation.plausible import Plausible
from hard_positives.generation.rules import Rules
from hard_positives.generation.run import Edit, Task, generate
from hard_positives.generation.text_alone import describe
from hard_positives.models.loading import load_model

END = "<|endoftext|>"
WORDS, WIDTH, LAYERS, LENGTH = 4000, 128, 4, 64
BATCH = 64


def coco_captions(data: Path) -> list[str]:
    with (data / "coco_negatives" / "valid_neg_clip.tsv").open(encoding="utf-8") as file:
        return sorted({row["title"].strip() for row in csv.DictReader(file, delimiter="\t")})


def replace_captions(data: Path) -> list[str]:
    paths = sorted((data / "replace" / "original").rglob("*.json"))
    found = (text for path in paths for text in captions_in(json.loads(path.read_text())))
    return sorted({text.strip() for text in found})


def captions_in(content: object) -> list[str]:
    """All true captions of an annotation file, whatever it is nested in."""
    if isinstance(content, list):
        return [text for part in content for text in captions_in(part)]
    if isinstance(content, dict):
        own = content.get("caption") or content.get("true_caption")
        inside = [text for part in content.values() for text in captions_in(part)]
        return [own, *inside] if isinstance(own, str) else inside
    return []


def train(texts: list[str], folder: Path, epochs: int, seed: int = 0) -> float:
    """Train a tokenizer and a model on captions; returns the loss of the last hundred steps."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    config = GPT2Config(
        vocab_size=len(fast), n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=LENGTH,
        bos_token_id=fast.eos_token_id, eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    end = fast.eos_token_id
    ids = [[end, *tokens, end][:LENGTH] for tokens in fast(texts)["input_ids"]]
    steps = epochs * -(-len(ids) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    chance, losses = random.Random(seed), []
    for _ in range(epochs):
        # Captions of like length together, batches in random order.
        order = sorted(range(len(ids)), key=lambda place: (len(ids[place]), chance.random()))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        chance.shuffle(batches)
        for batch in batches:
            rows = [torch.tensor(ids[place]) for place in batch]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
            inputs = padded.clamp_min(0)
            loss = model(input_ids=inputs, labels=padded).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        print(f"loss {sum(losses[-100:]) / len(losses[-100:]):.3f}", flush=True)
    model.eval().save_pretrained(folder)
    fast.save_pretrained(folder)
    return sum(losses[-100:]) / len(losses[-100:])


@dataclass(frozen=True)
class Unseen:
    """An editor whose every caption is judged by the model that was not trained on it."""

    editors: tuple[Plausible, ...]
    halves: tuple[frozenset[str], ...]  # the captions of each editor
    chunk_size = Plausible.chunk_size
    workers = Plausible.workers

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the output besides the captions."""
        return {"editors": [editor.settings for editor in self.editors]}

    def prepare(self) -> None:
        """Prepare the editors; they share their rules."""
        self.editors[0].prepare()

    def edit_batch(self, captions: Sequence[str], task: Task) -> list[Edit]:
        """Edit each caption; the i-th result belongs to the i-th caption."""
        edits: dict[str, Edit] = {}
        for editor, half in zip(self.editors, self.halves, strict=True):
            own = [caption for caption in captions if caption in half]
            edits |= zip(own, editor.edit_batch(own, task), strict=True)
        return [edits[caption] for caption in captions]


def measure(captions: list[str], editor: Unseen, output: Path) -> None:
    path = output.with_suffix(".txt")
    path.write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
    start = time.perf_counter()
    folder = generate(read_captions(path), output, editor, workers=1)
    print(f"{output.name}: {len(captions):,} captions, {time.perf_counter() - start:.0f} s")
    record = json.loads((folder / "generation.json").read_text())
    print("\n".join(describe(record["text_alone"])), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    sources = {"coco": coco_captions, "replace": replace_captions}
    captions = {name: read(arguments.data) for name, read in sources.items()}
    halves = [[text for texts in captions.values() for text in texts[at::2]] for at in (0, 1)]
    editors = []
    for name, texts in zip(("first", "second"), reversed(halves), strict=True):
        folder = arguments.output / f"judge_of_the_{name}_half"
        if not (folder / "tokenizer.json").exists():  # what is saved last
            print(f"trains on {len(texts):,} captions", flush=True)
            start = time.perf_counter()
            train(texts, folder, arguments.epochs)
            print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
        editors.append(Plausible(Rules(), load_model(f"lm:{folder}", device="cpu"), folder.name))
    unseen = Unseen(tuple(editors), tuple(map(frozenset, halves)))
    for name, texts in captions.items():
        measure(texts, unseen, arguments.output / name)
