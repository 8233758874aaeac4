"""Every family of models against its own forward, on tiny random weights of its architecture."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import TINY_TOWER
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hard_positives import score
from hard_positives.suite.columns import CAPTION_COLUMNS

WORDS = 600
END_READ = {  # tokenizers of the CLIP kind: read at the end token, padded with it
    "vocab_size": WORDS,
    "max_position_embeddings": 40,
    "bos_token_id": WORDS - 2,
    "eos_token_id": WORDS - 1,
    "pad_token_id": WORDS - 1,
}
START_READ = {"vocab_size": WORDS, "max_position_embeddings": 64, "pad_token_id": 1}  # BERT's kind
VISION = {**TINY_TOWER, "image_size": 32, "patch_size": 8}


def towers(text: dict, vision: dict = VISION, **options: Any) -> dict:
    return {"text_config": {**TINY_TOWER, **text}, "vision_config": vision, **options}


FAMILIES = {
    "clip": (hf.CLIPModel, hf.CLIPConfig, towers(END_READ, projection_dim=16)),
    "metaclip_2": (hf.MetaClip2Model, hf.MetaClip2Config, towers(END_READ, projection_dim=16)),
    "clipseg": (hf.CLIPSegModel, hf.CLIPSegConfig, towers(END_READ, projection_dim=16)),
    "aimv2": (hf.Aimv2Model, hf.Aimv2Config, towers(END_READ, projection_dim=16)),
    "siglip": (hf.SiglipModel, hf.SiglipConfig, towers(END_READ)),
    "siglip2": (
        hf.Siglip2Model,
        hf.Siglip2Config,
        towers(END_READ, {**TINY_TOWER, "patch_size": 8, "num_patches": 16}),
    ),
    "groupvit": (
        hf.GroupViTModel,
        hf.GroupViTConfig,
        towers(
            END_READ,
            {
                **VISION,
                "num_hidden_layers": 4,
                "depths": [2, 2],
                "num_group_tokens": [4, 0],
                "num_output_groups": [4, 2],
            },
            projection_dim=16,
            projection_intermediate_dim=32,
        ),
    ),
    "chinese_clip": (
        hf.ChineseCLIPModel,
        hf.ChineseCLIPConfig,
        towers(START_READ, projection_dim=16),
    ),
    "altclip": (
        hf.AltCLIPModel,
        hf.AltCLIPConfig,
        towers({**START_READ, "project_dim": 32}, projection_dim=16),
    ),
    "align": (
        hf.AlignModel,
        hf.AlignConfig,
        towers(
            START_READ,
            {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3},
            projection_dim=80,
        ),
    ),
    "blip": (hf.BlipModel, hf.BlipConfig, towers(START_READ, projection_dim=16)),
    "tipsv2": (hf.Tipsv2Model, hf.Tipsv2Config, towers(START_READ)),
}


@dataclass
class Processor:
    """What a family's own processor is to the scorer, and to ``PairModel``."""

    tokenizer: hf.PreTrainedTokenizerFast
    image_processor: Any

    def __call__(self, images, text, **options) -> hf.BatchFeature:
        pixels = self.image_processor(images, return_tensors="pt")
        return hf.BatchFeature({**self.tokenizer(text, **options), **pixels})


def make_processor(triples, text: dict, family: str) -> Processor:
    words = sorted(
        {word for name in CAPTION_COLUMNS for row in triples[name] for word in row.split()}
    )
    ids = {"[start]": 0, "[pad]": 1, **{word: place for place, word in enumerate(words, start=2)}}
    pad = "[pad]"
    start, end = ("[start]", 0), ("[end]", WORDS - 1)
    if "eos_token_id" in text:
        pad, start = "[end]", ("[bos]", WORDS - 2)
        ids["[bos]"] = WORDS - 2
    ids["[end]"] = WORDS - 1
    backend = Tokenizer(models.WordLevel(ids, unk_token="[pad]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start[0]} $A {end[0]}", special_tokens=[start, end]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, model_max_length=30
    )
    square = {"height": 32, "width": 32}
    if family == "siglip2":
        images = hf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    else:
        images = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    return Processor(tokenizer, images)


def make(family: str, triples) -> tuple[torch.nn.Module, Processor]:
    model_class, config_class, options = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(**options)
    # AIMv2's text tower ignores its causal mask under SDPA, which is how the scorer loads it.
    attention = "eager" if family == "aimv2" else None
    model = model_class._from_config(config, attn_implementation=attention).eval()
    for name, values in model.named_parameters():  # so that embeddings differ visibly
        if values.ndim > 1 and "logit" not in name:
            torch.nn.init.normal_(values, std=0.2)
    return model, make_processor(triples, options["text_config"], family)


def own_logits(family: str, model, processor: Processor, rows) -> np.ndarray:
    """One row at a time through the model's own forward, padded as the family was trained."""
    logits = []
    for row in rows:
        text = processor.tokenizer(
            [row[name] for name in CAPTION_COLUMNS],
            padding="max_length",
            return_attention_mask=family not in ("siglip", "siglip2"),
            return_tensors="pt",
        )
        pixels = processor.image_processor(row["image"].convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**text, **pixels).logits_per_image[0].numpy())
    return np.stack(logits)


def test_long_words_and_many_words_are_not_mistaken_for_each_other(triples):
    # Captions stand in order of letters when they are cut into chunks, of tokens in batches.
    words = sorted({word for row in triples for word in row["caption"].split()}, key=len)

    def many_or_long(row: dict, number: int) -> dict:
        short, long = words[number % 5], words[-1 - number % 3]
        texts = [" ".join([short] * (2 + number % 7)), " ".join([long] * (1 + number % 3)), short]
        return dict(zip(CAPTION_COLUMNS, texts, strict=True))

    rows = triples.map(many_or_long, with_indices=True)
    model, processor = make("clip", triples)
    lengths = sorted({(len(row[n]), len(row[n].split())) for row in rows for n in CAPTION_COLUMNS})
    assert [tokens for _, tokens in lengths] != sorted(tokens for _, tokens in lengths)
    logits = score(model, rows, processor=processor)
    np.testing.assert_allclose(logits, own_logits("clip", model, processor, rows), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_scored_as_by_its_own_forward(family, triples):
    model, processor = make(family, triples)
    logits = score(model, triples, processor=processor, cache=False, batch_size=4)
    expected = own_logits(family, model, processor, triples)
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
    assert np.ptp(expected, axis=1).min() > 1e-4  # the fixture tells captions apart


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_trimming_would_change_a_family_that_was_trained_with_padding(family, triples, monkeypatch):
    model, processor = make(family, triples)
    expected = score(model, triples, processor=processor, cache=False)
    monkeypatch.setattr("hard_positives.models.tokens.TRIMMED_FAMILIES", {family})
    trimmed = score(model, triples, processor=processor, cache=False)
    assert np.abs(trimmed - expected).max() > 1e-2


def test_flava_is_read_at_its_first_tokens(triples):
    text = {"text_config": {**TINY_TOWER, **START_READ}}
    vision = {"image_config": VISION, "multimodal_config": TINY_TOWER}
    torch.manual_seed(0)
    model = hf.FlavaModel(hf.FlavaConfig(**text, **vision, projection_dim=16)).eval()
    processor = make_processor(triples, START_READ, "flava")
    logits = score(model, triples, processor=processor, cache=False)
    for row, found in zip(triples.select(range(5)), logits, strict=False):
        texts = [row[name] for name in CAPTION_COLUMNS]
        words = processor.tokenizer(texts, padding=True, return_tensors="pt")
        pixels = processor.image_processor(row["image"].convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            outputs = model(**words, **pixels, skip_multimodal_encoder=True)
            image = model.image_projection(outputs.image_embeddings[:, 0])
            captions = model.text_projection(outputs.text_embeddings[:, 0])
            cosines = torch.nn.functional.cosine_similarity(image, captions)
        np.testing.assert_allclose(
            found, (cosines * model.logit_scale.exp()).detach().numpy(), atol=1e-5
        )
    assert np.ptp(logits, axis=1).min() > 0


def test_a_blip_2_without_its_matching_head_is_refused(triples):
    model = hf.Blip2Model(blip_2())
    processor = make_processor(triples, START_READ, "blip-2")
    with pytest.raises(TypeError, match=r"a scale for its cosines .* got Blip2Model"):
        score(model, triples, processor=processor)


def blip_2() -> hf.Blip2Config:
    reader = {**START_READ, "encoder_hidden_size": TINY_TOWER["hidden_size"]}
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config={**TINY_TOWER, **reader, "use_qformer_text_input": True},
        text_config={"model_type": "opt", **TINY_TOWER, "vocab_size": WORDS, "ffn_dim": 32},
        num_query_tokens=4,
        image_text_hidden_size=16,
    )
    config.image_token_index = WORDS - 3
    return config


def matching_head(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "blip":
        text = {**START_READ, "encoder_hidden_size": TINY_TOWER["hidden_size"]}
        config = hf.BlipConfig(**towers(text, projection_dim=16))
        return hf.BlipForImageTextRetrieval(config).eval()
    if kind == "blip-2":
        return hf.Blip2ForImageTextRetrieval(blip_2()).eval()
    if kind == "bridgetower":
        vision = {**VISION, "hidden_size": 64}  # a head for each 64
        config = hf.BridgeTowerConfig(
            **TINY_TOWER, text_config={**TINY_TOWER, **START_READ}, vision_config=vision
        )
        return hf.BridgeTowerForImageAndTextRetrieval(config).eval()
    sizes = {"image_size": 32, "patch_size": 8, "max_position_embeddings": 40}
    return hf.ViltForImageAndTextRetrieval(
        hf.ViltConfig(**TINY_TOWER, **sizes, vocab_size=WORDS)
    ).eval()


def own_match(kind: str, model, processor: Processor, image, captions: list[str]) -> np.ndarray:
    """Score the pairs of one picture by the model's own forward."""
    texts = processor.tokenizer(captions, padding=True)
    if kind == "blip-2":  # as its processor writes them: the places of the picture first
        fillers = {"input_ids": [WORDS - 3] * 4, "attention_mask": [1] * 4}
        texts = {name: [first + part for part in texts[name]] for name, first in fillers.items()}
    pixels = processor.image_processor([image.convert("RGB")] * len(captions), return_tensors="pt")
    switch = {"use_image_text_matching_head": True} if kind == "blip-2" else {}
    with torch.no_grad():
        outputs = model(**hf.BatchFeature(texts, tensor_type="pt"), **pixels, **switch)
    scores = {"blip": "itm_score", "blip-2": "logits_per_image"}.get(kind, "logits")
    scores = outputs[scores].numpy()
    return scores[:, 0] if kind == "vilt" else scores[:, 1] - scores[:, 0]


@pytest.mark.parametrize("kind", ["blip", "blip-2", "bridgetower", "vilt"])
def test_a_matching_head_is_scored_pair_by_pair(kind, triples):
    model, processor = matching_head(kind), make_processor(triples, START_READ, kind)
    for values in model.parameters():  # so that logits differ visibly
        if values.ndim > 1:
            torch.nn.init.normal_(values, std=0.2)
    pairs = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: pairs.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    logits = score(model, triples, processor=processor, batch_size=7)
    distinct = {(row["image_id"], row[name]) for row in triples for name in CAPTION_COLUMNS}
    assert sum(pairs) == len(distinct)
    for row in (0, 11, 39):
        texts = [triples[row][name] for name in CAPTION_COLUMNS]
        expected = own_match(kind, model, processor, triples[row]["image"], texts)
        np.testing.assert_allclose(logits[row], expected, atol=1e-4)
    assert np.ptp(logits, axis=1).min() > 1e-4


def test_a_matching_head_is_loaded_by_the_architecture_of_its_checkpoint(tmp_path, triples):
    model = matching_head("blip")
    model.save_pretrained(tmp_path)
    processor = make_processor(triples, START_READ, "blip")
    expected = score(model, triples, processor=processor)
    np.testing.assert_allclose(score(tmp_path, triples, processor=processor), expected, atol=1e-5)


def test_any_function_of_images_and_captions_is_a_model(tiny_clip, triples):
    model = hf.CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32).eval()
    processor = hf.AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    calls = []

    def my_clip(images, captions):
        calls.append((len(images), len(captions)))
        inputs = processor(images=images, text=captions, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model(**inputs).logits_per_image

    logits = score(my_clip, triples, batch_size=4)
    np.testing.assert_allclose(logits, score(tiny_clip, triples), atol=1e-5, rtol=0)
    assert [images for images, _ in calls] == [4, 4, 2]

    order = np.random.default_rng(0).permutation(len(triples))
    shuffled = score(my_clip, triples.select(order), batch_size=3)
    np.testing.assert_allclose(shuffled, logits[order], atol=1e-5, rtol=0)


def test_a_function_that_returns_another_shape_is_an_error(triples):
    with pytest.raises(ValueError, match=r"shape \(10, 45\) \(images, captions\), got \(45, 10\)"):
        score(
            lambda images, captions: np.zeros((len(captions), len(images))), triples, batch_size=10
        )
