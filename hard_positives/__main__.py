"""``python -m hard_positives`` is the same program as ``hard-positives``."""

from hard_positives.cli import app

app()
