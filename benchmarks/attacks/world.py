"""The small data that commands are run on, and the commands: made once, attacked many times."""

import io
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from generative_speed import random_llava
from PIL import Image

import hard_positives
from attacks.commands import Run, contents, run_well
from attacks.stand_in import Hub
from hard_positives import EvaluationResult
from hard_positives_dataset.shapes import generate_rows

ROWS = 96
MODEL = Path(hard_positives.__file__).parent / "shapes_clip"


def write_sources(folder: Path, num_rows: int) -> None:
    """Write rows of the rendered world as annotations and images of the published form."""
    (folder / "images").mkdir(parents=True)
    sides = {name: defaultdict(list) for name in ("original", "hard_positive")}
    for row in generate_rows("replace", num_rows):
        number = row["image_id"].rpartition("-")[2]
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        picture.save(folder / "images" / f"{number}.jpg")
        entry = {"image_id": number, "image_path": f"data/VG_100K/{number}.jpg"}
        entry["false_caption"] = row["hard_negative"]
        for side, caption in {"original": "caption", "hard_positive": "hard_positive"}.items():
            file = f"vl_checklist_{row['category']}s.json"
            sides[side][file].append({**entry, "true_caption": row[caption]})
    for side, files in sides.items():
        (folder / side).mkdir()
        for file, entries in files.items():
            (folder / side / file).write_text(json.dumps(entries))


@dataclass(frozen=True)
class Command:
    """A command that writes a folder, and how to know what it has written.

    Attributes:
        name: Of the command.
        words: The command line for an output folder.
        mark: The file that says that a new output is whole.
        older: An earlier output that the command replaces, if it is of that kind.
        inputs: What it reads, by the name that a copy of it has beside the output.
        standing: What of an output must be that of the older or of the new one, whole.
        volatile: Files that hold times.
        scratch: Where the run stands that nobody disturbs.
    """

    name: str
    words: Callable[[Path], list[object]]
    mark: str = ""
    older: Path | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)
    standing: Callable[[Path], list[Any]] | None = None
    volatile: Sequence[str] = ()
    scratch: Path = field(default=Path(), repr=False)

    def begin(self, place: Path) -> None:
        """Make the place as it is before the command."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if self.older is not None:
            shutil.copytree(self.older, place / "out")
        for name, source in self.inputs.items():
            shutil.copytree(source, place / name)

    def line(self, place: Path) -> list[object]:
        """The command line that writes to a place."""
        return [*self.words(place / "out"), "--quiet"]

    def result(self, place: Path) -> dict[str, Any]:
        """What stands at a place, for comparison."""
        files = contents(place / "out")
        return {name: file for name, file in files.items() if name not in self.volatile}

    @cached_property
    def reference(self) -> tuple[Run, dict[str, Any]]:
        """A run that nobody disturbs, and its result."""
        place = self.scratch / "reference"
        self.begin(place)
        return run_well(self.line(place), place / "home"), self.result(place)

    def is_done(self, place: Path) -> bool:
        """Whether the new output is there, whole."""
        return self.result(place) == self.reference[1]

    def problem(self, place: Path) -> str:
        """What is wrong with what stands at a place after a fault; empty where nothing is."""
        out = place / "out"
        if self.older is None:
            if not (out / self.mark).exists():
                return ""
            found, whole = self.result(place), self.reference[1]
            if any(found.get(name) != file for name, file in whole.items()):
                return "a half output counts as done"
            more = sorted({name.split("/")[0] for name in found.keys() - whole.keys()})
            return f"left in a whole output: {more}" if more else ""
        try:
            found = self.standing(out)
        except (ValueError, OSError) as error:
            return f"the older result is lost: {error}"
        whole = [*self.standing(self.older), *self.standing(self.scratch / "reference" / "out")]
        return "" if all(part in whole for part in found) else "neither the older nor the new"


def _loaded(folder: Path) -> list[Any]:
    result = EvaluationResult.load(folder)
    return [(result.scores, result.signature)]


def _pages(folder: Path) -> list[Any]:
    return [(folder / name).read_bytes() for name in ("index.html", "report.md")]


def make_world(folder: Path, hub: Hub) -> dict[str, Command]:
    """Write the sources, run every command once, and return the commands by name."""
    less = folder / "less"
    home = folder / "home"
    write_sources(folder, ROWS)
    write_sources(less, ROWS // 6)
    for part in random_llava(["a small red cube and a large blue ball"], 32, 2, image_size=56):
        part.save_pretrained(folder / "generative")
    captions = [f"a red cup and a white dog number {number}" for number in range(100)]
    (folder / "captions.txt").write_text("\n".join(captions))

    def build(source: Path) -> Callable[[Path], list[object]]:
        sources = ("--annotations", source, "--images", source / "images", "--split", "replace")
        return lambda out: ["build", out, *sources]

    def evaluate(source: Path, model: object = "shapes_clip") -> Callable[[Path], list[object]]:
        data = ("--dataset", source / "REPLACE")
        return lambda out: ["evaluate", model, *data, "--output", out]

    def report(result: Path, source: Path) -> Callable[[Path], list[object]]:
        return lambda out: ["report", result, "--dataset", source / "REPLACE", "--output", out]

    def generate(source: object, *options: object) -> Callable[[Path], list[object]]:
        return lambda out: ["generate", source, "--output", out, *options]

    def finetune(out: Path) -> list[object]:
        steps = ("--batch-size", "32", "--epochs", "1", "--checkpoint-steps", "1")
        return ["finetune", "shapes_clip", "--data", folder / "train", "--output", out, *steps]

    def with_workers(command: Callable[[Path], list[object]]) -> Callable[[Path], list[object]]:
        return lambda out: [*command(out), "--workers", "2"]

    from_text = generate(folder / "captions.txt", "--workers", "1")
    with_images = generate(folder / "REPLACE", "--split", "replace", "--workers", "1")
    for source, result in ((folder, "new"), (less, "older")):
        run_well([*build(source)(source / "REPLACE"), "--quiet"], home)
        run_well([*evaluate(source)(folder / result), "--quiet"], home)
    run_well([*report(folder / "older", less)(folder / "older_page"), "--quiet"], home)
    run_well([*with_images(folder / "train"), "--quiet"], home)

    older = {"older": folder / "older", "standing": _loaded}
    older_page = {"older": folder / "older_page", "standing": _pages}
    commands = [
        Command("build", build(folder), mark="README.md"),
        Command("evaluate", evaluate(folder), **older),
        Command("evaluate generative", evaluate(folder, folder / "generative"), **older),
        Command("report", report(folder / "new", folder), **older_page),
        Command("generate", from_text, mark="generation.json"),
        Command("generate images", with_images, mark="generation.json"),
        Command("finetune", finetune, mark="README.md", volatile=["finetuning.json"]),
    ]
    # The same with processes of their own, which must not outlive them.
    commands += [
        Command("evaluate workers", with_workers(evaluate(folder)), **older),
        Command("generate workers", with_workers(from_text), mark="generation.json"),
        replace(commands[-1], name="finetune workers", words=with_workers(finetune)),
    ]
    # The same on copies that can be damaged.
    commands += [
        Command(
            "evaluate a copy",
            lambda out: evaluate(out.parent)(out),
            inputs={"REPLACE": folder / "REPLACE"},
        ),
        Command(
            "report on a copy",
            lambda out: report(out.parent / "new", folder)(out),
            inputs={"new": folder / "new"},
        ),
    ]
    commands += publish_commands(folder, hub)
    return {command.name: command for command in commands}


# --- publishing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Publish(Command):
    """A command that writes a repository of the stand-in Hub; each place has one of its own."""

    hub: Hub | None = None
    kind: str = "datasets"

    def id(self, place: Path) -> str:
        """The repository of a place."""
        return f"org/{self.kind}-{place.parent.name}"

    def begin(self, place: Path) -> None:
        """Make the place without a repository."""
        super().begin(place)
        self.hub.remove(self.kind, self.id(place))

    def line(self, place: Path) -> list[object]:
        """The command line that publishes to the repository of a place."""
        return [*self.words(place), self.id(place)]

    def result(self, place: Path) -> dict[str, Any]:
        """The newest commit's files, and how many commits and pull requests there are."""
        repository = self.hub.find(self.kind, self.id(place))
        if repository is None:
            return {}
        newest = list(repository.commits.values())[-1]
        name = self.id(place).partition("/")[2].encode()
        files = {path: file.replace(name, b"ID") for path, file in newest.files.items()}
        counts = {"commits": len(repository.commits), "requests": len(repository.pull_requests)}
        return {**files, **counts}

    def problem(self, place: Path) -> str:
        """Whether there is more than one commit on top of the first."""
        found = self.result(place)
        done = found.get("commits", 0) > 1 and not self.is_done(place)
        return f"published otherwise or twice: {sorted(found)}" if done else ""


@dataclass(frozen=True)
class PublishResults(Publish):
    """Results on a model's page: the model is there before, without them."""

    result_folder: Path = Path()
    model: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def begin(self, place: Path) -> None:
        """Put the model on the Hub, and results that name it beside the place."""
        super().begin(place)
        self.hub.add(self.kind, self.id(place), self.model)
        saved = EvaluationResult.load(self.result_folder)
        model = {**saved.signature["model"], "id": self.id(place)}
        changed = replace(saved, signature={**saved.signature, "model": model})
        changed.save(place / "results")


def publish_commands(folder: Path, hub: Hub) -> list[Command]:
    """Publish a dataset and a model, score them from there, and return what publishes more."""
    model = {path.name: path.read_bytes() for path in MODEL.iterdir() if path.is_file()}
    hub.add("models", "org/model", model)
    run_well(["publish", "dataset", folder / "REPLACE", "org/data"], folder / "home")
    words = ["evaluate", "org/model", "--dataset", "org/data", "--output", folder / "of_the_hub"]
    run_well([*words, "--quiet"], folder / "home")
    about_results = {"result_folder": folder / "of_the_hub", "model": model, "kind": "models"}
    return [
        Publish("publish dataset", lambda _: ["publish", "dataset", folder / "REPLACE"], hub=hub),
        PublishResults(
            "publish results",
            lambda place: ["publish", "results", place / "results"],
            hub=hub,
            **about_results,
        ),
    ]
