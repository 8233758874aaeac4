"""Publish on the Hugging Face Hub: the dataset, the metric's Space, results on a model's card.

    Parquet folder --publish_dataset--> dataset repository
    hard_positive_metric/ --publish_metric--> Space
    saved result --publish_results--> pull request to a model repository

Every publication is one commit on top of the commit that was read, so that it arrives whole or not
at all, and a repetition changes nothing. Where to, with which token and through which proxy is
`huggingface_hub`'s business (``HF_ENDPOINT``, ``HF_TOKEN``, ...). Nothing here scores a model.
"""

import difflib
import io
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    Discussion,
    EvalResultEntry,
    HfApi,
    eval_result_entries_to_yaml,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from PIL import Image, ImageDraw, ImageFont, ImageOps

import hard_positive_metric
from hard_positives.hub.cards import add_metadata, merge_results
from hard_positives.models.loading import EMBEDDED_MODEL
from hard_positives.names import printable, public_url
from hard_positives.results.evaluation import EvaluationResult, facts_of
from hard_positives.suite.comparisons import CAPTION_COLUMNS
from hard_positives.suite.sources import EMBEDDED_DATASET
from hard_positives_dataset.builder import LICENSE as VISUAL_GENOME_TERMS
from hard_positives_dataset.images import open_image_bytes

HUB = "https://huggingface.co"
TASK = "zero-shot-image-classification"
FIGURES = {
    "original_accuracy": "Original accuracy",
    "augmented_accuracy": "Augmented accuracy",
    "brittleness": "Brittleness",
    "set_accuracy": "Set accuracy",
}
METRIC_NAME = "hard_positive_metric"
METRIC_FILES = ("README.md", "app.py", "requirements.txt", f"{METRIC_NAME}.py")
# What results.json must say before its numbers go onto a model's page.
_SIGNED = (
    ("model", "id"),
    ("model", "revision"),
    ("model", "weights_sha256"),
    ("processor", "sha256"),
    ("dtype",),
    ("dataset", "id"),
    ("dataset", "revision"),
    ("dataset", "content_sha256"),
    ("versions", "hard-positives"),
)
_PICTURE = "examples.png"
_NUM_EXAMPLES = 4
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
_CARD_METADATA = {
    "pretty_name": "Hard Positives",
    "language": ["en"],
    "task_categories": [TASK],
    "tags": ["compositionality", "hard-positives", "hard-negatives", "vision-language"],
}
# The images are under CC BY 4.0; the captions came without a licence. No name of the Hub's says so.
_VISUAL_GENOME_METADATA = {
    "license": "other",
    "license_name": "images-cc-by-4.0-captions-not-stated",
    "license_link": "https://github.com/amitakamath/hard_positives",
    "source_datasets": ["extended|other-visual-genome"],
}
_ADVICE = {
    401: (
        "Log in with `hf auth login` or set HF_TOKEN, and check the name: without a valid token "
        "the Hub answers so for repositories that are missing or private, too."
    ),
    403: "Use a token that may write there, or offer the change with --create-pr.",
    404: "Check the name; a private repository wants a token that may read it.",
    409: "Someone else is writing there: run the same command again.",
    412: "It has changed since it was read: run the same command again.",
    429: "Too many requests: wait some minutes, then run the same command again.",
}
_UNAVAILABLE = "Wait some minutes, then run the same command again: what has arrived stays."


class HubError(OSError):
    """The Hub refused or could not be reached. The message says what to do."""


@dataclass(frozen=True)
class Publication:
    """What has become of something published.

    Attributes:
        url: The commit, or the pull request.
        changed: Whether anything was sent; False where all of it was there.
        diff: What changes in the text files, as a unified diff; only of results.
    """

    url: str
    changed: bool
    diff: str = ""


def publish_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    evaluation_framework: str | None = None,
) -> Publication:
    """Publish a Parquet folder as a dataset repository; it is made if it is not there.

    The Parquet files go up as they are. The card gets what its front matter lacks (task, language,
    size, the terms of Visual Genome's images) and a picture of examples. Parquet files in the
    repository's ``data/`` that the folder lacks are removed in the same commit. An interrupted
    upload goes on where it stopped: what the Hub has is not sent again.

    Args:
        folder: From ``hard-positives build`` or :func:`hard_positives_dataset.build_parquet`.
        repo_id: ``organization/name``.
        private: Whether a new repository is private. One that is there must be so already.
        create_pr: Offer a pull request to a repository that is there, instead of a commit.
        evaluation_framework: Adds an ``eval.yaml`` that names this framework and makes the
            repository a benchmark. The Hub takes only names of a list of its own.

    Returns:
        The commit or pull request.

    Raises:
        FileNotFoundError: No card, or no Parquet files in ``data/``.
        ValueError: A file is a link, an image has a path or is no image, the card states no
            licence, or a repository that should be private is public.
        HubError: The Hub refused or could not be reached. The repository is unchanged or, where
            only the answer was lost, complete.

    Examples:
        >>> publish_dataset("REPLACE", "org/hard-positives", private=True)  # doctest: +SKIP
    """
    folder = Path(folder)
    files = _dataset_files(folder)
    card = _dataset_card((folder / "README.md").read_text(encoding="utf-8"), files, repo_id)
    additions: dict[str, bytes | Path] = {
        "README.md": card.encode(),
        _PICTURE: _draw_examples(_examples(files)),
        **{f"data/{file.name}": file for file in files},
    }
    if evaluation_framework is not None:
        additions["eval.yaml"] = _benchmark_file(_splits(files), evaluation_framework)
    title = "Publish the hard-positives benchmark"
    with _hub_errors(repo_id):
        repository = _open(repo_id, "dataset", title, create_pr=create_pr, private=private)
        return repository.commit(additions, mirrored="data/*.parquet")


def publish_metric(repo_id: str, *, private: bool = False, create_pr: bool = False) -> Publication:
    """Publish the metric as a Space: a page to try it, and what ``evaluate.load`` reads.

    Args:
        repo_id: ``organization/hard_positive_metric``.
        private: As for :func:`publish_dataset`, like ``create_pr``.

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
    with _hub_errors(repo_id):
        title = "Publish the hard-positive metric"
        repository = _open(repo_id, "space", title, create_pr=create_pr, private=private)
        return repository.commit({name: folder / name for name in METRIC_FILES})


def publish_results(
    folder: str | Path, repo_id: str, *, create_pr: bool = True, dry_run: bool = False
) -> Publication:
    """Publish a saved result on its model's page, as a pull request unless told otherwise.

    Each split gives three figures, in the paper's mean over categories: as published each in a file
    of its own in ``.eval_results/``, and all of them, with those of the clean rows, in the card's
    ``model-index``. The rest of the card keeps its bytes. Figures of the same dataset and split are
    replaced, and an open pull request of the same user is updated.

    The figures are computed from the rows, not read. What the signature says of the rows is
    computed again, too. What it says of model, processor and versions cannot be: who edits that, or
    the logits, and renews the hashes of the files, is not noticed.

    Args:
        folder: From ``hard-positives evaluate --output`` or ``EvaluationResult.save``.
        repo_id: The model that was evaluated.
        create_pr: Offer a pull request instead of committing to the main branch.
        dry_run: Send nothing; tell in ``diff`` what would change on the main branch.

    Returns:
        The commit or pull request, and the difference.

    Raises:
        FileNotFoundError: The folder holds no complete result.
        ValueError: A file was edited; the signature is incomplete, or of the built-in model or
            data, of another model or of other rows; or the card cannot be edited.
        HubError: The Hub refused or could not be reached. The repository is unchanged or, where
            only the answer was lost, complete.

    Examples:
        >>> publish_results("results/clip", "org/clip", dry_run=True).diff  # doctest: +SKIP
    """
    result = EvaluationResult.load(folder)
    _check_signature(result.signature, repo_id)
    _check_rows(result)
    with _hub_errors(repo_id):
        title = f"Add results on {result.signature['dataset']['id']}"
        repository = _open(repo_id, "model", title, create_pr=create_pr and not dry_run)
        card = repository.read("README.md")
        new = {"README.md": _model_card(card, result), **_eval_results(result)}
        old = {"README.md": card, **{path: repository.read(path) for path in [*new][1:]}}
        diff = "".join(_difference(path, old[path], new[path]) for path in new)
        if dry_run or old == new:
            return Publication(public_url(repository.url), False, diff)
        published = repository.commit(new)
    return Publication(published.url, published.changed, diff)


@dataclass(frozen=True)
class _Repository:
    """A repository at the commit on which the next one is to stand."""

    id: str
    type: str
    url: str
    revision: str
    parent: str
    title: str
    create_pr: bool

    def read(self, path: str) -> bytes | None:
        try:
            file = HfApi().hf_hub_download(self.id, path, repo_type=self.type, revision=self.parent)
        except RemoteEntryNotFoundError:  # Not its base class, which a dropped line raises, too.
            return None
        return Path(file).read_bytes()

    def commit(
        self, additions: Mapping[str, bytes | Path], mirrored: str | None = None
    ) -> Publication:
        """Add files, and delete those that fit the pattern ``mirrored`` and are not added."""
        api = HfApi()
        place: dict[str, Any] = {"repo_type": self.type, "revision": self.revision}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content) for path, content in additions.items()
        ]
        if mirrored is not None:
            operations += [
                CommitOperationDelete(path, is_folder=False)
                for path in api.list_repo_files(self.id, **place)
                if PurePosixPath(path).match(mirrored) and path not in additions
            ]
        info = api.create_commit(
            self.id,
            operations,
            commit_message=self.title,
            parent_commit=self.parent,
            create_pr=self.create_pr,
            **place,
        )
        url = info.pr_url or (info.commit_url if self.revision == "main" else self.url)
        return Publication(public_url(url), info.oid != self.parent)


def _open(
    repo_id: str, repo_type: str, title: str, *, create_pr: bool, private: bool = False
) -> _Repository:
    """Find, or make, what a commit goes to: the main branch or our open pull request."""
    api = HfApi()
    if repo_type != "model" and not create_pr:
        api.create_repo(
            repo_id,
            repo_type=repo_type,
            private=private or None,
            exist_ok=True,
            space_sdk="gradio" if repo_type == "space" else None,
        )
    info = api.repo_info(repo_id, repo_type=repo_type)
    if private and not info.private:
        raise ValueError(
            f"Expected {repo_id} to be private, got a public repository. Nothing was sent. Make it "
            "private in its settings, or choose another name."
        )
    folder = {"model": "", "dataset": "datasets/", "space": "spaces/"}[repo_type]
    url, revision, parent = f"{api.endpoint}/{folder}{repo_id}", "main", info.sha
    request = _own_pull_request(repo_id, repo_type, title) if create_pr else None
    if request is not None:
        url, revision, create_pr = request.url, request.git_reference, False
        parent = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
    return _Repository(repo_id, repo_type, url, revision, parent, title, create_pr)


def _own_pull_request(repo_id: str, repo_type: str, title: str) -> Discussion | None:
    """Find the open one of an earlier run, or every repetition would add another."""
    api = HfApi()
    requests = api.get_repo_discussions(
        repo_id,
        repo_type=repo_type,
        author=api.whoami()["name"],
        discussion_type="pull_request",
        discussion_status="open",
    )
    return next((request for request in requests if request.title == title), None)


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Say what to do when the Hub refuses or cannot be reached."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while not isinstance(cause, (HTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError)):
            if cause is None:
                raise
            cause = cause.__cause__
        raise HubError(
            f"Expected the Hub to take this for {repo_id}, got {_explain(cause)}"
        ) from error


def _explain(cause: BaseException) -> str:
    if isinstance(cause, OfflineModeIsEnabled):
        return "offline mode. Unset HF_HUB_OFFLINE."
    if isinstance(cause, LocalTokenNotFoundError):
        return f"no token to show it. {_ADVICE[401]}"
    if not isinstance(cause, HfHubHTTPError):
        return (
            f"a broken connection ({type(cause).__name__}). Run the same command again: what has "
            "arrived stays and is not sent twice."
        )
    status = cause.response.status_code
    advice = _ADVICE.get(status, _UNAVAILABLE if status >= 500 else "")
    wait = cause.response.headers.get("Retry-After")
    if wait is not None:
        advice = f"The Hub asks to wait for {wait} s. {advice}"
    reason = _without_secrets(cause.server_message or cause.response.reason_phrase)
    return f"{status} ({reason}). {advice}".rstrip()


def _without_secrets(message: str) -> str:
    """What a server said, in case that it repeats what was said to it."""
    message = message.replace(get_token() or "hf_***", "hf_***")
    message = re.sub(r"\bhf_\w+", "hf_***", message)
    return printable(re.sub(r"https?://\S+", lambda address: public_url(address[0]), message))


def _dataset_files(folder: Path) -> list[Path]:
    """The Parquet files, after checks that nothing but images of this folder would be sent."""
    files = sorted(folder.glob("data/*.parquet"))
    if not files or not (folder / "README.md").is_file():
        raise FileNotFoundError(
            f"Expected {folder} to hold README.md and data/*.parquet, got "
            f"{'no Parquet files' if not files else 'no README.md'}. Make it with hard-positives "
            "build."
        )
    for file in (folder / "README.md", *files):
        if file.resolve() != folder.resolve() / file.relative_to(folder):
            raise ValueError(
                f"Expected {file} to be a file of its own, got a link to {file.resolve()}. Put "
                "the file there itself."
            )
    for file in files:
        _check_images(file)
    return files


def _check_images(file: Path) -> None:
    """Refuse anything in the column ``image`` but bytes of images, above all paths."""
    reader, first_row = pq.ParquetFile(file), 0
    missing = {"image", *CAPTION_COLUMNS} - set(reader.schema_arrow.names)
    if missing:
        raise ValueError(
            f"Expected {file} to have the columns of this benchmark, got none called "
            f"{', '.join(sorted(missing))}. Make it with hard-positives build."
        )
    for batch in reader.iter_batches(batch_size=256, columns=["image"]):
        images = pa.array(batch.column("image"))
        contents, paths = images.field("bytes"), images.field("path")
        problem = None
        if images.null_count or contents.null_count:
            problem = "rows without bytes"
        elif paths.null_count < len(paths):
            problem = f"the path {printable(paths.drop_null()[0])}"
        else:
            problems = (_problem_of_image(content.as_py()) for content in contents.unique())
            problem = next(filter(None, problems), None)
        if problem:
            raise ValueError(
                f"Expected every image of {file} to be the bytes of an image and no path, got "
                f"{problem} in rows {first_row} to {first_row + len(batch) - 1}. Nothing was sent. "
                "Make the folder with hard-positives build."
            )
        first_row += len(batch)


def _problem_of_image(content: bytes) -> str | None:
    try:
        open_image_bytes(content)
    except ValueError as problem:
        return str(problem)
    return None


def _splits(files: Sequence[Path]) -> list[str]:
    return list(dict.fromkeys(file.name.split("-")[0] for file in files))


def _dataset_card(card: str, files: Sequence[Path], repo_id: str) -> str:
    """The folder's card with the metadata that it lacks, and the picture of examples."""
    num_rows = sum(pq.read_metadata(file).num_rows for file in files)
    size = next((name for limit, name in _SIZES.items() if num_rows < limit), "n>1M")
    terms = _VISUAL_GENOME_METADATA if VISUAL_GENOME_TERMS in card else {}
    card = add_metadata(card, {**terms, **_CARD_METADATA, "size_categories": [size]})
    if not DatasetCard(card).data.get("license"):
        raise ValueError(
            "Expected the card to state a licence, got none. Add a line such as `license: "
            "cc-by-4.0` to the front matter of README.md, and what it holds for to the text."
        )
    section = (
        f"\n## Examples\n\n![Images, each with its three captions]({_PICTURE})\n\n"
        "Below each image: the caption; in green the hard positive, still true; in red the hard "
        "negative, false.\n"
    )
    above, heading, below = card.partition("\n## ")
    card = f"{above}{section}{heading}{below}"
    return card.replace("<this folder or repository>", repo_id)


def _benchmark_file(splits: Sequence[str], evaluation_framework: str) -> bytes:
    benchmark = {
        "name": "Hard Positives",
        "description": (
            "Does a model prefer what is true, reworded or not, to what is false? Figures are "
            "fractions, means over categories."
        ),
        "evaluation_framework": evaluation_framework,
        "tasks": [
            {"id": f"{split}_{figure}", "config": "default", "split": split}
            for split in splits
            for figure in FIGURES
            if figure != "set_accuracy"  # the rows of a published dataset are no sets
        ],
    }
    return _yaml(benchmark)


def _examples(files: Sequence[Path]) -> list[dict[str, Any]]:
    """A few rows without flaws, of different images and as many categories as there are."""
    by_category = defaultdict(dict)
    for split in _splits(files):
        reader = pq.ParquetFile(next(f for f in files if f.name.startswith(f"{split}-")))
        wanted = {"image", *CAPTION_COLUMNS, "category", "flaws"} & set(reader.schema_arrow.names)
        for row in next(reader.iter_batches(batch_size=512, columns=sorted(wanted))).to_pylist():
            if not row.get("flaws"):
                images = by_category[row.get("category") or split]
                images.setdefault(row["image"]["bytes"], row)
    turns = zip_longest(*(images.values() for images in by_category.values()))
    return [row for row in chain.from_iterable(turns) if row][:_NUM_EXAMPLES]


def _draw_examples(rows: Sequence[dict[str, Any]]) -> bytes:
    """Images side by side above their captions: a PNG for the card."""
    width, height, gap = 240, 180, 20
    font = ImageFont.load_default(15)
    canvas = Image.new("RGB", (gap + len(rows) * (width + gap), height + 400), "white")
    draw, bottom = ImageDraw.Draw(canvas), 0.0
    for place, row in enumerate(rows):
        left, top = gap + place * (width + gap), float(gap)
        image = open_image_bytes(row["image"]["bytes"]).convert("RGB")
        canvas.paste(ImageOps.pad(image, (width, height), color="white"), (left, gap))
        top += height + 12
        for column, colour in zip(CAPTION_COLUMNS, ("black", "#18703a", "#b3261e"), strict=True):
            text = "\n".join(textwrap.wrap(row[column], 32, max_lines=3)) or "(empty)"
            draw.multiline_text((left, top), text, colour, font)
            top = draw.multiline_textbbox((left, top), text, font)[3] + 10
        bottom = max(bottom, top)
    canvas = canvas.crop((0, 0, canvas.width, bottom + gap))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _check_signature(signature: dict[str, Any], repo_id: str) -> None:
    advice = f"Run hard-positives evaluate {repo_id} --dataset <organization/name> --output DIR."
    named = {part: signature.get(part, {}).get("id") for part in ("model", "dataset")}
    for part, built_in in {"model": EMBEDDED_MODEL, "dataset": EMBEDDED_DATASET}.items():
        if named[part] == built_in:
            raise ValueError(
                f"Expected results of a model on the benchmark, got the built-in {part} "
                f"{built_in}, which only shows how things work. {advice}"
            )
    missing = [".".join(keys) for keys in _SIGNED if not _look_up(signature, keys)]
    if missing:
        raise ValueError(
            f"Expected the signature in results.json to be complete, got no {', '.join(missing)}. "
            "What comes from folders cannot be checked by others: publish model and data first. "
            f"{advice}"
        )
    if named["model"] != repo_id:
        raise ValueError(
            f"Expected results of {repo_id}, got results of {named['model']}. Publish them there. "
            f"For results of this model: {advice}"
        )


def _check_rows(result: EvaluationResult) -> None:
    """Refuse a signature that says of the rows what they are not."""
    facts = facts_of(result.scores)
    of_dataset = facts.pop("dataset").items()
    expected: dict[tuple[str, ...], Any] = {("dataset", key): value for key, value in of_dataset}
    expected |= {(key,): value for key, value in facts.items()}
    wrong = [
        ".".join(keys) for keys in expected if _look_up(result.signature, keys) != expected[keys]
    ]
    if wrong:
        raise ValueError(
            "Expected the signature in results.json to fit the rows in scores.parquet, got another "
            f"{', '.join(wrong)}. One of the files was edited: evaluate again."
        )


def _look_up(values: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _eval_results(result: EvaluationResult) -> dict[str, bytes]:
    """A file for each figure of each split: the Hub takes one value a task."""
    dataset = result.signature["dataset"]
    files = {}
    for split, metrics in result.metrics["as_published"].items():
        for figure in filter(metrics["macro"].__contains__, FIGURES):
            task = f"{split}_{figure}"
            entry = EvalResultEntry(
                dataset_id=dataset["id"],
                task_id=task,
                value=_rounded(metrics["macro"][figure]),
                dataset_revision=dataset["revision"],
                source_url=f"{HUB}/datasets/{dataset['id']}",
                source_name="hard-positives",
                notes=_notes(result, split, figure),
            )
            path = f".eval_results/{dataset['id'].replace('/', '--')}--{task}.yaml"
            files[path] = _yaml(eval_result_entries_to_yaml([entry]))
    return files


def _notes(result: EvaluationResult, split: str, figure: str) -> str:
    metrics, signature = result.metrics["as_published"][split], result.signature
    groups = list(metrics["groups"])
    mean = f"mean over {' and '.join(groups)}, " if len(groups) > 1 else ""
    macro, clean = metrics["macro"], result.metrics["clean"].get(split)
    low, high = (macro[f"{figure}_ci_{end}"] for end in ("low", "high"))
    interval = "too few images for an interval"
    if low is not None:
        interval = f"95 % interval {_rounded(low)} to {_rounded(high)}"
    without = f", {_rounded(clean['macro'][figure])} on rows without flaws" if clean else ""
    return (
        f"{mean}{metrics['num_examples']} rows, {interval}{without}; a tie is wrong; "
        f"{signature['dtype']}; model revision {signature['model']['revision']}; "
        f"hard-positives {signature['versions']['hard-positives']}"
    )


def _model_card(card: bytes | None, result: EvaluationResult) -> bytes:
    dataset = result.signature["dataset"]
    results = [
        {
            "task": {"type": TASK, "name": "Image to caption, with hard positives"},
            "dataset": {
                "type": dataset["id"],
                "name": f"Hard Positives, {split}",
                "split": split,
                "revision": dataset["revision"],
            },
            "metrics": list(_card_metrics(result, split)),
            "source": {"name": "hard-positives", "url": f"{HUB}/datasets/{dataset['id']}"},
        }
        for split in result.metrics["as_published"]
    ]
    name = result.signature["model"]["id"].split("/")[-1]
    return merge_results((card or b"").decode(), name, results, _identity).encode()


def _card_metrics(result: EvaluationResult, split: str) -> Iterator[dict[str, Any]]:
    for view, title in {"as_published": "as published", "clean": "rows without flaws"}.items():
        metrics = result.metrics[view].get(split)
        if metrics is None:
            continue
        for figure in filter(metrics["macro"].__contains__, FIGURES):
            yield {
                "type": figure,
                "value": _rounded(metrics["macro"][figure]),
                "name": f"{FIGURES[figure]}, {title}",
                "args": {"view": view},
            }


def _identity(result: dict[str, Any]) -> tuple | None:
    """The dataset and split of a result that we have written; None for other people's."""
    metrics = result["metrics"]
    if not metrics or any(m["type"] not in FIGURES or m.get("verified") for m in metrics):
        return None
    return result["dataset"]["type"], result["dataset"].get("split")


def _rounded(fraction: float) -> float:
    return round(fraction, 4)


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10**9).encode()


def _difference(path: str, old: bytes | None, new: bytes) -> str:
    before, after = ((text or b"").decode().splitlines(True) for text in (old, new))
    source = f"a/{path}" if old is not None else "/dev/null"
    return "".join(difflib.unified_diff(before, after, source, f"b/{path}"))
