"""``python -m hard_positives`` is the same program as ``hard-positives``."""

from hard_positives import interrupts


def main() -> None:
    """Run the command line."""
    interrupts.run(_commands)


def _commands() -> None:
    from hard_positives.cli import app

    app()


if __name__ == "__main__":
    main()
