"""What a logit depends on: no stale embedding, whatever changes behind equal weights."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import ImageFile
from transformers import AutoProcessor, CLIPModel

from attacks.identity import CHANGES, stale_cache
from hard_positives import score
from hard_positives.models import loading
from hard_positives.models.identity import identify
from hard_positives.scoring.cache import list_cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_clip) -> CLIPModel:
    return CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)


@pytest.fixture
def processor(tiny_clip):
    return AutoProcessor.from_pretrained(tiny_clip, backend="pil")


def key(model, processor) -> str:
    identity = identify(model, processor, "transformers")
    assert identity.problem == ""
    return identity.cache_key


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_no_change_is_served_from_the_cache_of_before(name):
    if "LoRA" in name:
        pytest.importorskip("peft")
    outcome, moved = stale_cache(name)
    assert outcome in ("noticed", "not cached")
    assert moved > 1e-7  # else the change is none


@pytest.mark.slow
def test_the_same_model_has_the_same_identity_in_another_process(tiny_clip, model, processor):
    program = f"""
from hard_positives.models.loading import load_model
print(load_model({str(tiny_clip)!r}, device="cpu").identity.cache_key)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split()[-1] == key(model, processor)


def test_what_changes_no_logit_changes_no_identity(model, processor):
    expected = key(model, processor)
    model.train()
    model.name_or_path = model.config._name_or_path = "elsewhere/other-name"
    processor.tokenizer(["one", "and two"], padding=True, truncation=True, max_length=3)
    model(**processor(text=["a cat"], images=torch.zeros(3, 40, 40), return_tensors="pt"))
    assert key(model, processor) == expected


def test_switches_of_torch_and_pillow_change_the_identity(model, processor, monkeypatch):
    keys = [key(model, processor)]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        keys.append(key(model, processor))
    finally:
        torch.set_float32_matmul_precision(before)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    keys.append(key(model, processor))
    monkeypatch.undo()
    assert key(model, processor) == keys[0]
    assert len(set(keys)) == 3


def test_a_method_replaced_on_the_class_is_noticed(model, processor, monkeypatch):
    class Other(CLIPModel):
        pass

    Other.__module__ = CLIPModel.__module__
    Other.get_text_features = lambda self, **inputs: CLIPModel.get_text_features(self, **inputs)
    model.__class__ = Other
    problem = identify(model, processor, "transformers").problem
    assert "get_text_features from test_identity" in problem


def test_a_hook_for_all_modules_is_noticed(model, processor):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "hook for all" in identify(model, processor, "transformers").problem
    finally:
        handle.remove()
    assert identify(model, processor, "transformers").problem == ""


def test_weights_that_no_hash_can_hold_are_scored_and_not_kept(
    model, processor, triples, own_cache
):
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    with pytest.warns(UserWarning, match="are not kept"):
        logits = score(quantised, triples, processor=processor, device="cpu")
    assert np.isfinite(logits).all()
    assert (
        identify(quantised, processor, "transformers").description["model"]["weights_sha256"]
        is None
    )
    assert not own_cache.exists()


@pytest.mark.slow
def test_an_edited_configuration_is_noticed_on_the_command_line(tiny_clip, tmp_path, triples):
    folder, dataset = tmp_path / "model", tmp_path / "rows"
    shutil.copytree(tiny_clip, folder)
    (dataset / "data").mkdir(parents=True)
    triples.to_parquet(dataset / "data" / "replace-00000-of-00001.parquet")

    def evaluated(*options: str) -> dict:
        command = [sys.executable, "-m", "hard_positives", "evaluate", str(folder), "--quiet"]
        command += ["--dataset", str(dataset), "--output", str(tmp_path / "result"), *options]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        return json.loads((tmp_path / "result" / "results.json").read_text())

    before = evaluated()
    config = json.loads((folder / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        assert config[tower]["hidden_act"] == "quick_gelu"
        config[tower] |= {"hidden_act": "relu", "layer_norm_eps": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    after, truth = evaluated(), evaluated("--no-cache")
    assert after["metrics"] == truth["metrics"]
    assert after["scores_sha256"] == truth["scores_sha256"]
    assert before["scores_sha256"] != after["scores_sha256"]
    names = ("weights_sha256", "structure_sha256")
    changed = [before["signature"]["model"][n] != after["signature"]["model"][n] for n in names]
    assert changed == [False, True]
    assert len(list_cache()) == 2


def state_of(model, processor) -> list:
    tensors = {name: (v.dtype, v.device, v.clone()) for name, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    tokenizer = processor.tokenizer
    return [
        tensors,
        modes,
        tokenizer.padding_side,
        tokenizer.truncation_side,
        copy.copy(vars(model)),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_model_is_left_as_it_was(model, processor, triples, dtype):
    model.train()
    model.vision_model.eval()  # modes can differ within a model
    processor.tokenizer.padding_side = "left"
    before = state_of(model, processor)
    expected = score(copy.deepcopy(model), triples, processor=processor, device="cpu", cache=False)
    score(model, triples, processor=processor, device="cpu", dtype=dtype, cache=False)
    after = state_of(model, processor)
    for name, (kind, device, values) in before[0].items():
        assert after[0][name][:2] == (kind, device)
        assert torch.equal(after[0][name][2], values)
    assert after[1:] == before[1:]
    again = score(model, triples, processor=processor, device="cpu", cache=False)
    np.testing.assert_array_equal(again, expected)


def test_a_model_is_left_as_it_was_by_an_error_too(model, processor, triples, monkeypatch):
    model.train()
    monkeypatch.setattr(CLIPModel, "get_image_features", lambda self, **inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score(model, triples, processor=processor, device="cpu", cache=False)
    assert all(module.training for module in model.modules())


def test_autocast_around_a_run_changes_nothing(model, processor, triples):
    expected = score(model, triples, processor=processor, device="cpu", cache=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score(model, triples, processor=processor, device="cpu", cache=False)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("cut", [0.5, 0.0])
def test_damaged_files_of_a_model_are_one_sentence(tiny_clip, tmp_path, triples, file, cut):
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(len(content) * cut)])
    with pytest.raises((ValueError, OSError)) as told:
        score(folder, triples)
    assert str(folder) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_missing_file_of_a_model_is_one_sentence(tiny_clip, tmp_path, triples, file):
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    (folder / file).unlink()
    message = "Expected the tokenizer to" if file == "tokenizer.json" else str(folder)
    with pytest.raises((ValueError, OSError)) as told:
        score(folder, triples)
    assert message in str(told.value) and "\n" not in str(told.value)


def test_what_transformers_tells_in_several_lines_is_one_sentence(tmp_path, triples):
    folder = tmp_path / "model"
    shutil.copytree(Path(loading.__file__).parents[1] / "shapes_clip", folder)
    (folder / "tokenizer.json").unlink()
    message = r"model to hold a whole model .* that are missing or cannot be read \(ValueError: \S"
    with pytest.raises(ValueError, match=message) as told:
        score(folder, triples)
    assert "\n" in str(told.value.__cause__) and "\n" not in str(told.value)


def test_a_tokenizer_without_words_is_found_out_where_captions_differ_in_length(
    tiny_clip, tmp_path, triples
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    (folder / "tokenizer.json").unlink()
    row = {"caption": "a cat", "hard_positive": "a small cat", "hard_negative": "a very small cat"}
    triple = triples.select([0]).map(lambda _: row)
    with pytest.raises(ValueError, match="to know words of captions, got none in 3 of 3, such as"):
        score(folder, triple)


def test_a_tokenizer_without_its_unknown_token_is_one_sentence(tmp_path, triples):
    folder = tmp_path / "model"
    shutil.copytree(Path(loading.__file__).parents[1] / "shapes_clip", folder)
    for content in ("{}", '{"a": null}'):
        (folder / "tokenizer_config.json").write_text(content)
        with pytest.raises(ValueError, match="Expected the tokenizer to read captions, got: Unk"):
            score(folder, triples)
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match="model to hold a whole model with its tokenizer"):
        score(folder, triples)


def test_weights_are_loaded_without_the_bars_of_transformers(tiny_clip, capsys):
    loading.load_model(tiny_clip)
    assert capsys.readouterr().err == ""
    CLIPModel.from_pretrained(tiny_clip)
    assert "Loading weights" in capsys.readouterr().err
