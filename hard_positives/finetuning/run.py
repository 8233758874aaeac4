"""Training rows and a CLIP in, a CLIP tuned with hard positives and hard negatives out.

    rows -> batches -> unit vectors -> contrastive_loss -> a CLIPModel folder with its card

This is the run: its folder, its record, what it resumes from and what it leaves. The formula stands
in `loss`, a step in `trainer`, its switches in a recipe (`recipes`), what a batch is made of in
`training_rows`. Hard positives and hard negatives are made by `generation`, not here.
"""

import copy
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCardData
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoProcessor,
    CLIPConfig,
    ProcessorMixin,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from hard_positives.bars import bars_of_transformers_hidden
from hard_positives.finetuning.checkpoints import digest_of, in_order, last_whole
from hard_positives.finetuning.overlap import find_overlap, overlap_in_words, warn_of_overlap
from hard_positives.finetuning.recipes import RECIPES, Recipe, check_choice
from hard_positives.finetuning.record import CARD, RECORD, read_record, write_record
from hard_positives.finetuning.rows import (
    TrainingRows,
    check_lengths,
    check_training_rows,
    choose_texts,
    identify_content,
)
from hard_positives.finetuning.trainer import (
    ContrastiveTrainer,
    HeldOut,
    StepsBar,
    TrainingGuard,
)
from hard_positives.machine import is_main_process, processes
from hard_positives.models.encoders import DualEncoder
from hard_positives.models.loading import damage_as_value_error, load_model
from hard_positives.names import EMBEDDED_MODEL, public_name
from hard_positives.suite.coco import coco_pictures
from hard_positives.suite.comparisons import read_comparisons
from hard_positives.suite.rows import about_rows
from hard_positives.suite.sources import Source, check_content, load_source
from hard_positives_dataset.folders import (
    full_disk,
    full_disk_explained,
    lock_for,
    put_in_place,
    write_whole,
)

_CHECKPOINTS = "checkpoints"


def finetune(
    model: str | Path,
    data: str | Path | Dataset | DatasetDict,
    output_dir: str | Path,
    *,
    recipe: Recipe = RECIPES["both"],
    split: str | None = None,
    held_out: str | Path | Dataset | DatasetDict | None = None,
    image_data: str | Path | None = None,
    seed: int = 0,
    checkpoint_steps: int = 500,
    dtype: str = "float32",
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Tune a CLIP on captions with hard positives and hard negatives.

    A run that was killed resumes from its last whole checkpoint when it is started again, and ends
    on a CPU with the bytes of one that was not. A checkpoint that was damaged since is not read:
    the one before is, with a warning. Under `torchrun` the batch is shared among the processes and
    compared as one, so that their number changes nothing but the time.

    Args:
        model: Hub id or folder of a `CLIPModel`, or `"shapes_clip"`.
        data: Rows to train on: a folder from `hard-positives generate`, a Hub id, or what
            `load_dataset` returns, with `image`, `caption`, `hard_positive` and `hard_negative`;
            the last two may be null in any row.
        split: Which split of the data; needed where there are several.
        output_dir: Folder for the model; absent, empty, or of the same run when it was killed.
        recipe: One of `RECIPES`, or your own.
        held_out: Triples to score on the way, as for `hard_positives.evaluate`. Where they share
            pictures or texts with the training rows, a warning, the record and the card say so.
        image_data: Visual Genome's `image_data.json`, for figures of the held-out rows without the
            pictures that are COCO's, too, beside those of all.
        seed: Of the order of rows and of the rows that shares choose.
        checkpoint_steps: Steps between checkpoints, and between scores on `held_out`.
        dtype: `"float32"`, or `"bfloat16"` for mixed precision; weights and the loss are
            float32 either way.
        num_workers: Processes that decode images; chosen if left out.
        progress: Show a bar where stderr is a terminal.

    Returns:
        `output_dir`, with the model, its processor, a card, and `finetuning.json` with the
        settings and the figures on the way; each file is whole, and the card comes last.

    Raises:
        TypeError: The model is no `CLIPModel`; or a column of the data is of the wrong kind.
        ValueError: Data or settings that cannot work, found before the model is loaded; a damaged
            record in `output_dir`.
        FileExistsError: `output_dir` holds something else, or another process is writing it.
        OSError: The disk is full, or a process that decodes images was killed. The same call
            resumes.
    """
    output = Path(output_dir)
    check_choice("dtype", dtype, ("float32", "bfloat16"))
    if checkpoint_steps < 1:
        raise ValueError(f"Expected checkpoint_steps to be at least 1, got {checkpoint_steps}.")
    if not isinstance(model, (str, Path)):
        raise TypeError(
            f"Expected model to be a Hub id or a folder, got {type(model).__name__}. Save it with "
            "save_pretrained and give the folder."
        )
    source = load_source(data, None if split is None else [split])
    rows = check_training_rows(source.splits)
    chosen = choose_texts(rows, recipe, seed)
    _check_batches(recipe, len(rows))
    benchmark, held_out_content = _index_held_out(held_out, image_data)
    with _lock(output), bars_of_transformers_hidden():
        _check_output(output)
        ids, image_digests = identify_content(rows)
        [name] = source.splits
        content = check_content(name, rows, image_digests, source.content_sha256.get(name))
        with damage_as_value_error(str(model)):
            processor = _load_processor(model, rows)
        encoder = cast(DualEncoder, load_model(model, processor=processor))
        settings = {
            "model": {"id": _name_of(model), **_identity(encoder)},
            "data": {
                "id": _name_of(data),
                "split": split,
                "num_rows": len(rows),
                "num_hard_positives_used": int(chosen[0].sum()),
                "num_hard_negatives_used": int(chosen[1].sum()),
                "content_sha256": content,
            },
            "held_out": None
            if held_out is None
            else {
                "id": _name_of(held_out),
                "content_sha256": held_out_content,
                "num_not_coco": {
                    split: int(rows.not_coco.sum())
                    for split, rows in benchmark.items()
                    if rows.not_coco is not None
                },
            },
            "recipe": asdict(recipe),
            "seed": seed,
            "checkpoint_steps": checkpoint_steps,
            "dtype": dtype,
        }
        _begin_or_resume(output, settings)
        trainer = ContrastiveTrainer(
            recipe=recipe,
            processor=copy.deepcopy(processor),  # tokenizers keep the padding of their last call
            model=encoder.model,
            train_dataset=TrainingRows(rows, ids, *chosen),
            eval_dataset=benchmark,
            callbacks=[TrainingGuard(), *([StepsBar()] if progress else [])],
            args=_arguments(
                output,
                settings,
                evaluate=bool(benchmark),
                num_workers=num_workers,
            ),
        )
        trainer.remove_callback(PrinterCallback)
        with _failures_explained(output):
            _train(trainer, processor, output)
    return output


def _train(trainer: ContrastiveTrainer, processor: ProcessorMixin, output: Path) -> None:
    """Train from the last whole checkpoint to the end, and leave the model and its card."""
    record = read_record(output)
    if "history" not in record:  # else only the last steps are left to do
        record = _trained(trainer, processor, record, output)
    if is_main_process():
        # The checkpoints before the card, which says that all is done: none is left in what is.
        if (output / _CHECKPOINTS).exists():
            shutil.rmtree(output / _CHECKPOINTS)
        with write_whole(output / CARD) as partial:
            partial.write_text(_card(record), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()


def _trained(
    trainer: ContrastiveTrainer, processor: ProcessorMixin, record: dict[str, Any], output: Path
) -> dict[str, Any]:
    if "overlap" not in record:
        record["overlap"] = _overlap(trainer)
        record["before"] = trainer.evaluate() if trainer.eval_dataset else {}
    # Nearly always one number; several where a run was resumed with more or fewer processes.
    numbers = {*record.get("num_processes", []), processes().num_processes}
    record["num_processes"] = sorted(numbers)
    _record(output, record)
    trainer.train(resume_from_checkpoint=_last_checkpoint(output / _CHECKPOINTS))
    record["after"] = trainer.evaluate() if trainer.eval_dataset else {}
    record["history"] = trainer.state.log_history
    if is_main_process():
        _leave(trainer, processor, record, output)
    trainer.accelerator.wait_for_everyone()
    return record


def _overlap(trainer: ContrastiveTrainer) -> dict[str, dict[str, Any]]:
    """Find, in the one process that writes it down, what is trained on and held out, too."""
    benchmark = cast(dict[str, HeldOut], trainer.eval_dataset)
    if not (benchmark and is_main_process()):
        return {}
    held_out = {split: rows.comparisons for split, rows in benchmark.items()}
    overlap = find_overlap(cast(TrainingRows, trainer.train_dataset), held_out)
    warn_of_overlap(overlap)
    return overlap


def _last_checkpoint(folder: Path) -> str | None:
    if is_main_process():
        last_whole(folder)  # removes what is newer
    processes().wait_for_everyone()
    found = in_order(folder)
    return str(found[-1]) if found else None


def _leave(
    trainer: ContrastiveTrainer, processor: ProcessorMixin, record: dict[str, Any], output: Path
) -> None:
    """Write all files aside, then put each in its place, the record last: it says that all are."""
    aside = output / ".incomplete"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(aside)
        processor.save_pretrained(aside)
        record["files"] = {path.name: digest_of(path) for path in sorted(aside.iterdir())}
        for name in record["files"]:
            put_in_place(aside / name, output / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _record(output, record)


@contextmanager
def _failures_explained(output: Path) -> Iterator[None]:
    """Turn what the libraries raise for a full disk and a dead process into typed sentences."""
    try:
        with full_disk_explained(output):
            yield
    except (SafetensorError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        if isinstance(error, SafetensorError) or "inline_container.cc" in why:
            raise full_disk(output, why) from error
        if "DataLoader worker" in why:
            raise ChildProcessError(
                f"Expected the processes that decode images to live, got: {why.rstrip('.')}. "
                "Memory may have run out: take fewer (num_workers). The same run resumes from its "
                "last whole checkpoint."
            ) from error
        raise
    except (ValueError, OSError) as error:
        found = re.match(r"Caught (\w+) in DataLoader worker .*\n\1: (.*)", str(error), re.DOTALL)
        if found is None:
            raise
        raise type(error)(found[2].strip()) from error  # without the worker's traceback


def _arguments(
    output: Path,
    settings: dict[str, Any],
    *,
    evaluate: bool,
    num_workers: int | None,
) -> TrainingArguments:
    recipe = settings["recipe"]
    arguments = TrainingArguments(
        output_dir=str(output / _CHECKPOINTS),
        per_device_train_batch_size=recipe["batch_size"] // processes().num_processes,
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
        disable_tqdm=True,  # ours is shown in its place
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
    source = Path(__file__).parents[1] / EMBEDDED_MODEL if model == EMBEDDED_MODEL else model
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, CLIPConfig):
        raise TypeError(
            f"Expected model to be a CLIPModel, got {config.model_type}. Other families are "
            "trained with other losses."
        )
    processor = AutoProcessor.from_pretrained(source, backend="pil")
    positions = config.get_text_config().max_position_embeddings
    check_lengths(
        rows, copy.deepcopy(processor), min(positions, processor.tokenizer.model_max_length)
    )
    return processor


def _index_held_out(
    held_out: str | Path | Dataset | DatasetDict | None, image_data: str | Path | None
) -> tuple[dict[str, HeldOut], dict[str, str]]:
    """Return what is to be scored, and the hash of the content, by split."""
    if image_data is not None and held_out is None:
        raise ValueError(
            f"Expected image_data to be given with held_out, got {image_data} alone. Give rows to "
            "score on the way, or leave it out."
        )
    benchmark, contents, clusters = {}, {}, {}
    source = Source({}) if held_out is None else load_source(held_out)
    for split, rows in source.splits.items():
        comparisons = read_comparisons(rows)
        digests = [comparisons.image_digests[place] for place in comparisons.anchors]
        contents[split] = check_content(split, rows, digests, source.content_sha256.get(split))
        about = cast(dict[str, list[str]], about_rows(rows, split, digests))
        benchmark[split] = HeldOut(comparisons, about["category"])
        clusters[split] = about["cluster"]
    if image_data is not None:
        coco = coco_pictures(image_data, chain.from_iterable(clusters.values()))
        for split, of_rows in clusters.items():
            not_coco = np.array([cluster not in coco for cluster in of_rows])
            benchmark[split] = benchmark[split]._replace(not_coco=not_coco)
    return benchmark, contents


def _identity(encoder: DualEncoder) -> dict[str, Any]:
    """Tell what is tuned: by its commit, if it has one, and by the hash of all that it is."""
    described = encoder.identity.description
    model = dict(described["model"])
    del model["id"]
    revision = model.pop("revision")
    parts = json.dumps([model, described["processor"]], sort_keys=True).encode()
    return {"revision": revision, "content_sha256": hashlib.sha256(parts).hexdigest()}


def _check_batches(recipe: Recipe, num_rows: int) -> None:
    if num_rows < recipe.batch_size:
        raise ValueError(
            f"Expected at least {recipe.batch_size} rows, one batch, got {num_rows}. Give more "
            "rows or a smaller batch_size."
        )
    number = processes().num_processes
    if recipe.batch_size % number:
        raise ValueError(
            f"Expected batch_size to divide among {number} processes, got {recipe.batch_size}."
        )


@contextmanager
def _lock(output: Path) -> Iterator[None]:
    """Hold the right to write the folder; the main process does so for all of a run."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with lock_for(output) if is_main_process() else nullcontext():
        yield


def _check_output(output: Path) -> None:
    """Refuse a finished model and what is not ours; every process looks."""
    advice = "Choose another folder, or remove it."
    if (output / RECORD).is_file():
        if (output / CARD).is_file():
            raise FileExistsError(
                f"Expected {output} to be absent or empty, got a finished model. {advice}"
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"Expected {output} to be absent or an empty folder, got something there. {advice}"
        )


def _begin_or_resume(output: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or find that it is of the same run; every process looks, one writes."""
    if (output / RECORD).is_file():
        _check_same_run(output, settings)
    processes().wait_for_everyone()
    if is_main_process() and not (output / RECORD).is_file():
        output.mkdir(parents=True, exist_ok=True)
        names = ("hard-positives", "accelerate", "datasets", "torch", "transformers")
        versions = {name: version(name) for name in names}
        _record(output, {"settings": settings, "versions": versions})
    processes().wait_for_everyone()


def _check_same_run(output: Path, settings: dict[str, Any]) -> None:
    found, given = (_by_name(both) for both in (read_record(output)["settings"], settings))
    other = [name for name in given if found.get(name) != given[name]]
    if other:
        raise FileExistsError(
            f"Expected {output} to hold a run of the same settings, got another {other[0]}: "
            f"{found.get(other[0])} there, {given[other[0]]} here. Choose another folder, or "
            "remove it."
        )


def _record(output: Path, record: dict[str, Any]) -> None:
    if is_main_process():
        write_record(output, record)


def _by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """Flatten to `model content_sha256` and the like; the same content may go by another name."""
    flat = {}
    for name, value in settings.items():
        parts = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name} {part}".rstrip(): found for part, found in parts.items()}
    return {name: value for name, value in flat.items() if not name.endswith((" id", " revision"))}


def _name_of(source: Any) -> str | None:
    """Name a source without where it lies on the disk of whoever trains."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        return path.resolve().name if path.exists() else public_name(source)
    return type(source).__name__


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

SHA-256 of the rows, images and texts: `{content_sha256}`.

## Loss

CLIP's, from images to captions and back.{loss} The formula is that of
`hard_positives.contrastive_loss`.

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
        **{name: value for name, value in data.items() if name.startswith(("num_", "content_"))},
        metadata=_card_metadata(settings).to_yaml(),
        name=Path(settings["model"]["id"]).name,
        edits=" and ".join(name for name, number in edits.items() if number) or "captions alone",
        version=record["versions"]["hard-positives"],
        model=settings["model"]["id"],
        data=data["id"],
        kind=f", by {recipe['hard_positive_kind']} only" if recipe["hard_positive_kind"] else "",
        loss=_loss_in_words(recipe, edits),
        dtype=settings["dtype"],
        seed=settings["seed"],
        origin=origin.rstrip(),
        figures=_figures(settings, record),
    )


def _card_metadata(settings: dict[str, Any]) -> ModelCardData:
    named = {"base_model": settings["model"]["id"], "datasets": settings["data"]["id"]}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "compositionality", "hard-positives", "hard-negatives"],
        # What is not on the Hub has no id that the Hub would accept.
        **{name: source for name, source in named.items() if _is_hub_id(source)},
    )


def _is_hub_id(source: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source))  # of a path, the last part alone is kept


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
    head = f"On `{settings['held_out']['id']}`; means over categories. Lower brittleness is better."
    if settings["held_out"]["num_not_coco"]:
        head += " `not_coco`: of the rows whose picture is in Visual Genome alone."
    shared = overlap_in_words(record["overlap"])
    if shared:
        head += f"\n\n**Not a measure of what was learnt: {shared}.**"
    return "\n".join([head, "", "| | before | after |", "|---|---|---|", *lines])
