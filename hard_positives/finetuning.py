"""Training rows and a CLIP in, a CLIP tuned with hard positives and hard negatives out.

    rows -> batches -> unit vectors -> contrastive_loss -> a CLIPModel folder with its card

The loss is a function of vectors and knows of no model. Its switches and the schedule stand in a
recipe (``recipes``), what a batch is made of in ``training_rows``; `transformers.Trainer` does the
rest. Hard positives and hard negatives are made by ``generation``, not here.
"""

import hashlib
import json
import math
import os
import re
import shutil
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCardData
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoProcessor,
    CLIPConfig,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from hard_positive_metric import compute_metrics
from hard_positives.encoders import DualEncoder, Options
from hard_positives.machine import is_main_process
from hard_positives.recipes import RECIPES, Recipe, check_choice
from hard_positives.rows import CAPTION_COLUMNS, RowIndex, check_columns, index_rows
from hard_positives.scoring import EMBEDDED_MODEL, load_model, score_rows
from hard_positives.sources import load_splits
from hard_positives.training_rows import (
    Collator,
    TrainingRows,
    check_lengths,
    choose_texts,
    load_training_rows,
)
from hard_positives_dataset.folders import write_whole

FIGURES = ("original_accuracy", "augmented_accuracy", "brittleness")
_HIGHEST_SCALE = math.log(100)  # As CLIP was trained.
_RECORD, _CARD, _CHECKPOINTS, _COMPLETE = "finetuning.json", "README.md", "checkpoints", "complete"


# --- the loss -------------------------------------------------------------------------------------


def contrastive_loss(
    image_embeds: torch.Tensor,
    caption_embeds: torch.Tensor,
    hard_positive_embeds: torch.Tensor,
    hard_negative_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    *,
    has_hard_positive: torch.Tensor,
    has_hard_negative: torch.Tensor,
    hard_negatives: str = "batch",
    alignment: float = 0.0,
) -> torch.Tensor:
    r"""Compute CLIP's loss with hard positives and hard negatives.

    With the image v_i, its positives P_i (the caption t_i and, where there is one, the hard
    positive p_i), the texts N_i that are not its own (t_j and p_j of all other rows; hard negatives
    of the batch, or n_i alone) and the scale s:

        image_i = mean_{x in P_i} -log(e^(s v_i x) / (e^(s v_i x) + sum_{y in N_i} e^(s v_i y)))
        text_i  = mean_{x in P_i} -log(e^(s v_i x) / sum_j e^(s v_j x))
        align_i = -log(e^(s p_i t_i) / sum_j e^(s p_i t_j)), over the rows that have a p_i
        loss    = mean_i (image_i + text_i) / 2 + alignment * mean_i align_i

    So a caption and its hard positive never compete, and each row counts the same. Without hard
    positives and with ``"batch"`` this is NegCLIP's loss; without hard negatives as well, CLIP's.
    It misleads where a text is true of another image of the batch, which counts as false: rows of
    one image should be far apart, which shuffling sees to.

    Args:
        image_embeds: (B, D) unit vectors of B images, B at least 2.
        caption_embeds: (B, D) unit vectors of their captions.
        hard_positive_embeds: (B, D) unit vectors; rows without one hold anything finite.
        hard_negative_embeds: (B, D) likewise.
        logit_scale: What cosines are multiplied with, above 0.
        has_hard_positive: (B,) booleans.
        has_hard_negative: (B,) booleans.
        hard_negatives: ``"batch"`` or ``"own"``.
        alignment: Weight of the last term, at least 0.

    Returns:
        The loss, a scalar at least 0; lower is better. CLIP's is log B where all logits are equal.

    Examples:
        >>> embeds, rows = torch.eye(2), torch.tensor([False, False])
        >>> none = dict(has_hard_positive=rows, has_hard_negative=rows)
        >>> round(contrastive_loss(embeds, embeds, embeds, embeds, 1.0, **none).item(), 4)
        0.3133
        >>> has = dict(has_hard_positive=rows, has_hard_negative=~rows)
        >>> round(contrastive_loss(embeds, embeds, embeds, embeds.flip(0), 1.0, **has).item(), 4)
        0.6598

    Source:
        Hard negatives: Yuksekgonul et al., ICLR 2023, and `src/open_clip/loss.py` of
        github.com/vinid/neg_clip, commit e680f8e. Alignment: the sentence-level alignment of Kwon
        et al., NeurIPS 2025 (`modeling_clipwithdecoder.py` of github.com/JiH00nKw0n/READ-CLIP,
        commit b2f096c). The mean over positives outside of the logarithm: Khosla et al., NeurIPS
        2020, equation 2, but with the other positive left out of the denominator.
    """
    size = len(image_embeds)
    own = torch.eye(size, dtype=torch.bool, device=image_embeds.device)
    texts = torch.cat([caption_embeds, hard_positive_embeds, hard_negative_embeds])
    logits = logit_scale * image_embeds @ texts.T  # (B, 3 B)
    told_from = own if hard_negatives == "own" else torch.ones_like(own)
    false = torch.cat([~own, ~own & has_hard_positive, told_from & has_hard_negative], dim=1)
    against = logits.masked_fill(~false, -math.inf).logsumexp(dim=1)

    of_captions, of_hard_positives, _ = logits.split(size, dim=1)
    image_losses, text_losses = [], []
    for of_positives in (of_captions, of_hard_positives):
        right = of_positives.diagonal()
        image_losses.append(torch.logaddexp(right, against) - right)
        text_losses.append(of_positives.logsumexp(dim=0) - right)
    # Rows without a hard positive count their caption alone.
    weights = torch.stack([1 / (1.0 + has_hard_positive), has_hard_positive / 2.0])
    losses = torch.stack(image_losses) + torch.stack(text_losses)
    loss = (weights.to(losses.dtype) * losses).sum() / size / 2
    if alignment and has_hard_positive.any():
        similar = logit_scale * hard_positive_embeds @ caption_embeds.T
        every = cross_entropy(similar, torch.arange(size, device=own.device), reduction="none")
        loss = loss + alignment * every[has_hard_positive].mean()
    return loss


def _gathered(values: torch.Tensor) -> torch.Tensor:
    """Join the batches of all processes, with gradient to each of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    return torch.cat(all_gather(values))


# --- the training ---------------------------------------------------------------------------------


class ContrastiveTrainer(Trainer):
    """`transformers.Trainer` with :func:`contrastive_loss` over the batches of all processes.

    Args:
        recipe: Whose switches the loss takes.
        processor: The model's.
        **options: As for `transformers.Trainer`; ``eval_dataset`` gives for each split an index of
            its rows and the rows' categories.
    """

    loss_is_scaled_for_ga = False  # the mean of a batch

    def __init__(self, *, recipe: Recipe, processor: ProcessorMixin, **options):
        # Not as processing_class, to whose tokens Trainer would change the model's configuration.
        super().__init__(data_collator=Collator(processor), **options)
        self.recipe = recipe
        self.processor = processor

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Encode a batch in one pass and compare it with those of all processes."""
        masks = torch.stack([inputs["has_hard_positive"], inputs["has_hard_negative"]], dim=1)
        outputs = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"])
        embeds = _embeds_by_row(outputs.image_embeds, outputs.text_embeds, masks)
        scale = self.accelerator.unwrap_model(model).logit_scale.exp()
        # In half precision near-identical captions tie.
        with torch.autocast(embeds.device.type, enabled=False):
            images, captions, positives, negatives = _gathered(embeds).unbind(dim=1)
            has_positive, has_negative = _gathered(masks.to(torch.uint8)).bool().unbind(dim=1)
            loss = contrastive_loss(
                images,
                captions,
                positives,
                negatives,
                scale,
                has_hard_positive=has_positive,
                has_hard_negative=has_negative,
                hard_negatives=self.recipe.hard_negatives,
                alignment=self.recipe.alignment,
            )
        return (loss, outputs) if return_outputs else loss

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Name the matrices: open_clip lets gains, biases and the scale be."""
        return [name for name, values in model.named_parameters() if values.ndim > 1]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score the model as it is on the held-out splits: fractions by split and figure."""
        model = self.accelerator.unwrap_model(self.model)
        encoder = DualEncoder(model.eval(), self.processor)
        metrics = {}
        for split, (index, categories) in self.eval_dataset.items():
            logits = score_rows(encoder, index, Options(cache=False, progress=False))
            figures = compute_metrics(logits, groups=categories)["macro"]
            metrics |= {f"{metric_key_prefix}_{split}_{name}": figures[name] for name in FIGURES}
        model.train()
        self.log({**metrics})  # it adds to what it gets
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def _embeds_by_row(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """Put each text to its image: (B, 4, D), zeros where a row has none."""
    size = len(image_embeds)
    present = torch.cat([torch.ones_like(masks[:, :1]), masks], dim=1)  # (B, 3)
    texts = text_embeds.new_zeros(3 * size, text_embeds.shape[1])
    texts[present.T.flatten()] = text_embeds
    return torch.stack([image_embeds, *texts.split(size)], dim=1)


class _Guard(TrainerCallback):
    """Keeps the scale where CLIP kept it, marks whole checkpoints, ends a run that has diverged."""

    def on_step_end(self, args, state, control, model=None, **_):
        with torch.no_grad():
            model.logit_scale.clamp_(0, _HIGHEST_SCALE)

    def on_save(self, args, state, control, **_):
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()

    def on_log(self, args, state, control, logs=None, **_):
        if not math.isfinite(logs.get("loss", 0.0)):
            raise ValueError(
                f"Expected the loss to be finite, got {logs['loss']} by step {state.global_step}. "
                "Lower the learning rate."
            )


def finetune(
    model: str | Path,
    data: str | Path | Dataset | DatasetDict,
    output_dir: str | Path,
    *,
    recipe: Recipe = RECIPES["both"],
    split: str | None = None,
    held_out: str | Path | Dataset | DatasetDict | None = None,
    seed: int = 0,
    checkpoint_steps: int = 500,
    dtype: str = "float32",
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Tune a CLIP on captions with hard positives and hard negatives.

    A run that was killed goes on from its last whole checkpoint when it is started again, and ends
    on a CPU with the bytes of one that was not. Under ``accelerate launch`` or ``torchrun`` the
    batch is shared among the processes and compared as one, so that their number changes nothing
    but the time.

    Args:
        model: Hub id or folder of a ``CLIPModel``, or ``"shapes_clip"``.
        data: As for :func:`load_training_rows`, like ``split``.
        output_dir: Folder for the model; absent, empty, or of the same run when it was killed.
        recipe: One of ``RECIPES``, or your own.
        held_out: Triples to score on the way, as for ``hard_positives.evaluate``. They must not be
            among the training rows.
        seed: Of the order of rows and of the rows that shares choose.
        checkpoint_steps: Steps between checkpoints, and between scores on ``held_out``.
        dtype: ``"float32"``, or ``"bfloat16"`` for mixed precision; weights and the loss are
            float32 either way.
        num_workers: Processes that decode images; chosen if left out.
        progress: Show a bar where stderr is a terminal.

    Returns:
        ``output_dir``, with the model, its processor, a card, and ``finetuning.json`` with the
        settings and the figures on the way.

    Raises:
        TypeError: The model is no ``CLIPModel``; and what ``load_training_rows`` raises.
        ValueError: Data or settings that cannot work, found before the model is loaded.
        FileExistsError: ``output_dir`` holds something else.
    """
    output = Path(output_dir)
    check_choice("dtype", dtype, ("float32", "bfloat16"))
    if checkpoint_steps < 1:
        raise ValueError(f"Expected checkpoint_steps to be at least 1, got {checkpoint_steps}.")
    rows = load_training_rows(data, split)
    chosen = choose_texts(rows, recipe, seed)
    _check_batches(recipe, len(rows))
    benchmark = _index_held_out(held_out)
    processor = _load_processor(model, rows)
    settings = {
        "model": str(model),
        "data": {"id": _name_of(data), "split": split, **_summary(rows, chosen)},
        "held_out": _name_of(held_out),
        "recipe": asdict(recipe),
        "seed": seed,
        "checkpoint_steps": checkpoint_steps,
        "dtype": dtype,
    }
    _open_output(output, settings)
    trainer = ContrastiveTrainer(
        recipe=recipe,
        processor=processor,
        model=load_model(model, processor=processor).model,
        train_dataset=TrainingRows(rows, *chosen),
        eval_dataset=benchmark,
        callbacks=[_Guard()],
        args=_arguments(
            output, settings, evaluate=bool(benchmark), num_workers=num_workers, progress=progress
        ),
    )
    trainer.remove_callback(PrinterCallback)
    _train(trainer, output)
    return output


def _train(trainer: ContrastiveTrainer, output: Path) -> None:
    """Train from the last whole checkpoint to the end, and leave the model and its card."""
    record = _read_record(output)
    if "before" not in record:
        record["before"] = trainer.evaluate() if trainer.eval_dataset else {}
        _write_record(output, record)
    trainer.train(resume_from_checkpoint=_last_checkpoint(output))
    record["after"] = trainer.evaluate() if trainer.eval_dataset else {}
    record["history"] = trainer.state.log_history
    if is_main_process():
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(output)
        trainer.processor.save_pretrained(output)
        _write_record(output, record)
        # The card comes last: where it is, the model is whole.
        with write_whole(output / _CARD) as partial:
            partial.write_text(_card(record), encoding="utf-8")
        shutil.rmtree(output / _CHECKPOINTS)
    trainer.accelerator.wait_for_everyone()


def _arguments(
    output: Path,
    settings: dict[str, Any],
    *,
    evaluate: bool,
    num_workers: int | None,
    progress: bool,
) -> TrainingArguments:
    recipe = settings["recipe"]
    arguments = TrainingArguments(
        output_dir=str(output / _CHECKPOINTS),
        per_device_train_batch_size=recipe["batch_size"] // PartialState().num_processes,
        num_train_epochs=recipe["epochs"],
        learning_rate=recipe["learning_rate"],
        warmup_steps=recipe["warmup_steps"],
        lr_scheduler_type="cosine",
        weight_decay=recipe["weight_decay"],
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        max_grad_norm=0.0,
        seed=settings["seed"],
        data_seed=settings["seed"],
        bf16=settings["dtype"] == "bfloat16",
        save_steps=settings["checkpoint_steps"],
        save_total_limit=2,  # one of them is whole whenever the run is killed
        eval_strategy="steps" if evaluate else "no",
        eval_steps=settings["checkpoint_steps"],
        # A checkpoint does not hold the mean that is under way: log with each of them.
        logging_steps=math.gcd(10, settings["checkpoint_steps"]),
        logging_nan_inf_filter=False,
        dataloader_drop_last=True,  # a smaller batch is another loss
        dataloader_pin_memory=torch.accelerator.is_available(),
        dataloader_num_workers=_chosen_workers(num_workers),
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=not (progress and sys.stderr.isatty()),
    )
    # One device a process: DataParallel would cut batches in pieces before they are compared.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _chosen_workers(num_workers: int | None) -> int:
    if num_workers is not None:
        return num_workers
    # Beside a GPU decoding is the wall; on a CPU it only takes cores from the model.
    return min(16, os.cpu_count()) if torch.accelerator.is_available() else 0


def _load_processor(model: str | Path, rows: Dataset) -> ProcessorMixin:
    """Check that this is a CLIP and reads all captions, before its weights are loaded."""
    source = Path(__file__).parent / EMBEDDED_MODEL if model == EMBEDDED_MODEL else model
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, CLIPConfig):
        raise TypeError(
            f"Expected model to be a CLIPModel, got {config.model_type}. Other families are "
            "trained with other losses."
        )
    processor = AutoProcessor.from_pretrained(source, backend="pil")
    positions = config.text_config.max_position_embeddings
    check_lengths(rows, processor, min(positions, processor.tokenizer.model_max_length))
    return processor


def _index_held_out(
    held_out: str | Path | Dataset | DatasetDict | None,
) -> dict[str, tuple[RowIndex, list[str]]]:
    benchmark = {}
    for split, rows in (load_splits(held_out) if held_out is not None else {}).items():
        check_columns(rows)
        named = "category" in rows.column_names
        benchmark[split] = (
            index_rows(rows),
            list(rows["category"]) if named else [split] * len(rows),
        )
    return benchmark


def _check_batches(recipe: Recipe, num_rows: int) -> None:
    if num_rows < recipe.batch_size:
        raise ValueError(
            f"Expected at least {recipe.batch_size} rows, one batch, got {num_rows}. Give more "
            "rows or a smaller batch_size."
        )
    is_main_process()  # finds out about the other processes
    processes = PartialState().num_processes
    if recipe.batch_size % processes:
        raise ValueError(
            f"Expected batch_size to divide among {processes} processes, got {recipe.batch_size}."
        )


# --- what is kept ---------------------------------------------------------------------------------


def _open_output(output: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or find that it is of the same run; every process looks, one writes."""
    advice = "Choose another folder, or remove it."
    if (output / _RECORD).is_file():
        if (output / _CARD).is_file():
            raise FileExistsError(
                f"Expected {output} to be absent or empty, got a finished model. {advice}"
            )
        found = _read_record(output)["settings"]
        other = [name for name in settings if found.get(name) != settings[name]]
        if other:
            raise FileExistsError(
                f"Expected {output} to hold a run of the same settings, got another {other[0]}: "
                f"{found.get(other[0])} there, {settings[other[0]]} here. {advice}"
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"Expected {output} to be absent or an empty folder, got something there. {advice}"
        )
    PartialState().wait_for_everyone()
    if is_main_process() and not (output / _RECORD).is_file():
        output.mkdir(parents=True, exist_ok=True)
        names = ("hard-positives", "accelerate", "datasets", "torch", "transformers")
        versions = {name: version(name) for name in names}
        _write_record(output, {"settings": settings, "versions": versions})
    PartialState().wait_for_everyone()


def _read_record(output: Path) -> dict[str, Any]:
    return json.loads((output / _RECORD).read_text(encoding="utf-8"))


def _write_record(output: Path, record: dict[str, Any]) -> None:
    if is_main_process():
        with write_whole(output / _RECORD) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _last_checkpoint(output: Path) -> str | None:
    whole = [marker.parent for marker in (output / _CHECKPOINTS).glob(f"checkpoint-*/{_COMPLETE}")]
    steps = {int(folder.name.removeprefix("checkpoint-")): str(folder) for folder in whole}
    return steps[max(steps)] if steps else None


def _name_of(source: Any) -> str | None:
    if source is None or isinstance(source, (str, Path)):
        return None if source is None else str(source)
    return type(source).__name__


def _summary(rows: Dataset, chosen: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    digest = hashlib.sha256()
    texts = rows.select_columns(list(CAPTION_COLUMNS)).with_format("arrow")
    for batch in texts.iter(batch_size=10_000):
        digest.update(json.dumps(batch.to_pydict()).encode())
    positives, negatives = (int(used.sum()) for used in chosen)
    return {
        "num_rows": len(rows),
        "num_hard_positives_used": positives,
        "num_hard_negatives_used": negatives,
        "captions_sha256": digest.hexdigest(),
    }


_CARD_TEXT = """---
{metadata}
---

# {name}, tuned with {edits}

Made by `hard-positives finetune` {version} from `{model}`. `transformers.CLIPModel` loads it,
`hard-positives evaluate` scores it. All settings, versions and the figures on the way stand in
`finetuning.json`.

## Data

`{data}`: {num_rows:,} images with a caption.

| | used | share of those there |
|---|---|---|
| hard positives{kind} | {num_hard_positives_used:,} | {hard_positive_share:g} |
| hard negatives | {num_hard_negatives_used:,} | {hard_negative_share:g} |

SHA-256 of the captions: `{captions_sha256}`.

## Loss

CLIP's, from images to captions and back.{loss} The formula is that of
`hard_positives.finetuning.contrastive_loss`.

## Schedule

{epochs:g} epochs in batches of {batch_size}. AdamW with betas 0.9 and 0.98, epsilon 1e-6 and weight
decay {weight_decay:g} on matrices. Learning rate {learning_rate:g} after {warmup_steps} steps of
warm-up, then a cosine down to 0. {dtype}, seed {seed}.{origin}

## Figures

{figures}
"""


def _card(record: dict[str, Any]) -> str:
    settings = record["settings"]
    recipe, data = settings["recipe"], settings["data"]
    edits = {
        name: data[f"num_{name.replace(' ', '_')}_used"]
        for name in ("hard positives", "hard negatives")
    }
    origin = f" After {recipe['source']}. {recipe['differs']}" if recipe["source"] else ""
    return _CARD_TEXT.format(
        **recipe,
        **{name: value for name, value in data.items() if name.startswith(("num_", "captions_"))},
        metadata=_card_metadata(settings).to_yaml(),
        name=Path(settings["model"]).name,
        edits=" and ".join(name for name, number in edits.items() if number) or "captions alone",
        version=record["versions"]["hard-positives"],
        model=_shown(settings["model"]),
        data=_shown(data["id"]),
        kind=f", by {recipe['hard_positive_kind']} only" if recipe["hard_positive_kind"] else "",
        loss=_loss_in_words(recipe, edits),
        dtype=settings["dtype"],
        seed=settings["seed"],
        origin=origin.rstrip(),
        figures=_figures(settings, record),
    )


def _card_metadata(settings: dict[str, Any]) -> ModelCardData:
    named = {"base_model": settings["model"], "datasets": settings["data"]["id"]}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "compositionality", "hard-positives", "hard-negatives"],
        # What is not on the Hub has no id that the Hub would accept.
        **{name: source for name, source in named.items() if _is_hub_id(source)},
    )


def _shown(source: str) -> str:
    """Name a source without where it lies on the disk of whoever trained."""
    return Path(source).name if Path(source).exists() else source


def _is_hub_id(source: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not Path(source).exists()


def _loss_in_words(recipe: dict[str, Any], edits: dict[str, int]) -> str:
    sentences = []
    if edits["hard negatives"]:
        whose = {"own": "its own hard negative", "batch": "all hard negatives of its batch"}
        sentences.append(f" Images are told from {whose[recipe['hard_negatives']]}, too.")
    if edits["hard positives"]:
        sentences.append(" A hard positive is a second caption that does not compete with it.")
        if recipe["alignment"]:
            sentences.append(f" A term of weight {recipe['alignment']:g} pulls the two together.")
    return "".join(sentences)


def _figures(settings: dict[str, Any], record: dict[str, Any]) -> str:
    if not record["after"]:
        return "None were taken. `hard-positives evaluate` gives them."
    lines = [
        f"| {name.removeprefix('eval_')} | {record['before'][name]:.1%} | {after:.1%} |"
        for name, after in record["after"].items()
    ]
    head = f"On `{_shown(settings['held_out'])}`; means over categories."
    return "\n".join([head, "", "| | before | after |", "|---|---|---|", *lines])
