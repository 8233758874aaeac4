"""Ask a small random LLaVA about every pair of a dataset in several ways, in one run.

    python benchmarks/generative_speed.py --dataset REPLACE --rows 2000

The model has random weights and a tokenizer trained on the captions; it stands for any generative
model, and its answers mean nothing. On a GPU, ``--hidden 2048 --layers 24`` has the size of one of
two billion weights.

* per pair: one full forward pass a pair, processor and all, as t2v_metrics has it.
* plain: ours, where the check of the beginnings fails: one pass a pair, each picture prepared once.
* prefix: ours: what the captions of a picture begin with is computed once.

Then ties: the logits of "prefix" with weights in bfloat16 and float32 at the end, and the same
hidden states with the end in bfloat16, too.
"""

import argparse
import time
from collections import Counter
from itertools import groupby

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from hard_positives import score
from hard_positives.models import generative
from hard_positives.suite.columns import CAPTION_COLUMNS
from hard_positives.suite.sources import load_source

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="what hard-positives evaluate takes")
    parser.add_argument("--rows", type=int, default=2000, help="at least so many, by image")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ways", nargs="+", default=["per pair", "plain", "prefix"])
    options = parser.parse_args()
    rows = rows_by_image(next(iter(load_source(options.dataset).splits.values())), options.rows)
    captions = [text for name in CAPTION_COLUMNS for text in rows[name]]
    model, processor = random_llava(captions, options.hidden, options.layers)
    model = model.to(options.device, getattr(torch, options.dtype))
    images = len(set(rows["image_id"]))
    weights = sum(values.numel() for values in model.parameters())
    print(f"{len(rows):,} rows, {images:,} images, {weights / 1e6:.0f} million weights")
    ways = {"per pair": per_pair, "plain": plain, "prefix": prefix}
    logits = {way: timed(way, ways[way], model, processor, rows) for way in options.ways}
    for way in options.ways[:-1]:
        most = np.abs(logits[way] - logits[options.ways[-1]]).max()
        print(f"largest difference of a logit, {way} and {options.ways[-1]}: {most:.1e}")
    print(f"standard deviation of logits: {logits[options.ways[-1]].std():.2f}")
    count_ties(model, processor, rows)


def rows_by_image(rows, number: int):
    """The first rows whose images are whole, as many as asked for at least."""
    chosen = 0
    for _, same in groupby(rows["image_id"]):
        if chosen >= number:
            break
        chosen += len(list(same))
    return rows.select(range(chosen))


def random_llava(
    captions: list[str], hidden: int, layers: int, image_size: int = 224
) -> tuple[hf.PreTrainedModel, hf.ProcessorMixin]:
    """Make a LLaVA of random weights, with a tokenizer for such captions."""
    torch.manual_seed(0)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*captions, "Yes No " * 99, "Yes", "No"], trainer)
    backend.add_tokens(["Yes", "No"])
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    size = {"hidden_size": hidden, "intermediate_size": 4 * hidden}
    size |= {"num_hidden_layers": layers, "num_attention_heads": hidden // 32}
    vision = {"model_type": "clip_vision_model", "patch_size": 14, "image_size": image_size}
    config = hf.LlavaConfig(
        vision_config={**vision, **size},
        text_config={"model_type": "llama", **size, "vocab_size": len(tokenizer)},
        image_token_index=SPECIAL.index("<image>"),
    )
    model = hf.LlavaForConditionalGeneration(config)
    # Logits of the size that trained models have, where bfloat16 has steps of 1/32 to 1/8.
    torch.nn.init.normal_(model.lm_head.weight, std=8 / hidden**0.5)
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=image_size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return model.eval(), processor


def timed(way: str, run, model, processor, rows) -> np.ndarray:
    """Run a way; print its seconds, forward passes, and tokens."""
    counts: Counter = Counter()

    def count(module, args, inputs):
        tokens = inputs["input_ids"]
        counts.update(passes=1, tokens=tokens.numel())
        counts["image tokens"] += int((tokens == SPECIAL.index("<image>")).sum())

    hook = model.model.register_forward_pre_hook(count, with_kwargs=True)
    start = time.perf_counter()
    logits = run(model, processor, rows)
    seconds = time.perf_counter() - start
    hook.remove()
    pairs = len({(row, text) for row, text in distinct_pairs(rows)})
    print(f"{way}: {seconds:.1f} s, {pairs / seconds:.0f} distinct pairs/s, {dict(counts)}")
    return logits


def distinct_pairs(rows):
    for name in CAPTION_COLUMNS:
        yield from zip(rows["image_id"], rows[name], strict=True)


def per_pair(model, processor, rows) -> np.ndarray:
    """One pair at a time; a pair that comes again is looked up, as any careful user would."""
    yes, no = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    known: dict[tuple, float] = {}
    for row in tqdm(rows, desc="per pair", disable=None):
        for name in CAPTION_COLUMNS:
            pair = row["image_id"], row[name]
            if pair not in known:
                text = generative.QUESTION.replace("{}", row[name])
                picture = {"type": "image", "image": row["image"].convert("RGB")}
                content = [picture, {"type": "text", "text": text}]
                inputs = processor.apply_chat_template(
                    [{"role": "user", "content": content}],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                ).to(model.device, model.dtype)
                with torch.inference_mode():
                    last = model(**inputs, logits_to_keep=1).logits[0, -1].float()
                known[pair] = float(last[yes] - last[no])
    pairs = [[known[row["image_id"], row[name]] for name in CAPTION_COLUMNS] for row in rows]
    return np.array(pairs, np.float32)


def plain(model, processor, rows) -> np.ndarray:
    check = generative.GenerativeModel._prefix_is_exact
    generative.GenerativeModel._prefix_is_exact = lambda *_: False
    try:
        return prefix(model, processor, rows)
    finally:
        generative.GenerativeModel._prefix_is_exact = check


def prefix(model, processor, rows) -> np.ndarray:
    dtype = str(model.dtype).removeprefix("torch.")
    return score(model, rows, processor=processor, dtype=dtype, cache=False)


def count_ties(model, processor, rows) -> None:
    """Count captions and hard positives that tie with the hard negative."""
    model = model.to(torch.bfloat16)
    ours = prefix(model, processor, rows)
    answers = generative.YesNoModel(model, processor).answers
    read = generative._logits

    def in_half(model, hidden, tokens):
        logits = read(model, hidden, tokens)
        return logits.bfloat16().float() if tokens == answers else logits

    generative._logits = in_half
    try:
        throughout = prefix(model, processor, rows)
    finally:
        generative._logits = read
    for name, logits in {"float32 at the end": ours, "bfloat16 throughout": throughout}.items():
        tied = (logits[:, :2] == logits[:, 2:]).sum()
        print(f"ties, {name}: {tied:,} of {2 * len(logits):,}")


if __name__ == "__main__":
    main()
