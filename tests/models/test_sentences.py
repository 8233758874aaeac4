"""Models of sentence-transformers against their own encode and predict, pair by pair."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_generative import make
from test_loading import random_adapter
from transformers import AutoModel

from hard_positives import evaluate, score
from hard_positives.models.loading import load_model
from hard_positives.suite.columns import CAPTION_COLUMNS

package = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
reranking = pytest.importorskip("sentence_transformers.cross_encoder.modules")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    for part in make("llava"):
        part.save_pretrained(folder)
    return folder


def clip_embedder(tiny_clip, **options):
    return package.SentenceTransformer(
        modules=[modules.Transformer(str(tiny_clip))], device="cpu", **options
    )


def vlm_embedder(vlm_folder):
    first = modules.Transformer(
        str(vlm_folder), transformer_task="feature-extraction", max_seq_length=512
    )
    size = first.get_embedding_dimension()
    return package.SentenceTransformer(
        modules=[first, modules.Pooling(size, "lasttoken"), modules.Normalize()], device="cpu"
    )


def reranker(vlm_folder):
    first = modules.Transformer(str(vlm_folder), transformer_task="any-to-any", max_seq_length=512)
    yes, no = (first.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    return package.CrossEncoder(modules=[first, reranking.LogitScore(yes, no)], device="cpu")


def own_cosines(model, rows: Dataset) -> np.ndarray:
    """One input at a time through the model's own encode."""
    cosines = []
    for row in rows:
        image = torch.tensor(model.encode(row["image"].convert("RGB")))
        texts = [torch.tensor(model.encode(row[name])) for name in CAPTION_COLUMNS]
        cosines.append([float(torch.cosine_similarity(image, text, dim=0)) for text in texts])
    return np.array(cosines)


@pytest.mark.parametrize("backbone", ["clip", "vlm"])
def test_an_embedder_is_scored_as_it_encodes(backbone, tiny_clip, vlm_folder, triples):
    model = clip_embedder(tiny_clip) if backbone == "clip" else vlm_embedder(vlm_folder)
    rows = triples.select(range(0, 40, 4))
    expected = own_cosines(model, rows)
    assert np.ptp(expected, axis=1).min() > 1e-6
    np.testing.assert_allclose(score(model, rows), expected, atol=1e-5, rtol=0)


def test_a_reranker_is_scored_as_it_predicts_without_a_sigmoid(vlm_folder, triples):
    model = reranker(vlm_folder)
    rows = triples.select(range(0, 40, 4))
    expected = [
        [
            model.predict(
                (row[name], row["image"].convert("RGB")), activation_fn=torch.nn.Identity()
            )
            for name in CAPTION_COLUMNS
        ]
        for row in rows
    ]
    logits = score(model, rows)
    assert np.abs(logits).max() > 1
    np.testing.assert_allclose(logits, np.array(expected), atol=1e-4, rtol=0)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = score(model, rows.select(order), batch_size=3, cache=False)
    np.testing.assert_allclose(shuffled, logits[order], atol=1e-4, rtol=0)


def test_a_folder_is_loaded_as_what_it_holds(tiny_clip, vlm_folder, triples, tmp_path):
    rows = triples.select(range(8))
    for name, model in {"e": clip_embedder(tiny_clip), "r": reranker(vlm_folder)}.items():
        model.save_pretrained(str(tmp_path / name))
        loaded = load_model(tmp_path / name)
        assert type(loaded).__name__ == {"e": "SentenceEmbedder", "r": "SentenceReranker"}[name]
        expected = score(model, rows, cache=False)
        np.testing.assert_allclose(score(tmp_path / name, rows), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["embedder", "reranker"])
def test_an_adapter_is_put_on(kind, tiny_clip, vlm_folder, triples, tmp_path):
    model = clip_embedder(tiny_clip) if kind == "embedder" else reranker(vlm_folder)
    model.save_pretrained(str(tmp_path / "model"))
    adapted = random_adapter(model[0].model)
    adapted.save_pretrained(tmp_path / "lora")
    expected = score(type(model)(modules=list(model), device="cpu"), triples, cache=False)
    result = evaluate(tmp_path / "model", triples, adapter=tmp_path / "lora")
    np.testing.assert_allclose(result.logits, expected, atol=1e-4, rtol=0)
    assert "|adapter:lora|" in result.signature_line
    assert np.abs(expected - score(tmp_path / "model", triples)).max() > 1e-3
    random_adapter(AutoModel.from_pretrained(tiny_clip), layers_to_transform=[0]).save_pretrained(
        tmp_path / "other"
    )
    if kind == "reranker":
        with pytest.raises(ValueError, match=r"Expected the adapter .*other to fit Llava"):
            score(tmp_path / "model", triples, adapter=tmp_path / "other")


@pytest.mark.slow
def test_the_command_scores_an_embedder(tiny_clip, tmp_path):
    clip_embedder(tiny_clip).save_pretrained(str(tmp_path / "model"))
    command = [
        sys.executable,
        "-m",
        "hard_positives",
        "evaluate",
        str(tmp_path / "model"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    signature = json.loads(done.stdout)["signature"]
    assert signature["model"]["architecture"] == "SentenceTransformer"


def test_a_second_run_computes_nothing(tiny_clip, vlm_folder, triples, monkeypatch):
    made = [clip_embedder(tiny_clip), reranker(vlm_folder)]
    first = [score(model, triples) for model in made]
    monkeypatch.setattr(package.SentenceTransformer, "encode", None)
    monkeypatch.setattr(package.CrossEncoder, "predict", None)
    for model, logits in zip(made, first, strict=True):
        np.testing.assert_array_equal(score(model, triples), logits)


CHANGES = {
    "weights": lambda model: model[0].model.logit_scale.data.add_(1),
    "prompts": lambda model: model.prompts.update(query="find: "),
    "default prompt": lambda model: setattr(model, "default_prompt_name", "query"),
    "length": lambda model: setattr(model[0], "max_seq_length", 40),
    "dimension": lambda model: setattr(model, "truncate_dim", 4),
    "image processor": lambda model: setattr(
        model[0].processor.image_processor, "image_mean", [0.1, 0.2, 0.3]
    ),
    "tokenizer": lambda model: model[0].tokenizer.add_tokens(["zebra"]),
    "module": lambda model: model.append(modules.Normalize()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_an_embedding_changes_the_key(change, tiny_clip, triples):
    model = clip_embedder(tiny_clip)
    before = load_model(model).identity
    assert before.problem == ""
    score(model, triples.select(range(4)), cache=False)  # leaves notes in the model
    assert load_model(model).identity.cache_key == before.cache_key
    CHANGES[change](model)
    assert load_model(model).identity.cache_key != before.cache_key


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_hook_is_noticed(tiny_clip):
    model = clip_embedder(tiny_clip)
    model[0].register_forward_hook(lambda *parts: None)
    assert "has a forward hook" in load_model(model).identity.problem


def test_captions_are_not_cut_off(tiny_clip, vlm_folder, triples):
    rows = triples.select(range(4)).map(lambda row: {"hard_negative": "a red cube " * 60})
    model = clip_embedder(tiny_clip)
    with pytest.raises(ValueError, match="Expected captions of at most 77 tokens"):
        score(model, rows)
    model = reranker(vlm_folder)
    model.max_seq_length = 80
    with pytest.raises(ValueError, match="Expected captions of at most 80 tokens"):
        score(model, rows)


def test_a_caption_of_few_letters_and_many_tokens_is_not_cut_off(vlm_folder, triples):
    model = reranker(vlm_folder)
    plain = triples.select(range(1)).map(lambda row: dict.fromkeys(CAPTION_COLUMNS[:2], "x" * 60))
    rows = plain.map(lambda row: {"hard_negative": "\u6c34" * 40})  # three bytes, a token each
    inputs = model.preprocess([("x" * 60, rows[0]["image"].convert("RGB"))])
    model.max_seq_length = inputs["input_ids"].shape[1] + 5
    with pytest.raises(ValueError, match="Expected captions of at most"):
        score(model, rows)


def test_what_takes_no_images_or_compares_otherwise_is_refused(tiny_clip, triples):
    model = clip_embedder(tiny_clip, similarity_fn_name="euclidean")
    with pytest.raises(TypeError, match="to compare by cosine, got 'euclidean'"):
        score(model, triples)
    model = clip_embedder(tiny_clip)
    del model[0].modality_config["image"]
    with pytest.raises(TypeError, match="to take images and text, got one that takes text"):
        score(model, triples)


def test_a_reranker_in_half_precision_ends_in_float32(vlm_folder, triples, tmp_path):
    reranker(vlm_folder).save_pretrained(str(tmp_path / "r"))
    half = score(tmp_path / "r", triples, dtype="bfloat16")
    full = score(tmp_path / "r", triples)
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, atol=0.3)
    assert (half != torch.tensor(half).bfloat16().float().numpy()).mean() > 0.5
