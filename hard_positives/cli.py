"""The command line: parses and calls; nothing else.

Heavy imports stand inside the commands, so that ``--help`` answers at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="hard-positives",
    help="Measure how well image-text models understand composition, with hard positives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
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
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps. The fastest if left out.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="The encoders' type: float32, bfloat16 or float16.")
    ] = "float32",
    batch_size: Annotated[
        int | None, typer.Option(help="Images a batch. Chosen for the device if left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for results.json and scores.parquet.")
    ] = None,
) -> None:
    """Score a model and print its table; without arguments, the built-in model and data."""
    import rich

    from hard_positives import evaluate as evaluate_model
    from hard_positives import render_table

    with _input_errors():
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)  # before hours of work, not after
        result = evaluate_model(
            model,
            dataset,
            splits=split,
            revision=revision,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
        )
        if output is not None:
            result.save(output)
    rich.print(render_table(result))
    if (model, dataset) == ("shapes_clip", "shapes"):
        rich.print(NEXT_STEP)
