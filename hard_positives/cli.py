"""The command line: parses and calls; nothing else.

Heavy imports stand inside the commands, so that ``--help`` answers at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hard_positives.hub import Publication

app = typer.Typer(
    name="hard-positives",
    help="Measure how well image-text models understand composition, with hard positives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
publish = typer.Typer(
    help="Publish the dataset, the metric or results on the Hugging Face Hub.",
    no_args_is_help=True,
)
app.add_typer(publish, name="publish")
NEXT_STEP = (
    "A real one: hard-positives build REPLACE --split replace && "
    "hard-positives evaluate openai/clip-vit-base-patch32 --dataset REPLACE"
)


@contextmanager
def _input_errors() -> Iterator[None]:
    """Show what is wrong with the input as a sentence, without a traceback; exit code 1."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


@app.command()
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
) -> None:
    """Build the benchmark as Parquet from the published annotations and Visual Genome's images."""
    from hard_positives_dataset import HardPositives, build_parquet

    chosen = {"annotation_dir": annotations, "images": images, "splits": split}
    given = {name: value for name, value in chosen.items() if value}
    with _input_errors():
        builder = HardPositives(config_name="visual_genome", **given)
        build_parquet(builder.as_streaming_dataset(), output)
    typer.echo(f"Built {output}. Next: hard-positives evaluate MODEL --dataset {output}")


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Hub id or folder of a CLIP-like model, or the tiny built-in one.")
    ] = "shapes_clip",
    dataset: Annotated[
        str,
        typer.Option(help="Folder from `hard-positives build`, a Hub id, or the built-in world."),
    ] = "shapes",
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
    batch_size: Annotated[
        int | None, typer.Option(help="Images a batch. Chosen for the device if left out.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode images. Chosen if left out.")
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Keep embeddings on disk, and use those that are there.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option(help="Folder for results.json and scores.parquet.")
    ] = None,
) -> None:
    """Score a model and print its table; without arguments, the built-in model and data."""
    import rich

    from hard_positives import evaluate as evaluate_model
    from hard_positives import render_table
    from hard_positives.encoders import is_main_process

    with _input_errors():
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)  # before hours of work, not after
        result = evaluate_model(
            model,
            dataset,
            splits=split,
            revision=revision,
            dataset_revision=dataset_revision,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            num_workers=workers,
            cache=cache,
        )
        if not is_main_process():  # under accelerate launch one speaks for all
            return
        if output is not None:
            result.save(output)
    rich.print(render_table(result))
    if (model, dataset) == ("shapes_clip", "shapes"):
        rich.print(NEXT_STEP)


@publish.command("dataset")
def publish_dataset(
    folder: Annotated[Path, typer.Argument(help="Folder from `hard-positives build`.")],
    repo_id: Annotated[str, typer.Argument(help="organization/name of the dataset on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Offer a pull request instead of committing.")
    ] = False,
    evaluation_framework: Annotated[
        str | None,
        typer.Option(help="Add an eval.yaml with this framework, out of the Hub's own list."),
    ] = None,
) -> None:
    """Publish a built folder with a complete card and a picture of examples."""
    from hard_positives import hub

    with _input_errors():
        _tell(
            hub.publish_dataset(
                folder,
                repo_id,
                private=private,
                create_pr=create_pr,
                evaluation_framework=evaluation_framework,
            )
        )


@publish.command("metric")
def publish_metric(
    repo_id: Annotated[str, typer.Argument(help="organization/hard_positive_metric.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Offer a pull request instead of committing.")
    ] = False,
) -> None:
    """Publish the metric as a Space, for evaluate.load and with a page to try it."""
    from hard_positives import hub

    with _input_errors():
        _tell(hub.publish_metric(repo_id, private=private, create_pr=create_pr))


@publish.command("results")
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
    from hard_positives import hub

    with _input_errors():
        publication = hub.publish_results(folder, repo_id, create_pr=create_pr, dry_run=dry_run)
        if dry_run and publication.diff:
            typer.echo(publication.diff, nl=False)
        else:
            _tell(publication)


def _tell(publication: "Publication") -> None:
    typer.echo(f"{'Published' if publication.changed else 'Nothing to change'}: {publication.url}")


@app.command()
def cache(
    empty: Annotated[bool, typer.Option(help="Remove all of it.")] = False,
) -> None:
    """Show what the embedding cache holds, last used first, or empty it."""
    from hard_positives.cache import cache_root, list_cache, trim_cache

    held = trim_cache(0) if empty else list_cache()
    for model in held:
        typer.echo(f"{model.size / 1e6:10,.1f} MB  {model.folder.name[:8]}  {model.name}")
    total = sum(model.size for model in held) / 1e6
    typer.echo(f"{total:10,.1f} MB  {'removed from' if empty else 'in'} {cache_root()}")
