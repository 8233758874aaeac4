"""Several models on several datasets: a folder for each pair, and none that is finished done again.

    OUTPUT/MODEL/DATASET/results.json, scores.parquet

What a finished result depends on stands in its signature, which is known before anything is scored:
where the two are the same, the result stays.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from typing_extensions import Unpack

from hard_positives.machine import Options, is_main_process
from hard_positives.models.kinds import Settings
from hard_positives.models.loading import load_model
from hard_positives.names import public_name
from hard_positives.results.evaluation import open_benchmark, score_benchmark
from hard_positives.results.files import check_folder
from hard_positives.results.result import EvaluationResult
from hard_positives.suite.columns import Columns


def evaluate_all(
    models: Sequence[str | Path],
    datasets: Sequence[str | Path],
    output_dir: str | Path,
    *,
    columns: Columns | None = None,
    splits: Sequence[str] | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    cache: bool = True,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
    **settings: Unpack[Settings],
) -> list[EvaluationResult]:
    """Score every model on every dataset, and save each result as soon as it is there.

    All datasets are read and checked before the first model is loaded. A model is loaded once. With
    the cache, an image or caption of several datasets is encoded once. A run that was stopped
    resumes; results that are finished are kept where model, dataset and versions are the same.

    Args:
        models: Hub ids or folders, each with another name.
        datasets: Likewise, all with the same columns.
        output_dir: Gets a folder `MODEL/DATASET` for each; `/` in names becomes `--`.
        columns: As for `hard_positives.evaluate`, like all arguments not named here.
        tell: Is called with a sentence for each result.

    Returns:
        The results, model by model, in the order given.

    Raises:
        ValueError: Two models or datasets of one name, and what `evaluate` raises.
        FileExistsError: A folder holds files that are no result's.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [result] = evaluate_all(["shapes_clip"], ["shapes"], folder, progress=False)
        ...     sorted(path.name for path in Path(folder, "shapes_clip", "shapes").glob("[!.]*"))
        ['results.json', 'scores.parquet']
    """
    keep_images = len(models) > 1  # those of one preparation share what was prepared
    options = Options(batch_size, num_workers, cache, progress, keep_images)
    folders = [_folder_names(models, "models"), _folder_names(datasets, "datasets")]
    places = [[Path(output_dir, model, dataset) for dataset in folders[1]] for model in folders[0]]
    benchmarks = [open_benchmark(dataset, columns, splits) for dataset in datasets]
    if is_main_process():
        for dataset, *of_dataset in zip(datasets, *places, strict=True):
            for place in of_dataset:
                check_folder(place, dataset)
    results = []
    for model, of_model in zip(models, places, strict=True):
        scorer = load_model(model, **settings)
        for benchmark, place in zip(benchmarks, of_model, strict=True):
            earlier = _earlier(place)
            result = score_benchmark(model, scorer, benchmark, options, earlier)
            if result is not earlier and is_main_process():
                result.save(place)
            if tell:
                tell(f"{place}: {'finished before' if result is earlier else 'scored'}.")
            results.append(result)
    return results


def _folder_names(sources: Sequence[str | Path], kind: str) -> list[str]:
    names = [str(public_name(source)).strip("/.").replace("/", "--") for source in sources]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"Expected {kind} to be one or more, each of another name, got {names}. Their results "
            "go to folders of these names."
        )
    return names


def _earlier(place: Path) -> EvaluationResult | None:
    try:
        return EvaluationResult.load(place)
    except (FileNotFoundError, ValueError):  # none, or a damaged one: scored again
        return None
