"""`transformers.Trainer` with our loss: a batch in, a step out, scores on the way.

The loss is a function of vectors and stands in `loss`; what a batch is made of in `training_rows`.
Folders, checkpoints and records are left to `finetuning` and `checkpoints`.
"""

import math
import os
import shutil
import sys
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.distributed.nn.functional import all_gather
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    ProcessorMixin,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hard_positive_metric import compute_metrics
from hard_positives.bars import new_bar
from hard_positives.finetuning.checkpoints import in_order, seal
from hard_positives.finetuning.loss import contrastive_loss, texts_known_true
from hard_positives.finetuning.recipes import Recipe
from hard_positives.finetuning.rows import Collator
from hard_positives.machine import Options, processes
from hard_positives.models.encoders import DualEncoder
from hard_positives.scoring.score import score_comparisons
from hard_positives.suite.comparisons import Comparisons
from hard_positives.workers import end_with

FIGURES = ("original_accuracy", "augmented_accuracy", "brittleness")
_HIGHEST_SCALE = math.log(100)  # As CLIP was trained.


class HeldOut(NamedTuple):
    """The rows of a split to score on the way.

    Attributes:
        comparisons: What is scored.
        categories: Of each row.
        not_coco: (N,) whether each row's picture is in Visual Genome alone, where that is known.
    """

    comparisons: Comparisons
    categories: list[str]
    not_coco: np.ndarray | None = None


class ContrastiveTrainer(Trainer):
    """`transformers.Trainer` with `contrastive_loss` over the batches of all processes.

    Args:
        recipe: Whose switches the loss takes.
        processor: The model's.
        **options: As for `transformers.Trainer`; `eval_dataset` gives the `HeldOut` of each split.
    """

    loss_is_scaled_for_ga = False  # the mean of a batch

    def __init__(self, *, recipe: Recipe, processor: ProcessorMixin, **options: Any) -> None:
        # As processing_class, Trainer would overwrite the model's own special tokens.
        super().__init__(data_collator=Collator(processor), **options)
        self.recipe = recipe
        self.processor = processor

    def get_train_dataloader(self) -> DataLoader:
        """Load rows by processes that end with this one."""
        loader = super().get_train_dataloader()
        # In place of Trainer's, which seeds random numbers: nothing in a worker draws any.
        loader.worker_init_fn = partial(end_with, os.getpid())
        return loader

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Encode a batch in one pass and compare it with those of all processes."""
        ids = inputs["content_ids"]
        outputs = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"])
        embeds = _embeds_by_row(outputs.image_embeds, outputs.text_embeds, ids[:, 1:] >= 0)
        scale = self.accelerator.unwrap_model(model).logit_scale.exp()
        # In half precision near-identical captions tie.
        with torch.autocast(embeds.device.type, enabled=False):
            images, captions, positives, negatives = _gathered(embeds).unbind(dim=1)
            ids = _gathered(ids)
            loss = contrastive_loss(
                images,
                captions,
                positives,
                negatives,
                scale,
                has_hard_positive=ids[:, 2] >= 0,
                has_hard_negative=ids[:, 3] >= 0,
                hard_negatives=self.recipe.hard_negatives,
                alignment=self.recipe.alignment,
                known_true=texts_known_true(ids) if self.recipe.leave_out_true else None,
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
        """Score the model as it is on the held-out splits: fractions by split and figure.

        Figures of `SPLIT_not_coco` are those of the rows without COCO's pictures.
        """
        encoder = DualEncoder(self.accelerator.unwrap_model(self.model), self.processor)
        metrics = {}
        for split, held_out in cast(Any, self.eval_dataset).items():
            options = Options(cache=False, progress=False)
            scored = score_comparisons(encoder, held_out.comparisons, options)
            logits, categories = held_out.comparisons.listed(scored), held_out.categories
            parts = {split: (logits, categories)}
            rows = held_out.not_coco
            if rows is not None and rows.any():
                rest = list(compress(logits, rows)), list(compress(categories, rows))
                parts[f"{split}_not_coco"] = rest
            for part, (of_part, groups) in parts.items():
                figures = compute_metrics(of_part, groups=groups)["macro"]
                metrics |= {f"{metric_key_prefix}_{part}_{name}": figures[name] for name in FIGURES}
        self.log({**metrics})  # it adds to what it gets
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def _embeds_by_row(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """Put each text to its image: (B, 4, D), zeros where a row has none; `present` is (B, 3)."""
    size = len(image_embeds)
    texts = text_embeds.new_zeros(3 * size, text_embeds.shape[1])
    texts[present.T.flatten()] = text_embeds
    return torch.stack([image_embeds, *texts.split(size)], dim=1)


def _gathered(values: torch.Tensor) -> torch.Tensor:
    """Join the batches of all processes, with gradient to each of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    return torch.cat(all_gather(values))


class StepsBar(TrainerCallback):
    """Shows steps, the loss and the figures on the way, on stderr as our other bars."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin where the checkpoint was made."""
        shown = state.is_world_process_zero
        self.bar = new_bar("steps", state.max_steps, shown=shown)
        self.bar.update(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count."""
        self.bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        """Show the loss beside the bar, and figures on a line of their own."""
        if "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}")
        figures = {name: 100 * value for name, value in logs.items() if name.startswith("eval_")}
        if figures and state.is_world_process_zero and sys.stderr.isatty():
            shown = ", ".join(f"{_in_words(name)} {value:.1f}" for name, value in figures.items())
            tqdm.write(f"step {state.global_step}: {shown}", file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the bar as it is."""
        self.bar.close()


def _in_words(figure: str) -> str:
    return figure.removeprefix("eval_").removesuffix("_accuracy").replace("_", " ")


class TrainingGuard(TrainerCallback):
    """Keeps the scale where CLIP kept it, seals checkpoints, ends a run that has diverged."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Clamp the scale."""
        with torch.no_grad():
            model.logit_scale.clamp_(0, _HIGHEST_SCALE)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Seal the checkpoint, then remove all but the last two."""
        processes().wait_for_everyone()  # each process has written a file of its own
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            seal(folder / f"checkpoint-{state.global_step}")
            for checkpoint in in_order(folder)[:-2]:
                shutil.rmtree(checkpoint)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        """Raise where the loss is no number."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise ValueError(
                f"Expected the loss to be finite, got {logs['loss']} by step {state.global_step}. "
                "Lower the learning rate."
            )
