"""The command line: parses and calls; nothing else.

Heavy imports stand inside the commands, so that ``--help`` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="hard-positives",
    help="Measure how well image-text models understand composition, with hard positives.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.command()
def build(
    output: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder or zip with Visual Genome's images; repeat for more."),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="Folder with original/ and hard_positive/; downloaded if left out."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="replace or swap; repeat for both (the default).")
    ] = None,
) -> None:
    """Build the benchmark as Parquet, from the published annotations and Visual Genome's images."""
