"""Generative models against one plain forward per pair, on tiny random weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hard_positives import evaluate, score
from hard_positives.machine import Options
from hard_positives.models import generative
from hard_positives.models.generative import LikelihoodModel, YesNoModel
from hard_positives.models.kinds import QUESTION
from hard_positives.models.loading import load_model
from hard_positives.scoring.score import score_comparisons
from hard_positives.suite.columns import CAPTION_COLUMNS
from hard_positives.suite.comparisons import read_comparisons

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<video>"]
SPECIAL += ["<boi>", "<eoi>", "<image_soft_token>", "<img>", "</img>", "<IMG_CONTEXT>"]
SPECIAL += ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(**named: str) -> hf.PreTrainedTokenizerFast:
    """Bytes, a few merges, and the words Yes and No."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ye", "Yes", "No", '""', "Ġa", "Ġb", "Ġt"]
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *alphabet, *words])}
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o"), ('"', '"'), ("Ġ", "a"), ("Ġ", "b"), ("Ġ", "t")]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
    )
    return tokenizer


def token(name: str) -> int:
    return SPECIAL.index(name)


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
SQUARE = {**VISION, "image_size": 32, "patch_size": 8}


def llava() -> tuple[torch.nn.Module, hf.ProcessorMixin]:
    config = hf.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            **SQUARE,
        },
        text_config={"model_type": "llama", **TEXT},
        image_token_index=token("<image>"),
    )
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    processor = hf.LlavaProcessor(
        images,
        make_tokenizer(image_token="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    return hf.LlavaForConditionalGeneration(config), processor


def llava_onevision() -> tuple[torch.nn.Module, hf.ProcessorMixin]:
    config = hf.LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **SQUARE,
            "vision_use_head": False,
        },
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]],
        vision_aspect_ratio="anyres_max_9",
    )
    images = hf.LlavaOnevisionImageProcessorPil(
        size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]]
    )
    processor = hf.LlavaOnevisionProcessor(
        images,
        make_tokenizer(image_token="<image>", video_token="<video>"),
        None,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
        vision_aspect_ratio="anyres_max_9",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "vision_eos_token": "<|vision_end|>",
}
QWEN_IDS = {
    "image_token_id": token("<|image_pad|>"),
    "video_token_id": token("<|video_pad|>"),
    "vision_start_token_id": token("<|vision_start|>"),
    "vision_end_token_id": token("<|vision_end|>"),
}
QWEN_TEMPLATE = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def qwen2_5_vl() -> tuple[torch.nn.Module, hf.ProcessorMixin]:
    vision = {"hidden_size": 16, "out_hidden_size": 32, "depth": 2, "num_heads": 2}
    vision |= {"intermediate_size": 32, "fullatt_block_indexes": [1], "patch_size": 14}
    rope = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2]}
    config = hf.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": {**rope, "rope_theta": 10_000.0}},
        vision_config=vision,
        **QWEN_IDS,
    )
    images = hf.Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84})
    processor = hf.Qwen2_5_VLProcessor(
        images, make_tokenizer(**QWEN_TOKENS), None, chat_template=QWEN_TEMPLATE
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[torch.nn.Module, hf.ProcessorMixin]:
    vision = {"hidden_size": 16, "out_hidden_size": 32, "depth": 2, "num_heads": 2}
    vision |= {"intermediate_size": 32, "deepstack_visual_indexes": [0], "patch_size": 16}
    vision |= {"num_position_embeddings": 16}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    config = hf.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        vision_config=vision,
        **QWEN_IDS,
    )
    images = hf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}, patch_size=16
    )
    processor = hf.Qwen3VLProcessor(
        images, make_tokenizer(**QWEN_TOKENS), None, chat_template=QWEN_TEMPLATE
    )
    return hf.Qwen3VLForConditionalGeneration(config), processor


def gemma3() -> tuple[torch.nn.Module, hf.ProcessorMixin]:
    config = hf.Gemma3Config(
        text_config={
            **TEXT,
            "head_dim": 8,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={
            "model_type": "siglip_vision_model",
            **SQUARE,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        boi_token_index=token("<boi>"),
        eoi_token_index=token("<eoi>"),
        image_token_index=token("<image_soft_token>"),
    )
    images = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    tokens = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft_token>"}
    processor = hf.Gemma3Processor(
        images,
        make_tokenizer(**tokens),
        chat_template=TEMPLATE.replace("IMAGE", "<boi>"),
        image_seq_length=4,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[torch.nn.Module, hf.ProcessorMixin]:
    config = hf.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT},
        # transformers 5.20, that of Python 3.10, takes as many tokens at a time as a patch is wide.
        vision_config={**SQUARE, "patch_size": 4},
        scale_factor=4,
        image_token_id=token("<image>"),
    )
    images = hf.SmolVLMImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )
    tokens = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    processor = hf.SmolVLMProcessor(
        images,
        make_tokenizer(**tokens),
        None,
        image_seq_len=4,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    processor.video_processor = SimpleNamespace(num_frames=1, fps=1)
    return hf.SmolVLMForConditionalGeneration(config), processor


def internvl() -> tuple[torch.nn.Module, hf.ProcessorMixin]:
    config = hf.InternVLConfig(
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=token("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=3
    )
    tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    processor = hf.InternVLProcessor(
        images,
        make_tokenizer(**tokens),
        None,
        image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return hf.InternVLForConditionalGeneration(config), processor


FAMILIES = {
    "llava": llava,
    "llava-onevision": llava_onevision,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "gemma3": gemma3,
    "smolvlm": smolvlm,
    "internvl": internvl,
}


@pytest.fixture(autouse=True)
def without_videos(monkeypatch):
    """Make processors without one for videos, which needs torchvision."""
    monkeypatch.setattr(
        hf.ProcessorMixin, "check_argument_for_proper_class", lambda self, name, value: None
    )


def make(family: str) -> tuple[torch.nn.Module, hf.ProcessorMixin]:
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    for name, values in model.named_parameters():  # so that logits differ visibly
        if values.ndim > 1:
            torch.nn.init.normal_(values, std=0.5 if "head" in name else 0.1)
    return model.eval(), processor


def own_logits(model, processor, rows, question: str = QUESTION) -> np.ndarray:
    """One pair at a time through the model's own forward and all of its last layer."""
    yes, no = (
        processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No")
    )
    logits = []
    for row in rows:
        for name in CAPTION_COLUMNS:
            content = [
                {"type": "image", "image": row["image"].convert("RGB")},
                {"type": "text", "text": question.replace("{}", row[name])},
            ]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                last = model(**inputs).logits[0, -1].log_softmax(-1)
            logits.append(float(last[yes] - last[no]))
    return np.array(logits).reshape(-1, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_scored_as_by_its_own_forward(family, triples):
    model, processor = make(family)
    rows = triples.select(range(0, 40, 4))
    expected = own_logits(model, processor, rows)
    assert np.ptp(expected, axis=1).min() > 1e-3
    scorer = load_model(model, processor=processor)
    assert isinstance(scorer, YesNoModel)
    logits = score(model, rows, processor=processor, cache=False)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def scored(family: str, rows, **options) -> tuple[YesNoModel, np.ndarray]:
    model, processor = make(family)
    scorer = load_model(model, processor=processor, **options)
    comparisons = read_comparisons(rows)
    run = Options(cache=False, progress=False)
    return scorer, comparisons.listed(score_comparisons(scorer, comparisons, run))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_captions_share_is_computed_once_and_changes_nothing(family, triples, monkeypatch):
    scorer, by_prefix = scored(family, triples)
    assert scorer._uses_prefix == [True]
    monkeypatch.setattr(YesNoModel, "_prefix_is_exact", lambda *parts: False)
    scorer, plain = scored(family, triples)
    assert scorer._uses_prefix == [False]
    np.testing.assert_allclose(by_prefix, plain, atol=1e-4, rtol=0)


def own_likelihoods(model, processor, rows) -> np.ndarray:
    """One pair at a time: all log-probabilities, and those of the caption's tokens added up."""
    logits = []
    for row in rows:
        for name in CAPTION_COLUMNS:
            picture = {"type": "image", "image": row["image"].convert("RGB")}
            messages = [{"role": "user", "content": [picture]}]
            inputs = processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            begin = inputs["input_ids"].shape[1]
            caption = processor.tokenizer(row[name], add_special_tokens=False)["input_ids"]
            shape = inputs["input_ids"].shape
            for field, values in list(inputs.items()):
                if values.shape == shape and field != "input_ids":
                    inputs[field] = torch.cat(
                        [values, values[:, -1:].expand(1, len(caption))], dim=1
                    )
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([caption])], dim=1)
            with torch.no_grad():
                every = model(**inputs).logits[0].log_softmax(-1)
            logits.append(
                sum(float(every[begin - 1 + at, token]) for at, token in enumerate(caption))
            )
    return np.array(logits).reshape(-1, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likelihood_of_a_caption_is_that_of_its_tokens(family, triples, monkeypatch):
    monkeypatch.setattr(generative, "VOCABULARY_PER_STEP", 64)
    model, processor = make(family)
    rows = triples.select(range(0, 40, 4))
    expected = own_likelihoods(model, processor, rows)
    assert np.ptp(expected, axis=1).min() > 1e-3
    for exact in (True, False):
        if not exact:
            monkeypatch.setattr(LikelihoodModel, "_prefix_is_exact", lambda *parts: False)
        scorer, logits = scored(family, rows, likelihood=True)
        assert isinstance(scorer, LikelihoodModel)
        assert scorer._uses_prefix == [exact]
        np.testing.assert_allclose(logits, expected, atol=2e-3, rtol=0)


def test_a_likelihood_is_asked_for_alone_and_of_captions_that_begin_with_a_token(triples):
    model, processor = make("llava")
    with pytest.raises(ValueError, match="question to be left out with likelihood"):
        score(model, triples, processor=processor, likelihood=True, question="{}?")
    with pytest.raises(ValueError, match="Expected likelihood to be left out for dual encoders"):
        score("shapes_clip", triples, likelihood=True)
    processor.chat_template += '{% if add_generation_prompt %} "{% else %}{% endif %}'
    processor.chat_template = processor.chat_template.replace("<|{{ message", "<|{{ message")
    quoted = triples.map(lambda row: {"caption": '"' + row["caption"]})
    with pytest.raises(ValueError, match="to begin with a token of its own, got"):
        score(model, quoted, processor=processor, likelihood=True)


@pytest.mark.parametrize("exact", [True, False])
def test_a_line_says_whether_the_prefix_is_used(triples, monkeypatch, capsys, exact):
    if not exact:
        monkeypatch.delattr(hf.Cache, "batch_repeat_interleave")
    model, processor = make("llava")
    score(model, triples.select(range(8)), processor=processor, cache=False)
    said = "computed once per picture" if exact else "computed as a whole"
    assert capsys.readouterr().err.count(said) == 1


def test_the_prefix_saves_tokens_of_pictures(triples, monkeypatch):
    tokens = []

    def counting(module, args, kwargs):
        tokens.append(int((kwargs["input_ids"] == token("<image>")).sum()))

    numbers = {}
    for way in ("prefix", "plain"):
        model, processor = make("llava")
        model.model.register_forward_pre_hook(counting, with_kwargs=True)
        if way == "plain":
            monkeypatch.setattr(YesNoModel, "_prefix_is_exact", lambda *parts: False)
        tokens.clear()
        score(model, triples, processor=processor, cache=False)
        numbers[way] = sum(tokens)
    assert numbers["prefix"] * 3 < numbers["plain"]


def test_a_cache_that_gives_other_logits_is_not_used(triples, monkeypatch):
    by_prefix = YesNoModel._by_prefix
    monkeypatch.setattr(
        YesNoModel, "_by_prefix", lambda self, *parts: by_prefix(self, *parts) + 2e-4
    )
    model, processor = make("llava")
    expected = own_logits(model, processor, triples.select(range(5)))
    logits = score(model, triples.select(range(5)), processor=processor, cache=False)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_a_cache_that_cannot_be_repeated_is_not_used(triples, monkeypatch):
    monkeypatch.delattr(hf.Cache, "batch_repeat_interleave")
    scorer, _ = scored("llava", triples.select(range(8)))
    assert scorer._uses_prefix == [False]


def test_batches_and_the_order_of_rows_change_nothing(triples):
    _, expected = scored("qwen3-vl", triples)
    order = np.random.default_rng(1).permutation(len(triples))
    _, shuffled = scored("qwen3-vl", triples.select(order))
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", ["prefix", "plain"])
def test_the_side_that_a_tokenizer_pads_changes_nothing(triples, monkeypatch, way):
    if way == "plain":
        monkeypatch.setattr(YesNoModel, "_prefix_is_exact", lambda *parts: False)
    sides = {}
    for side in ("left", "right"):
        model, processor = make("llava")
        processor.tokenizer.padding_side = side
        sides[side] = score(model, triples, processor=processor, cache=False)
    np.testing.assert_array_equal(sides["left"], sides["right"])


def test_logits_are_kept_apart_by_question_and_template(triples, tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    model, processor = make("llava")
    pairs = []
    score_image = YesNoModel._score_image

    def counting(self, asked, texts):
        pairs.append(len(texts))
        return score_image(self, asked, texts)

    monkeypatch.setattr(YesNoModel, "_score_image", counting)
    first = score(model, triples, processor=processor)
    number = sum(pairs)
    np.testing.assert_array_equal(score(model, triples, processor=processor), first)
    assert sum(pairs) == number
    other = score(model, triples, processor=processor, question="Is it true that {}?")
    assert sum(pairs) == 2 * number
    assert not np.allclose(first, other)
    processor.chat_template = processor.chat_template.replace("|>{%", "|>\n{%", 1)
    score(model, triples, processor=processor)
    assert sum(pairs) == 3 * number


def near_identical(image) -> Dataset:
    """240 captions of one picture, any two of which differ by three words at most."""
    colours = ["red", "green", "blue", "grey", "ivory", "pink", "brown", "teal"]
    things = ["cube", "ball", "mug", "ring", "bowl", "cone"]
    places = ["on a table", "on a desk", "near a wall", "by a door", "in a box"]
    texts = [
        f"a {colour} {thing} {place}" for colour in colours for thing in things for place in places
    ]
    columns = dict(zip(CAPTION_COLUMNS, (texts[at::3] for at in range(3)), strict=True))
    return Dataset.from_dict({**columns, "image": [image] * 80})


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_ends_in_float32_and_does_not_tie(family, triples, monkeypatch):
    """`pytest -s` prints the counts."""
    model, processor = make(family)
    options = {"processor": processor, "cache": False}
    rows = near_identical(triples[0]["image"])
    full = score(model, rows, **options)
    half = score(model, rows, dtype="bfloat16", **options)
    assert not np.array_equal(half, full)
    assert np.corrcoef(half.ravel(), full.ravel())[0, 1] > 0.9
    in_float32 = generative._logits

    def in_bfloat16(model, hidden, tokens):
        logits = in_float32(model, hidden, tokens)
        return logits if tokens != answers else logits.bfloat16().float()

    answers = YesNoModel(model, processor).answers
    monkeypatch.setattr(generative, "_logits", in_bfloat16)
    throughout = score(model, rows, dtype="bfloat16", **options)
    distinct = len(np.unique(half)), len(np.unique(throughout))
    print(f"\n{family}: of 240 logits {distinct[0]} distinct in float32, {distinct[1]} in bfloat16")
    assert distinct[0] > distinct[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: setattr(p, "chat_template", None), "to have a chat template, got none"),
        (
            lambda p: setattr(p, "chat_template", "{{ messages[0]['content'][1]['text'] }}<image>"),
            "to put the picture before the question",
        ),
        (
            lambda p: p.tokenizer.__setattr__("encode", lambda *args, **options: [4, 5]),
            "Yes and No to be one token each",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_scored(triples, change, message):
    model, processor = make("llava")
    change(processor)
    with pytest.raises(ValueError, match=message):
        score(model, triples, processor=processor)


def test_questions_and_captions_that_would_be_misread_are_refused(triples):
    model, processor = make("llava")
    with pytest.raises(ValueError, match=r"to have one \{\} in the place of the caption, got 'Yes"):
        score(model, triples, processor=processor, question="Yes or no?")
    rows = triples.map(lambda row: {"caption": row["caption"] + "<image>"})
    with pytest.raises(ValueError, match="got the model's own token '<image>'"):
        score(model, rows, processor=processor)
    with pytest.raises(ValueError, match="Expected question to be left out for dual encoders"):
        score("shapes_clip", triples, question="{}?")


def test_a_model_that_changes_its_logits_afterwards_is_refused(triples):
    model, processor = make("llava")
    forward = type(model.lm_head).forward
    model.lm_head.forward = lambda hidden: forward(model.lm_head, hidden) * 2
    with pytest.raises(ValueError, match="to be those of its last layer"):
        score(model, triples, processor=processor, cache=False)


def test_a_result_says_what_was_asked(triples):
    model, processor = make("llava")
    plain = evaluate(model, triples.select(range(8)), processor=processor, cache=False)
    assert plain.signature["asked"]["question"] == QUESTION
    assert plain.signature["asked"]["answers"] == {
        word: processor.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No")
    }
    other = evaluate(
        model, triples.select(range(8)), processor=processor, cache=False, question="{}, really?"
    )
    lines = [result.signature_line for result in (plain, other)]
    assert len({line.split("question:")[1][:8] for line in lines}) == 2


def test_a_folder_is_loaded_as_what_it_is(triples, tmp_path):
    model, processor = make("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = score(model, triples, processor=processor, cache=False)
    logits = score(tmp_path, triples, cache=False)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
