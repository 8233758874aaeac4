"""Models of open_clip against their own forward, pair by pair, on tiny random weights.

Runs where open_clip is installed; .ci/run does it in an environment of its own.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hard_positives import evaluate, score
from hard_positives.models.loading import load_model
from hard_positives.suite.columns import CAPTION_COLUMNS

open_clip = pytest.importorskip("open_clip")
peft = pytest.importorskip("peft")

TEXT = {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
CONFIGS = {
    "tiny": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-quickgelu": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": VISION,
        "text_cfg": TEXT,
    },
    "tiny-biased": {
        "embed_dim": 16,
        "custom_text": True,
        "init_logit_bias": -10.0,
        "vision_cfg": VISION,
        "text_cfg": TEXT,
    },
    "coca_tiny": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {
            **VISION,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    },
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(name: str):
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    for values in model.parameters():
        if values.ndim > 1:
            torch.nn.init.normal_(values, std=0.2)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(make("tiny")[0].state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def own_logits(model, preprocess, tokenizer, rows) -> np.ndarray:
    logits = []
    for row in rows:
        image = preprocess(row["image"].convert("RGB"))[None]
        texts = tokenizer([row[name] for name in CAPTION_COLUMNS])
        with torch.no_grad():
            images = torch.nn.functional.normalize(model.encode_image(image), dim=-1)
            captions = torch.nn.functional.normalize(model.encode_text(texts), dim=-1)
            of_row = model.logit_scale.exp() * images @ captions.T
        bias = getattr(model, "logit_bias", None)
        logits.append((of_row if bias is None else of_row + bias).detach().numpy()[0])
    return np.array(logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loaded_model_is_scored_as_by_its_own_towers(name, triples):
    parts = make(name)
    expected = own_logits(*parts, triples)
    assert np.ptp(expected, axis=1).min() > 1e-4
    logits = score(parts, triples)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    order = np.random.default_rng(0).permutation(len(triples))
    shuffled = score(parts, triples.select(order), batch_size=3, num_workers=2, cache=False)
    np.testing.assert_allclose(shuffled, logits[order], atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:.*does not tell its activation")
def test_a_checkpoint_and_a_folder_are_loaded_by_name(checkpoint, triples, tmp_path):
    expected = score(make("tiny"), triples, cache=False)
    logits = score(f"open_clip:tiny/{checkpoint}", triples)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    folder = tmp_path / "folder"
    folder.mkdir()
    checkpoint.rename(folder / "open_clip_pytorch_model.bin")
    config = {"model_cfg": CONFIGS["tiny"], "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    of_folder = score(f"local-dir:{folder}", triples)
    np.testing.assert_allclose(of_folder, expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:.*does not tell its activation")
def test_an_adapter_is_put_on(checkpoint, triples, tmp_path):
    name = f"open_clip:tiny/{checkpoint}"
    parts = make("tiny")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["c_fc", "attn"], init_lora_weights=False)
    adapted = peft.get_peft_model(parts[0], config).eval()
    adapted.save_pretrained(tmp_path / "my.lora")
    expected = own_logits(adapted.get_base_model(), *parts[1:], triples)
    result = evaluate(name, triples, adapter=tmp_path / "my.lora")
    np.testing.assert_allclose(result.logits, expected, atol=1e-4, rtol=0)
    assert "|adapter:my_lora|" in result.signature_line
    assert np.abs(expected - score(name, triples)).max() > 0.01
    path = tmp_path / "my.lora" / "adapter_model.safetensors"
    weights = load_file(path)
    del weights[sorted(weights)[0]]
    save_file(weights, path)
    with pytest.raises(ValueError, match="1 weights that are missing or have no place"):
        score(name, triples, adapter=tmp_path / "my.lora")


def test_a_second_run_encodes_nothing(triples, monkeypatch):
    parts = make("tiny")
    first = score(parts, triples)
    monkeypatch.setattr(open_clip.model.CLIP, "encode_image", None)
    np.testing.assert_array_equal(score(make("tiny"), triples), first)


CHANGES = {
    "weights": lambda model, preprocess, tokenizer: model.logit_scale.data.add_(1),
    "activation": lambda model, preprocess, tokenizer: setattr(
        model.visual.transformer.resblocks[0].mlp, "gelu", open_clip.transformer.QuickGELU()
    ),
    "image size": lambda model, preprocess, tokenizer: setattr(
        preprocess.transforms[0], "size", 40
    ),
    "normalisation": lambda model, preprocess, tokenizer: setattr(
        preprocess.transforms[-1], "mean", (0.1, 0.2, 0.3)
    ),
    "tokenizer": lambda model, preprocess, tokenizer: setattr(
        tokenizer, "clean_fn", open_clip.tokenizer.get_clean_fn("canonicalize")
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_an_embedding_changes_the_key(change, triples):
    parts = make("tiny")
    before = load_model(parts).identity
    assert before.problem == ""
    score(parts, triples.select(range(4)), cache=False)
    assert load_model(parts).identity.cache_key == before.cache_key
    CHANGES[change](*parts)
    assert load_model(parts).identity.cache_key != before.cache_key


def test_captions_are_not_cut_off(triples):
    rows = triples.select(range(4)).map(lambda row: {"hard_negative": "a red cube " * 20})
    with pytest.raises(ValueError, match=r"at most 40 tokens, got 1 that are longer, first 'a red"):
        score(make("tiny"), rows)
    fits = triples.select(range(4)).map(lambda row: {"hard_negative": "red " * 38})
    assert score(make("tiny"), fits).shape == (4, 3)


def test_random_weights_and_unknown_names_are_refused(triples):
    with pytest.raises(ValueError, match=r"to name a checkpoint behind the architecture"):
        score("open_clip:ViT-B-32", triples)
    with pytest.raises(ValueError, match="to be a model that open_clip can load"):
        score("open_clip:ViT-B-32/no_such_tag", triples)
    with pytest.raises(ValueError, match="to be a model that open_clip can load"):
        score("open_clip:no-such-architecture/openai", triples)
    with pytest.raises(ValueError, match="Expected revision to be left out for models of"):
        score("open_clip:ViT-B-32/openai", triples, revision="main")


def test_another_activation_than_the_checkpoints_is_noticed(triples, checkpoint, monkeypatch):
    with pytest.warns(UserWarning, match="does not tell its activation. It is scored as tiny; if"):
        load_model(f"open_clip:tiny/{checkpoint}")
    tag = {"url": "", "quick_gelu": True, "mean": None, "std": None}
    module = __import__("importlib").import_module("open_clip.factory")
    monkeypatch.setattr(module, "get_pretrained_cfg", lambda name, tag_: tag)
    monkeypatch.setattr(module, "download_pretrained", lambda *args, **options: str(checkpoint))
    with pytest.raises(ValueError, match="Expected the activation of tiny to be the one"):
        load_model("open_clip:tiny/a_tag")


@pytest.mark.filterwarnings("ignore:.*does not tell its activation")
def test_half_precision_is_that_of_the_towers_alone(checkpoint, triples):
    half = score(f"open_clip:tiny/{checkpoint}", triples, dtype="bfloat16")
    full = score(f"open_clip:tiny/{checkpoint}", triples)
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, atol=0.5)
    assert (half[:, :1] != half[:, 1:]).all()
