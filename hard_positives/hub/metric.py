"""Publish the metric as a Space: a page to try it, and what ``evaluate.load`` reads."""

from pathlib import Path

import hard_positive_metric
from hard_positives.hub.repository import Publication, hub_errors, open_repository

METRIC_NAME = "hard_positive_metric"
METRIC_FILES = ("README.md", "app.py", "requirements.txt", f"{METRIC_NAME}.py")


def publish_metric(repo_id: str, *, private: bool = False, create_pr: bool = False) -> Publication:
    """Publish the metric as a Space: a page to try it, and what ``evaluate.load`` reads.

    Args:
        repo_id: ``organization/hard_positive_metric``.
        private: As for `hard_positives.publish_dataset`, like ``create_pr``.

    Returns:
        The commit or pull request.

    Raises:
        ValueError: ``repo_id`` has another name.
        HubError: The Hub refused or could not be reached; the Space is unchanged.

    Examples:
        >>> publish_metric("org/hard_positive_metric")  # doctest: +SKIP
    """
    if repo_id.split("/")[-1] != METRIC_NAME:
        raise ValueError(
            f"Expected the Space to be called {METRIC_NAME}, got {repo_id}. evaluate.load reads "
            f"the file that has a Space's name: publish to <organization>/{METRIC_NAME}."
        )
    folder = Path(hard_positive_metric.__file__).parent
    with hub_errors(repo_id):
        title = "Publish the hard-positive metric"
        repository = open_repository(repo_id, "space", title, create_pr=create_pr, private=private)
        return repository.commit({name: folder / name for name in METRIC_FILES})
