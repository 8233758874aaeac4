"""Our figures inside other harnesses: each through its own runner, with a tiny model."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from hard_positives import Columns, EvaluationResult, evaluate
from hard_positives.suite.sources import load_splits

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def rows():
    return {split: rows.select(range(60)) for split, rows in load_splits("shapes").items()}


def clip_embedder(tiny_clip):
    package = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    return package.SentenceTransformer(modules=[modules.Transformer(str(tiny_clip))], device="cpu")


def test_a_trainer_of_sentence_transformers_prints_our_figures(tiny_clip, rows, tmp_path):
    package = pytest.importorskip("sentence_transformers")
    from datasets import DatasetDict

    from hard_positives.sentence_transformers import CompositionEvaluator

    model, data = clip_embedder(tiny_clip), DatasetDict(rows)
    evaluator = CompositionEvaluator(data, name="shapes")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    arguments = package.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=4,
        eval_strategy="steps",
        eval_steps=2,
        report_to=[],
        use_cpu=True,
    )
    training = rows["swap"].select_columns(["image", "caption"]).select(range(8))
    trainer = package.SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=training,
        loss=losses.MultipleNegativesRankingLoss(model),
        evaluator=evaluator,
    )
    trainer.train()
    [logged] = [one for one in trainer.state.log_history if "eval_shapes_brittleness" in one]
    after = evaluate(model, data, cache=False).metrics["as_published"]
    for name in ("original_accuracy", "augmented_accuracy", "brittleness", "drop", "tie_rate"):
        macros = [figures["macro"][name] for figures in after.values()]
        assert logged[f"eval_shapes_{name}"] == pytest.approx(np.mean(macros), abs=1e-12)
        swap = after["swap"]["macro"][name]
        assert logged[f"eval_shapes_swap_{name}"] == pytest.approx(swap, abs=1e-12)
    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Composition" in card and "shapes_augmented_accuracy" in card


def test_an_evaluator_saves_the_whole_result(tiny_clip, rows, tmp_path):
    pytest.importorskip("sentence_transformers")
    from hard_positives.sentence_transformers import CompositionEvaluator

    columns = Columns(positives=["caption"], negatives=["hard_negative"])
    evaluator = CompositionEvaluator(rows["swap"], columns=columns, name="mine")
    assert evaluator.primary_metric == "mine_original_accuracy"
    metrics = evaluator(clip_embedder(tiny_clip), str(tmp_path))
    saved = EvaluationResult.load(tmp_path / "mine_epoch_end_steps_end")
    macro = saved.metrics["as_published"]["swap"]["macro"]
    assert metrics[evaluator.primary_metric] == macro["original_accuracy"]
    assert "mine_brittleness" not in metrics


@pytest.mark.slow  # .ci/run installs mteb for these
def test_mteb_prints_our_figures(tiny_clip, rows, tmp_path):
    mteb = pytest.importorskip("mteb")
    from datasets import DatasetDict
    from mteb.models import ModelMeta

    from hard_positives.mteb import composition_task

    clip = AutoModel.from_pretrained(tiny_clip).eval()
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")

    class Encoder:
        """mteb's protocol around the same CLIP."""

        mteb_model_meta = ModelMeta.create_empty(
            {"name": "mine/clip", "revision": "1", "modalities": ["text", "image"]}
        )

        def encode(self, inputs, **_):
            found = []
            for batch in inputs:
                with torch.no_grad():
                    if "image" in batch:
                        images = [image.convert("RGB") for image in batch["image"]]
                        pixels = processor.image_processor(images, return_tensors="pt")
                        found.append(clip.get_image_features(**pixels).pooler_output)
                    else:
                        text = processor.tokenizer(batch["text"], padding=True, return_tensors="pt")
                        found.append(clip.get_text_features(**text).pooler_output)
            return torch.cat(found).numpy()

        def similarity(self, one, other):
            return torch.as_tensor(one) @ torch.as_tensor(other).T

        similarity_pairwise = similarity

    data = DatasetDict(rows)
    task = composition_task(data, name="ShapesInSmall")
    cache = mteb.ResultCache(tmp_path / "cache")
    [done] = mteb.evaluate(Encoder(), tasks=[task], cache=cache).task_results
    ours = evaluate(tiny_clip, data, cache=False).metrics["as_published"]
    for split, [scores] in done.scores.items():
        for name in ("original_accuracy", "augmented_accuracy", "brittleness", "drop"):
            assert scores[name] == pytest.approx(ours[split][name], abs=1e-12)
            macro = ours[split]["macro"][name]
            assert scores[f"macro_{name}"] == pytest.approx(macro, abs=1e-12)
        assert scores["main_score"] == scores["macro_augmented_accuracy"]
    assert set(done.scores) == set(rows)


def test_what_mteb_cannot_hold_is_refused(rows):
    pytest.importorskip("mteb", reason="needs mteb, which .ci/run installs for it")
    from hard_positives.mteb import composition_task

    ragged = [["a"] * (1 + row % 2) for row in range(60)]
    columns = Columns(positives=["caption"], negatives=["false"])
    with pytest.raises(ValueError, match="as many true and false captions as the others, got 2"):
        composition_task(rows["swap"].add_column("false", ragged), columns=columns)
