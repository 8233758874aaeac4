"""The command line: parses and calls; nothing else.

Heavy imports stand inside the commands, so that ``--help`` answers at once.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from functools import partial, partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer
import typer.core

from hard_positives import interrupts

if TYPE_CHECKING:
    from hard_positives import EvaluationResult
    from hard_positives.hub.repository import Publication


def _in_words(parameters: list[Any], command: Any) -> list[Any]:
    """Name what options take in words, where typer's help would show types of Python."""
    hints = get_type_hints(command.callback) if command.callback else {}
    for parameter in parameters:
        hint = str(hints.get(parameter.name, bool))
        kinds = {"bool": None, "int": "NUMBER", "float": "NUMBER", "Path": "PATH"}
        word = next((word for kind, word in kinds.items() if kind in hint), "NAME")
        is_option = parameter.param_type_name == "option"
        if is_option and parameter.metavar is None:
            parameter.metavar = word
        if word is None or not is_option:
            parameter.display_type_rich = lambda ctx: None
    return parameters


class _Command(typer.core.TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _in_words(super().get_params(ctx), self)

    def get_short_help_str(self, limit: int = 200) -> str:  # whole, on the site's page, too
        return super().get_short_help_str(200)

    def invoke(self, ctx: Any) -> Any:
        _given.set(ctx.params)
        return super().invoke(ctx)


class _Group(typer.core.TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _in_words(super().get_params(ctx), self)

    def get_short_help_str(self, limit: int = 200) -> str:
        return super().get_short_help_str(200)


class _Program(typer.Typer):
    command = partialmethod(typer.Typer.command, cls=_Command)


app = _Program(
    cls=_Group,
    name="hard-positives",
    help="Measure how well image-text models understand composition, with hard positives.",
    epilog="Exit codes: 0 done; 1 the input is wrong, with one sentence on stderr; 2 the command "
    "line is wrong; 130 interrupted. Colours are left out in a pipe and where NO_COLOR is set.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
publish = _Program(
    cls=_Group,
    help="Publish a dataset, a tuned model, the metric or results on the Hugging Face Hub.",
    no_args_is_help=True,
)
app.add_typer(publish, name="publish")
NEXT_STEP = (
    "A real one: hard-positives build REPLACE --split replace && "
    "hard-positives evaluate openai/clip-vit-base-patch32 --dataset REPLACE"
)


def _hush(quiet: bool) -> bool:
    """Turn off the bars that the libraries show on their own, too; they ask when imported."""
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # and those of transformers
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    return quiet


def _json_object(text: str) -> dict[str, Any]:
    import json

    try:
        values = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"Expected JSON, got {text!r} ({error}).") from error
    if not isinstance(values, dict):
        raise typer.BadParameter(f"Expected a JSON object, got {text!r}.")
    return values


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print the result, warnings and errors, and nothing else.",
        callback=_hush,
    ),
]
COLUMNS_PANEL = "Columns of the dataset (left out, the benchmark's own)"
ImageColumn = Annotated[
    str, typer.Option(help="Column of the image.", rich_help_panel=COLUMNS_PANEL)
]
PositiveColumns = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of what is true, the original first; repeat for more.",
        rich_help_panel=COLUMNS_PANEL,
    ),
]
NegativeColumns = Annotated[
    list[str] | None,
    typer.Option(help="Column of what is false; repeat for more.", rich_help_panel=COLUMNS_PANEL),
]
CandidateColumns = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of lists, or of one; repeat for more. With --label.",
        rich_help_panel=COLUMNS_PANEL,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the true candidate: its place from 0, or itself.",
        rich_help_panel=COLUMNS_PANEL,
    ),
]
PairColumns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="IMAGE:CAPTION",
        help="Columns of an image and its caption; give two pairs or more.",
        rich_help_panel=COLUMNS_PANEL,
    ),
]
CategoryColumn = Annotated[
    str | None,
    typer.Option(help="Column to report by.", rich_help_panel=COLUMNS_PANEL),
]
ClusterColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of what is not independent, such as the photograph.",
        rich_help_panel=COLUMNS_PANEL,
    ),
]
SetColumn = Annotated[
    str | None,
    typer.Option(
        "--set",
        help="Column of what is right only as a whole.",
        rich_help_panel=COLUMNS_PANEL,
    ),
]
CropColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the box to cut out: left, top, width, height.",
        rich_help_panel=COLUMNS_PANEL,
    ),
]
BaseUrl = Annotated[
    str, typer.Option(help="The model's OpenAI-compatible server. Key: HARD_POSITIVES_API_KEY.")
]
Temperature = Annotated[float, typer.Option(help="The model's temperature, 0 or more.")]
InFlight = Annotated[int, typer.Option(help="Requests under way at one time.")]
Seed = Annotated[int, typer.Option(help="Another seed makes other edits.")]


def _table_file(name: str) -> Path:
    from hard_positives.results.exports import check_format

    try:
        return check_format(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


TableFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--table",
        metavar="FILE",
        parser=_table_file,
        help="Write the table to a file, too, as its name ends: .csv (every figure, as fractions), "
        ".md or .tex; repeat for more.",
    ),
]
ImageData = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Visual Genome's image_data.json: figures without the pictures that are COCO's, too, "
        "as a view of their own.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON for machines: fractions, nothing rounded.")
]


_with_traceback = ContextVar("with_traceback", default=False)
_given: ContextVar[dict[str, Any]] = ContextVar("given")  # the options of this command
_nothing_kept = ContextVar("nothing_kept", default=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        from hard_positives import __version__

        typer.echo(f"hard-positives {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            envvar="HARD_POSITIVES_TRACEBACK",
            help="Print the traceback below an error, to see where it comes from.",
        ),
    ] = False,
) -> None:
    """Take what holds for every command."""
    _with_traceback.set(traceback)


def _never(given: dict[str, Any]) -> bool:
    return False


def _always(given: dict[str, Any]) -> bool:
    return True


def _keeps_scores(given: dict[str, Any]) -> bool:
    """Say whether scores outlive an interrupt: in the cache, or in a folder for each result."""
    several = any(len(given[name] or ()) > 1 for name in ("models", "dataset"))
    return several or (given["cache"] and not _nothing_kept.get())


@contextmanager
def _in_sentences(resumes: Callable[[dict[str, Any]], bool] = _never) -> Iterator[None]:
    """Say in a sentence each what is wrong (exit code 1), what is to be told, and an interrupt.

    Decorates a command as a whole, since its imports take seconds in which Ctrl-C can come.
    `resumes` says of what was given whether the same command finds what was done.
    """
    import traceback
    import warnings

    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            yield
        except (KeyboardInterrupt, ValueError, TypeError, OSError, ImportError) as error:
            if interrupts.were_there() or isinstance(error, KeyboardInterrupt):
                again = "resumes where it stopped" if resumes(_given.get()) else "starts it again"
                if interrupts.is_spokesman():
                    _echo_error(f"Interrupted. The same command {again}.")
                raise typer.Exit(interrupts.INTERRUPTED) from error
            if isinstance(error, BrokenPipeError) and _reader_has_gone():
                raise
            _echo_error(f"Error: {error}")
            if _with_traceback.get():
                _echo_error(traceback.format_exc())
            raise typer.Exit(1) from error


def _reader_has_gone() -> bool:
    """Say whether it is stdout that is broken (`| head`), which click ends without a word."""
    try:
        typer.echo()  # not a flush alone: nothing is left of what could not be written
    except BrokenPipeError:
        return True
    return False


def _show_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    if issubclass(category, interrupts.NothingKept):
        _nothing_kept.set(True)
    if issubclass(category, UserWarning):  # not the notes of libraries to developers
        typer.echo(f"Warning: {_printable_lines(message)}", err=True)


def _echo_error(sentence: str) -> None:
    colour = None if "NO_COLOR" in os.environ else "red"
    typer.secho(_printable_lines(sentence), fg=colour, err=True)


def _printable_lines(text: object) -> str:
    from hard_positives.names import printable

    return "\n".join(map(printable, str(text).splitlines()))


@app.command()
@_in_sentences()
def build(
    output: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder or zip of Visual Genome's images; repeat for more. Downloaded (15 GB) if "
            "left out."
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="Folder with original/ and hard_positive/, or a clone of the published "
            "repository. Downloaded if left out."
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="replace or swap; repeat for more. Both if left out."),
    ] = None,
    benchmark: Annotated[
        str,
        typer.Option(help="Another benchmark of `hard-positives benchmarks` that must be built."),
    ] = "replace-swap",
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Leave out rows without an image."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Build a benchmark as Parquet from its annotations and images that lie apart.

    Left out, --benchmark is REPLACE and SWAP, from the published annotations and Visual Genome.
    """
    if benchmark != "replace-swap":
        _build_other(benchmark, output, images, annotations, partial=partial, quiet=quiet)
        return
    from hard_positives_dataset import HardPositives, build_parquet

    chosen = {
        "annotation_dir": annotations,
        "images": images,
        "splits": split,
        "partial": partial,
    }
    given = {name: value for name, value in chosen.items() if value}
    builder = HardPositives(config_name="visual_genome", **given)
    build_parquet(builder.as_streaming_dataset(), output, progress=not quiet)
    if not quiet:
        typer.echo(f"Built {output}. Next: hard-positives evaluate MODEL --dataset {output}")


def _build_other(
    benchmark: str,
    output: Path,
    images: list[Path] | None,
    annotations: Path | None,
    *,
    partial: bool,
    quiet: bool,
) -> None:
    from hard_positives.suite.builders import build_benchmark

    progress = not quiet
    counts = build_benchmark(
        benchmark, output, images or [], annotations, partial=partial, progress=progress
    )
    left_out = counts.pop("")
    if left_out:
        typer.echo(f"Warning: {left_out:,} rows are left out: no image.", err=True)
    if not quiet:
        rows = ", ".join(f"{split} {number:,}" for split, number in counts.items())
        typer.echo(
            f"Built {output} ({rows} rows). Next: hard-positives evaluate MODEL --dataset {output}"
        )


@app.command()
@_in_sentences(resumes=_keeps_scores)
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Hub id or folder of a CLIP-like model; the tiny bundled one if left out.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder from `hard-positives build`, a Hub id, or a name that `hard-positives "
            "benchmarks` lists; repeat for more. The bundled world if left out.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split to score; repeat for more. All if left out.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")
    ] = None,
    dataset_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the dataset on the Hub.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps. The fastest if left out.")
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="The encoders' type: float32, bfloat16, float16, or auto: whichever is fast here."
        ),
    ] = "float32",
    preprocessing: Annotated[
        str,
        typer.Option(help="transformers: as the model's own processor; openai: as published."),
    ] = "transformers",
    question: Annotated[
        str | None,
        typer.Option(
            help="What a generative model is asked about each pair, with {} in the place of the "
            "caption, to be answered by Yes or No. VQAScore's if left out."
        ),
    ] = None,
    likelihood: Annotated[
        bool,
        typer.Option(
            "--likelihood",
            help="Score a generative model by log P(caption | image) in the place of a question.",
        ),
    ] = False,
    adapter: Annotated[
        str | None, typer.Option(help="Hub id or folder of a PEFT adapter for the model.")
    ] = None,
    model_kwargs: Annotated[
        dict | None,
        typer.Option(
            metavar="JSON",
            parser=_json_object,
            help="What else transformers' from_pretrained takes, such as "
            '\'{"device_map": "auto"}\' for several GPUs.',
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="The server of a model server:NAME. Key: HARD_POSITIVES_API_KEY."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per batch. Chosen for the device if left out.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode images. Chosen if left out.")
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Keep embeddings on disk, and use those that are there.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results.json and scores.parquet; of several models or datasets, for "
            "folders MODEL/DATASET, of which none that is finished is done again."
        ),
    ] = None,
    image: ImageColumn = "image",
    caption: Annotated[
        str | None,
        typer.Option(
            help="Column of the caption that images are compared for, in the place of --image.",
            rich_help_panel=COLUMNS_PANEL,
        ),
    ] = None,
    positive: PositiveColumns = None,
    negative: NegativeColumns = None,
    candidates: CandidateColumns = None,
    label: LabelColumn = None,
    pair: PairColumns = None,
    category: CategoryColumn = None,
    cluster: ClusterColumn = None,
    together: SetColumn = None,
    crop: CropColumn = None,
    text_only: Annotated[
        bool,
        typer.Option(
            "--text-only",
            help="Compare true captions with true and false ones, without images.",
            rich_help_panel=COLUMNS_PANEL,
        ),
    ] = False,
    image_data: ImageData = None,
    table: TableFiles = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a model and print its table; without arguments, the built-in model and data."""
    import json

    import rich

    models, datasets = models or ["shapes_clip"], dataset or ["shapes"]
    _check_names(models, datasets, adapter)
    from hard_positives import (
        Columns,
        evaluate_all,
        render_authors,
        render_table,
        write_figures,
    )
    from hard_positives import evaluate as evaluate_model
    from hard_positives.machine import is_main_process
    from hard_positives.names import printable

    columns = Columns(
        image=image,
        caption=caption,
        positives=positive or (),
        negatives=negative or (),
        candidates=candidates or (),
        label=label,
        pairs=[cast(tuple[str, str], tuple(one.split(":"))) for one in pair or ()],
        category=category,
        cluster=cluster,
        set=together,
        text_only=text_only,
        crop=crop,
    )
    options: dict[str, Any] = {
        "columns": columns,
        "splits": split,
        "device": device,
        "dtype": dtype,
        "preprocessing": preprocessing,
        "question": question,
        "likelihood": likelihood,
        "adapter": adapter,
        "model_kwargs": model_kwargs,
        "base_url": base_url,
        "batch_size": batch_size,
        "num_workers": workers,
        "cache": cache,
        "progress": not quiet,
    }
    if len(models) > 1 or len(datasets) > 1:
        if output is None or revision or dataset_revision or image_data:
            raise ValueError(
                "Expected several models or datasets to be given with output and without "
                "revisions and image_data, got others. Give --output, revisions in runs of their "
                "own, and --image-data to hard-positives report."
            )
        tell = None if quiet or not is_main_process() else partial(typer.echo, err=True)
        results = evaluate_all(models, datasets, output, **options, tell=tell)
        if is_main_process():
            _show_all(results, as_json=as_json)
            _write_tables(write_figures, results, table)
        return
    [model_name], [dataset_name] = models, datasets
    if is_main_process():
        _check_files(output, dataset_name, image_data)
    result = evaluate_model(
        model_name,
        dataset_name,
        revision=revision,
        dataset_revision=dataset_revision,
        **options,
    )
    if not is_main_process():  # under accelerate launch one speaks for all
        return
    if output is not None:
        result.save(output)
    [result] = _with_image_data([result], image_data)
    _write_tables(write_figures, [result], table)
    if as_json:
        typer.echo(json.dumps({"signature": result.signature, **result.figures}, indent=2))
        return
    rich.print(render_table(result, dataset=dataset_name))
    if result.authors:
        rich.print(render_authors(result))
    typer.echo(printable(result.signature_line))  # in one piece, to be copied
    if (model_name, dataset_name) == ("shapes_clip", "shapes") and not quiet:
        typer.echo(NEXT_STEP)


def _check_names(models: list[str], datasets: list[str], adapter: str | None = None) -> None:
    """Say at once which names lead nowhere, before imports that take seconds."""
    from hard_positives.models.kinds import check_model_name
    from hard_positives.suite.benchmarks import check_dataset_name

    for model in models:
        check_model_name(model, adapter)
    for dataset in datasets:
        check_dataset_name(dataset)


def _check_files(output: Path | None, dataset: str, image_data: Path | None) -> None:
    """Refuse before hours of work, not after, what could not be written or read then."""
    from hard_positives.results.files import check_folder
    from hard_positives.suite.coco import coco_pictures

    if image_data is not None:
        coco_pictures(image_data, ())
    if output is not None:
        check_folder(output, dataset)


def _show_all(results: list["EvaluationResult"], *, as_json: bool) -> None:
    import json

    import rich

    from hard_positives import render_summary
    from hard_positives.names import printable

    if as_json:
        both = [{"signature": one.signature, **one.figures} for one in results]
        typer.echo(json.dumps(both, indent=2))
        return
    rich.print(render_summary(results))
    for result in results:
        typer.echo(printable(result.signature_line))


def _with_image_data(
    results: list["EvaluationResult"], image_data: Path | None
) -> list["EvaluationResult"]:
    from hard_positives.results.result import with_image_data

    return results if image_data is None else with_image_data(results, image_data)


def _write_tables(
    write: Callable[..., Path], results: list["EvaluationResult"], table: list[Path] | None
) -> None:
    for path in table or ():
        write(results, path)


@app.command()
@_in_sentences()
def models(as_json: Json = False) -> None:
    """List the kinds of models that can be scored, with an example of each and what it needs."""
    import json

    import rich

    from hard_positives.models.kinds import KINDS, kinds_table

    if not as_json:
        rich.print(kinds_table())
        return
    listed = [
        {
            "name": kind.name,
            "example": kind.example,
            "logit": kind.logit,
            "settings": sorted(kind.settings),
            "needs": kind.needs,
        }
        for kind in KINDS
    ]
    typer.echo(json.dumps(listed, indent=2))


@app.command()
@_in_sentences()
def benchmarks(
    name: Annotated[
        str | None, typer.Argument(help="One of them, to see all that its file says.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="A benchmark's file of your own: read some rows and show what it says."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the benchmarks that can be scored by name, and what each needs."""
    import json
    from dataclasses import asdict

    import rich

    from hard_positives.suite.benchmarks import known_benchmarks, read_benchmark
    from hard_positives.suite.listing import benchmark_in_full, benchmarks_table

    known = known_benchmarks()
    if name not in (None, *known):
        raise ValueError(f"Expected NAME to be one of {', '.join(known)}, got {name!r}.")
    if check is not None:
        from hard_positives.suite.checking import checked_benchmark

        rich.print(checked_benchmark(read_benchmark(check)))
    elif as_json:
        listed = [asdict(one) for one in known.values() if name in (None, one.name)]
        typer.echo(json.dumps(listed, indent=2))
    else:
        rich.print(benchmark_in_full(known[name]) if name else benchmarks_table(known.values()))


@app.command()
@_in_sentences()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Folders from `hard-positives evaluate --output`, of any datasets."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for index.html and report.md.")],
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="What was scored, for its pictures; repeat for more. If left out, the datasets "
            "that the results name."
        ),
    ] = None,
    image_data: ImageData = None,
    quiet: Quiet = False,
) -> None:
    """Write results as one web page that needs no network, and as Markdown."""
    from hard_positives import EvaluationResult, write_report
    from hard_positives.results.files import find_results

    folders = [found for given in results for found in find_results(given)]
    loaded = _with_image_data(list(map(EvaluationResult.load, folders)), image_data)
    page = write_report(loaded, output, dataset=dataset)
    if not quiet:
        typer.echo(f"Wrote {page}, and report.md, figures.csv and figures.tex beside it.")


@app.command()
@_in_sentences()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder with the results to start from.")],
    others: Annotated[
        list[Path], typer.Argument(metavar="SECOND", help="Folders with the results to judge.")
    ],
    image_data: ImageData = None,
    table: TableFiles = None,
    as_json: Json = False,
) -> None:
    """Compare models on the same rows: differences, intervals, p-values.

    Of more than two, each with the first, a row for each.
    """
    import json
    from dataclasses import asdict

    import rich

    from hard_positives import EvaluationResult, render_comparison, write_comparison
    from hard_positives import compare as compare_results
    from hard_positives.names import printable
    from hard_positives.results.tables import render_ranking

    loaded = [EvaluationResult.load(folder) for folder in (first, *others)]
    base, *judged = results = _with_image_data(loaded, image_data)
    _write_tables(write_comparison, results, table)
    if as_json:
        found = [list(map(asdict, compare_results(base, other))) for other in judged]
        typer.echo(json.dumps(found if len(found) > 1 else found[0], indent=2))
    else:
        rich.print(render_ranking(results) if judged[1:] else render_comparison(*results))
        for result in results:
            typer.echo(printable(result.signature_line))


@app.command()
@_in_sentences(resumes=_always)
def generate(
    captions: Annotated[
        str,
        typer.Argument(
            help="COCO's captions_*.json, NegCLIP's .tsv, a .txt with a caption a line, or a "
            "dataset's folder or Hub id."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; must not exist yet.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the images that a .json or .tsv names. Captions only if left out."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset.")] = "train",
    caption_column: Annotated[
        str, typer.Option(help="A dataset's column of captions.")
    ] = "caption",
    image_column: Annotated[str, typer.Option(help="A dataset's column of images.")] = "image",
    published_swap: Annotated[
        Path | None,
        typer.Option(help="hard_positives_ft/swap_hp.jsonl: use these instead of making them."),
    ] = None,
    published_replace: Annotated[
        Path | None,
        typer.Option(help="hard_positives_ft/replace_hp.jsonl: use these instead of making them."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Language model to ask, as its server names it. Rules if left out."),
    ] = None,
    base_url: BaseUrl = "http://localhost:8000/v1",
    plausible_by: Annotated[
        str | None,
        typer.Option(
            metavar="lm:NAME",
            help="Of all edits by rules, take the one whose likelihood as text is nearest to the "
            "caption's: a causal language model of transformers, Hub id or folder.",
        ),
    ] = None,
    temperature: Temperature = 0.7,
    max_in_flight: InFlight = 32,
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes for the rules. All cores if left out.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="datasets: this machine; ray: a Ray cluster (extra `ray`).")
    ] = "datasets",
    quiet: Quiet = False,
) -> None:
    """Make hard positives and hard negatives for captions: a training set.

    Start it again with the same options after an interruption, and it resumes.
    """
    import json

    from hard_positives import LanguageModel, Rules, read_captions
    from hard_positives import generate as generate_rows
    from hard_positives.generation.text_alone import describe

    published = {
        "hard_positive_swap": published_swap,
        "hard_positive_replace": published_replace,
    }
    editor: Any = Rules(seed)
    if plausible_by is not None:
        if model is not None or engine != "datasets" or workers not in (None, 1):
            raise ValueError(
                "Expected plausible_by to be given with the rules on this machine, in one process, "
                "got --model, --engine or --workers. Leave them out."
            )
        editor = _plausible(editor, plausible_by)
    elif model is not None:
        editor = LanguageModel(
            model,
            base_url,
            api_key=os.environ.get("HARD_POSITIVES_API_KEY"),
            temperature=temperature,
            seed=seed,
            max_in_flight=max_in_flight,
        )
    source = read_captions(
        captions,
        images=images,
        split=split,
        caption_column=caption_column,
        image_column=image_column,
    )
    for task, path in published.items():
        source = source if path is None else source.with_published(path, task)
    generate_rows(source, output, editor, workers=workers, engine=engine, progress=not quiet)
    if not quiet:
        record = json.loads((output / "generation.json").read_text("utf-8"))
        for line in describe(record.get("text_alone", {})):
            typer.echo(line)
        typer.echo(f"Wrote {output}; generation.json there has the counts.")


def _plausible(editor: Any, name: str) -> Any:
    """Let a language model choose among an editor's edits."""
    from hard_positives.generation.plausible import Plausible
    from hard_positives.models.blind import BlindModel
    from hard_positives.models.loading import load_model
    from hard_positives.names import public_name

    blind = load_model(name)
    if not isinstance(blind, BlindModel):
        raise TypeError(
            f"Expected plausible_by to be a language model that sees no picture, got {name!r}. "
            "Write lm: and the Hub id or folder of a causal language model."
        )
    return Plausible(editor, blind, str(public_name(name)))


@app.command()
@_in_sentences()
def augment(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A name that `hard-positives benchmarks` lists, a dataset's folder or Hub id."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; must not exist yet.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Split to take; repeat for more. All if left out.")
    ] = None,
    dataset_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the dataset on the Hub.")
    ] = None,
    image: ImageColumn = "image",
    positive: PositiveColumns = None,
    negative: NegativeColumns = None,
    candidates: CandidateColumns = None,
    label: LabelColumn = None,
    pair: PairColumns = None,
    category: CategoryColumn = None,
    cluster: ClusterColumn = None,
    together: SetColumn = None,
    crop: CropColumn = None,
    model: Annotated[
        str | None,
        typer.Option(help="Language model to ask, as its server names it. Rules if left out."),
    ] = None,
    base_url: BaseUrl = "http://localhost:8000/v1",
    temperature: Temperature = 0.7,
    max_in_flight: InFlight = 32,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Give every comparison of a benchmark a hard positive, on the words of its hard negative.

    The result is a dataset to be scored with `hard-positives evaluate --dataset`.
    """
    import json

    import rich

    _check_names([], [dataset])
    from hard_positives import Columns, LanguageModel, Rules
    from hard_positives import augment as augment_rows
    from hard_positives.generation.augment import AUGMENTATION, coverage_table

    columns = Columns(
        image=image,
        positives=positive or (),
        negatives=negative or (),
        candidates=candidates or (),
        label=label,
        pairs=[cast(tuple[str, str], tuple(one.split(":"))) for one in pair or ()],
        category=category,
        cluster=cluster,
        set=together,
        crop=crop,
    )
    editor: Rules | LanguageModel = Rules(seed)
    if model is not None:
        editor = LanguageModel(
            model,
            base_url,
            api_key=os.environ.get("HARD_POSITIVES_API_KEY"),
            temperature=temperature,
            seed=seed,
            max_in_flight=max_in_flight,
        )
    augment_rows(
        dataset,
        output,
        editor,
        columns=columns,
        splits=split,
        dataset_revision=dataset_revision,
        progress=not quiet,
    )
    if not quiet:
        rich.print(coverage_table(json.loads((output / AUGMENTATION).read_text("utf-8"))))
        typer.echo(f"Wrote {output}. Next: hard-positives evaluate MODEL --dataset {output}")


@app.command()
@_in_sentences()
def review(
    folder: Annotated[
        Path,
        typer.Argument(help="A dataset's folder, such as `hard-positives augment` writes."),
    ],
    accepted: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write with the rows that people accepted; must not exist yet. Left "
            "out, the page on which they judge is opened."
        ),
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(help="Who judges. Asked for on the page if left out.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split to judge; repeat for more. All if left out.")
    ] = None,
    port: Annotated[
        int, typer.Option(help="Of this machine, where the page is; 0 for any that is free.")
    ] = 0,
    quiet: Quiet = False,
) -> None:
    """Let people judge rows on a local page, and write those that they accepted.

    Each judgment is kept at once in FOLDER/judgments.sqlite. The page is for this machine alone.
    """
    import json

    import rich

    _check_names([], [str(folder)])
    from hard_positives import write_accepted
    from hard_positives.review.accepted import REVIEW, summarise, summary_table
    from hard_positives.review.judgments import Judgments, read_judgments
    from hard_positives.review.loading import open_folder
    from hard_positives.review.server import ReviewServer, check_annotator

    if accepted is not None:
        write_accepted(folder, accepted, splits=split, progress=not quiet)
        rich.print(summary_table(json.loads((accepted / REVIEW).read_text("utf-8"))))
        if not quiet:
            typer.echo(
                f"Wrote {accepted}. Next: hard-positives evaluate MODEL --dataset {accepted}"
            )
        return
    name = None if annotator is None else check_annotator(annotator)
    reviewed = open_folder(folder, split)
    with (
        closing(Judgments(folder)) as judgments,
        ReviewServer(reviewed, judgments, name, port) as server,
        suppress(KeyboardInterrupt),
    ):
        typer.echo(f"Judge at {server.address} (Ctrl-C ends it; judgments are kept at once).")
        server.serve_forever()
    rich.print(summary_table(summarise(reviewed, read_judgments(folder))))
    if not quiet:
        typer.echo(f"Next: hard-positives review {folder} --accepted OUTPUT")


@app.command()
@_in_sentences(resumes=_always)
def finetune(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a CLIP, or shapes_clip.")],
    data: Annotated[
        str, typer.Option(help="Rows: a folder from `hard-positives generate`, or a Hub id.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the model.")],
    split: Annotated[
        str | None, typer.Option(help="Split of the data; needed where there are several.")
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(help="Triples to score on the way: a folder, a Hub id, or shapes."),
    ] = None,
    image_data: ImageData = None,
    recipe: Annotated[
        str, typer.Option(help="both, or as published: negclip, fsc_clip, trohn_text, read_clip.")
    ] = "both",
    hard_negatives: Annotated[
        str | None, typer.Option(help="batch: tell images from all of these; own: from its own.")
    ] = None,
    alignment: Annotated[
        float | None, typer.Option(help="Weight of pulling hard positives to captions.")
    ] = None,
    hard_negative_share: Annotated[
        float | None, typer.Option(help="Of the hard negatives, how many to use, 0 to 1.")
    ] = None,
    hard_positive_share: Annotated[
        float | None, typer.Option(help="Of the hard positives, how many to use, 0 to 1.")
    ] = None,
    hard_positive_kind: Annotated[
        str | None, typer.Option(help="Use hard positives made by replace, or by swap, only.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, over all processes together.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often every row is seen.")] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps until the learning rate is at its highest.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's, on matrices.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order and of what shares choose.")] = 0,
    checkpoint_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints, and scores on --held-out.")
    ] = 500,
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16 for mixed precision on a GPU.")
    ] = "float32",
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode images. Chosen if left out.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Tune a CLIP with hard positives and hard negatives.

    Options given beside --recipe change it. Start it again with the same options after an
    interruption, and it resumes from its last whole checkpoint.
    """
    from dataclasses import replace

    _check_names([model], [data, *filter(None, [held_out])])
    from hard_positives import RECIPES
    from hard_positives import finetune as finetune_model
    from hard_positives.finetuning.recipes import check_choice
    from hard_positives.machine import is_main_process

    changes = {
        "hard_negatives": hard_negatives,
        "alignment": alignment,
        "hard_negative_share": hard_negative_share,
        "hard_positive_share": hard_positive_share,
        "hard_positive_kind": hard_positive_kind,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
    }
    check_choice("recipe", recipe, list(RECIPES))
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    finetune_model(
        model,
        data,
        output,
        recipe=replace(RECIPES[recipe], **given),
        split=split,
        held_out=held_out,
        image_data=image_data,
        seed=seed,
        checkpoint_steps=checkpoint_steps,
        dtype=dtype,
        num_workers=workers,
        progress=not quiet,
    )
    if is_main_process() and not quiet:
        typer.echo(f"Wrote {output}. Next: hard-positives evaluate {output}")


@publish.command("dataset")
@_in_sentences(resumes=_always)
def publish_dataset(
    folder: Annotated[Path, typer.Argument(help="Folder from `hard-positives build`.")],
    repo_id: Annotated[str, typer.Argument(help="organization/name of the dataset on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Offer a pull request instead of committing.")
    ] = False,
    evaluation_framework: Annotated[
        str,
        typer.Option(help="What eval.yaml names, out of the Hub's own list; none: no eval.yaml."),
    ] = "mteb",
) -> None:
    """Publish a built folder with a complete card, a picture of examples and its eval.yaml."""
    from hard_positives.hub import dataset as hub

    framework = None if evaluation_framework == "none" else evaluation_framework
    _tell(
        hub.publish_dataset(
            folder, repo_id, private=private, create_pr=create_pr, evaluation_framework=framework
        )
    )
    if framework:
        typer.echo(
            f"eval.yaml names {framework}. Results can name its tasks now; the Hub shows a "
            "leaderboard once it lists the dataset as a benchmark (beta: ask in the discussion at "
            f"{hub.REGISTER}). It sorts by value: of a task that ends in lower_is_better, the "
            "lowest is best."
        )


@publish.command("model")
@_in_sentences(resumes=_always)
def publish_model(
    folder: Annotated[Path, typer.Argument(help="Folder from `hard-positives finetune`.")],
    repo_id: Annotated[str, typer.Argument(help="organization/name of the model on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Offer a pull request instead of committing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print which files would go up.")
    ] = False,
) -> None:
    """Publish a tuned model with its card, its record and its figures on held-out rows."""
    from hard_positives.hub import model as hub

    publication = hub.publish_model(
        folder, repo_id, private=private, create_pr=create_pr, dry_run=dry_run
    )
    typer.echo(publication.diff, nl=False)
    if not (dry_run and publication.diff):
        _tell(publication)


@publish.command("metric")
@_in_sentences()
def publish_metric(
    repo_id: Annotated[str, typer.Argument(help="organization/hard_positive_metric.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Offer a pull request instead of committing.")
    ] = False,
) -> None:
    """Publish the metric as a Space, for evaluate.load and with a page to try it."""
    from hard_positives.hub import metric as hub

    _tell(hub.publish_metric(repo_id, private=private, create_pr=create_pr))


@publish.command("results")
@_in_sentences()
def publish_results(
    folder: Annotated[Path, typer.Argument(help="Folder from `hard-positives evaluate --output`.")],
    repo_id: Annotated[str, typer.Argument(help="organization/name of the evaluated model.")],
    create_pr: Annotated[
        bool, typer.Option(help="Offer a pull request, or commit to the main branch.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would change.")
    ] = False,
) -> None:
    """Put results on the model's page; the rest of its card keeps every byte."""
    from hard_positives.hub import results as hub
    from hard_positives.names import printable

    publication = hub.publish_results(folder, repo_id, create_pr=create_pr, dry_run=dry_run)
    if dry_run and publication.diff:  # of a card that others have written
        for line in publication.diff.removesuffix("\n").split("\n"):
            typer.echo(printable(line.removesuffix("\r")))
    else:
        _tell(publication)


def _tell(publication: "Publication") -> None:
    from hard_positives.names import printable

    done = "Published" if publication.changed else "Nothing to change"
    typer.echo(f"{done}: {printable(publication.url)}")


@app.command()
@_in_sentences()
def cache(
    empty: Annotated[bool, typer.Option(help="Remove all of it.")] = False,
) -> None:
    """Show what the embedding cache holds, last used first, or empty it."""
    from hard_positives.scoring.cache import cache_root, list_cache, trim_cache

    held = trim_cache(0) if empty else list_cache()
    for model in held:
        typer.echo(f"{model.size / 1e6:10,.1f} MB  {model.folder.name[:8]}  {model.name}")
    total = sum(model.size for model in held) / 1e6
    typer.echo(f"{total:10,.1f} MB  {'removed from' if empty else 'in'} {cache_root()}")
