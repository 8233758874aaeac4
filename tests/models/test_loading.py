"""What a model of transformers is loaded with: adapters, several devices, quantised weights."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from safetensors.torch import load_file, save_file
from test_generative import make
from transformers import AutoModel, AutoProcessor, TorchAoConfig
from typer.testing import CliRunner

from hard_positives import evaluate, score
from hard_positives.cli import app
from hard_positives.models import kinds, loading
from hard_positives.models.loading import load_model

peft = pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_adapter(model: torch.nn.Module, **config) -> peft.PeftModel:
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **config)
    )
    torch.manual_seed(0)
    for name, values in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(values, std=0.3)
    return adapted


@pytest.fixture
def adapter(tiny_clip, tmp_path):
    folder = tmp_path / "my.lora"
    random_adapter(AutoModel.from_pretrained(tiny_clip)).save_pretrained(folder)
    return folder


def test_an_adapter_is_put_on_the_model(tiny_clip, triples, adapter):
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    whole = random_adapter(AutoModel.from_pretrained(tiny_clip)).eval()
    expected = []
    for row in triples:
        texts = [row["caption"], row["hard_positive"], row["hard_negative"]]
        inputs = processor(
            text=texts, images=row["image"].convert("RGB"), padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            expected.append(whole(**inputs).logits_per_image[0].numpy())
    logits = score(tiny_clip, triples, adapter=adapter)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert np.abs(logits - score(tiny_clip, triples)).max() > 0.01


def test_a_result_tells_the_adapter_and_is_kept_apart(tiny_clip, triples, adapter, own_cache):
    plain = evaluate(tiny_clip, triples)
    adapted = evaluate(tiny_clip, triples, adapter=adapter)
    assert adapted.signature["model"]["adapters"] == ["my_lora"]
    assert "|adapter:my_lora|" in adapted.signature_line
    assert "adapter" not in plain.signature_line
    assert len(list(own_cache.iterdir())) == 2


def test_an_adapter_of_another_model_is_refused(tiny_clip, triples, adapter, tmp_path):
    with pytest.raises(ValueError, match="to fit CLIPModel, got"):
        score("shapes_clip", triples, adapter=adapter)
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    del weights[sorted(weights)[0]]
    save_file(weights, path)
    with pytest.raises(ValueError, match="1 weights that are missing or have no place"):
        score(tiny_clip, triples, adapter=adapter)
    shutil.rmtree(adapter)
    with pytest.raises((OSError, ValueError), match=r"my\.lora"):
        score(tiny_clip, triples, adapter=adapter)


def test_a_loaded_model_has_its_adapter_already(tiny_clip, triples, adapter):
    model = AutoModel.from_pretrained(tiny_clip)
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    with pytest.raises(ValueError, match="Expected adapter to be left out for a loaded model"):
        score(model, triples, processor=processor, adapter=adapter)


def test_options_of_from_pretrained_are_heeded(tiny_clip, triples):
    eager = {"attn_implementation": "eager"}
    scorer = load_model(tiny_clip, model_kwargs=eager)
    assert scorer.model.config._attn_implementation == "eager"
    logits = score(tiny_clip, triples, model_kwargs=eager)
    np.testing.assert_allclose(logits, score(tiny_clip, triples), atol=1e-4, rtol=0)


@pytest.mark.slow  # torchao, which .ci/run installs for these, prints lines wherever it is
def test_a_quantised_model_is_scored_but_not_kept(triples, own_cache, tmp_path):
    quantisation = pytest.importorskip("torchao.quantization")
    model, processor = make("llava")
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    config = TorchAoConfig(quantisation.Int8WeightOnlyConfig(version=2))
    options = {"quantization_config": config}
    loaded = load_model(tmp_path / "vlm", model_kwargs=options).model
    assert any("Int8" in type(values).__name__ for values in loaded.parameters())
    rows = triples.select(range(12))
    whole = score(model, rows, processor=processor, cache=False)
    with pytest.warns(UserWarning, match="are not kept"):
        logits = score(tmp_path / "vlm", rows, model_kwargs=options)
    np.testing.assert_allclose(logits, whole, atol=0.05 * np.abs(whole).max(), rtol=0)
    assert np.abs(logits - whole).max() > 1e-4
    assert not own_cache.exists() or not list(own_cache.rglob("*.safetensors"))


def test_a_model_over_several_devices_is_scored_and_kept(tiny_clip, triples, own_cache):
    expected = score(tiny_clip, triples, cache=False)
    model = AutoModel.from_pretrained(tiny_clip).eval()
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    for part in (model.text_model, model.vision_model, model.vision_model):  # one of them twice
        hook = AlignDevicesHook(execution_device="cpu", io_same_device=True)
        add_hook_to_module(part, hook, append=True)
    logits = score(model, triples, processor=processor)
    np.testing.assert_array_equal(logits, expected)
    assert len(list(own_cache.iterdir())) == 1


def test_a_hook_that_does_more_than_move_is_not_trusted(tiny_clip, triples, own_cache):
    model = AutoModel.from_pretrained(tiny_clip).eval()
    add_hook_to_module(model.text_model, ModelHook())
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    with pytest.warns(UserWarning, match="are not kept: .* has a forward of its own"):
        score(model, triples, processor=processor)


def test_processes_hold_a_copy_each(tiny_clip, triples, monkeypatch):
    monkeypatch.setattr(loading, "processes", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="Expected device_map to be left out under 2 processes"):
        load_model(tiny_clip, model_kwargs={"device_map": "auto"})


def test_the_command_takes_json_and_refuses_what_is_none(tiny_clip, triples, tmp_path, adapter):
    triples.to_parquet(tmp_path / "rows" / "replace-00000-of-00001.parquet")
    parts = ["evaluate", str(tiny_clip), "--dataset", str(tmp_path / "rows"), "--json"]
    parts += ["--adapter", str(adapter), "--model-kwargs"]
    done = CliRunner().invoke(app, [*parts, '{"attn_implementation": "eager"}'])
    assert done.exit_code == 0, done.output
    model = json.loads(done.stdout)["signature"]["model"]
    assert (model["attention"], model["adapters"]) == ("eager", ["my_lora"])
    for wrong in ("{", "[1]"):
        assert CliRunner().invoke(app, [*parts, wrong]).exit_code == 2


def test_the_kinds_of_models_are_listed_with_what_they_need(monkeypatch):
    listed = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert [kind["name"] for kind in listed] == [kind.name for kind in kinds.KINDS]
    absent = replace(kinds.DUAL_ENCODER, extra=("an-extra", "no_such_package"))
    monkeypatch.setattr(kinds, "KINDS", (absent, kinds.PYTHON))
    printed = CliRunner().invoke(app, ["models"], env={"COLUMNS": "80"}).stdout
    assert absent.example in printed
    assert "pip install 'hard-positives[an-extra]'" in printed
    with pytest.raises(ImportError, match="Expected the package no_such_package to be installed"):
        absent.check({})
