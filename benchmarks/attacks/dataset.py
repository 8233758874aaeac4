"""Damaged annotations and hostile paths, images and zips, and what `build` makes of them.

Each trial builds a small world of its own that counts as the published files, with one thing
changed. It is *right* if the rows are those of the unharmed files, *refused* if a typed error says
so in a sentence or a warning says that the files are others, and *wrong* otherwise: other rows
without a word, another exception, a folder left after an error, or the picture that lies outside.
"""

import io
import json
import os
import random
import socket
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest import mock

import datasets
from PIL import Image

from attacks.trials import TYPED, Attack, Attempt, Outcome, Trial, wrong
from hard_positives_dataset import HardPositives, annotations, build_parquet, builder
from hard_positives_dataset.content import content_of

FOLDER = "VG_100K"
NUM_IMAGES = 3


@dataclass(frozen=True)
class World:
    """Files that count as published, what they make, and a picture that nobody may open."""

    folder: Path
    pairs: tuple[annotations.PublishedPair, ...]
    content: str = ""

    @property
    def annotations(self) -> Path:
        """The folder of the annotation files."""
        return self.folder / "annotations"

    @property
    def images(self) -> Path:
        """The folder of the images."""
        return self.folder / "images"

    @property
    def outside(self) -> Path:
        """A whole picture outside of the images' folder."""
        return self.folder / "outside" / "1.jpg"


def picture(number: int) -> bytes:
    """A JPEG that differs from those of other numbers."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (2 * number, 90, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_world(folder: Path) -> World:
    """Write a small benchmark and build it once."""
    (folder / "outside").mkdir(parents=True)
    (folder / "outside" / "1.jpg").write_bytes(picture(99))
    (folder / "images" / FOLDER).mkdir(parents=True)
    for number in range(1, NUM_IMAGES + 1):
        (folder / "images" / FOLDER / f"{number}.jpg").write_bytes(picture(number))
    colours, relations = [], []
    for number in range(6):
        image = number % NUM_IMAGES + 1
        colours.append((image, f"white cat {number}", f"ivory cat {number}", f"red cat {number}"))
        relations.append((image, f"cat in {number}", f"cat within {number}", f"cat on {number}"))
    pairs = []
    for pair, rows in zip(annotations.PUBLISHED_PAIRS, (colours, relations), strict=False):
        blobs = []
        for side, name in enumerate(annotations.LAYOUTS[0]):
            path = folder / "annotations" / name / pair.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(annotation_file(rows, side))
            blobs.append(annotations.git_blob_id(path.read_bytes()))
        pairs.append(replace(pair, blob_ids=tuple(blobs)))
    world = World(folder, tuple(pairs))
    content, warned = build(world, world.annotations, world.images, folder / "whole")
    if warned:
        raise RuntimeError("Expected the unharmed world to count as published, got a warning.")
    return replace(world, content=content)


def annotation_file(rows: list[tuple], side: int) -> str:
    """Rows as one of the two published files has them."""
    return json.dumps(
        [
            {
                "image_id": str(row[0]),
                "image_path": f"data/{FOLDER}/{row[0]}.jpg",
                "true_caption": row[1 + side],
                "false_caption": row[3],
            }
            for row in rows
        ]
    )


def build(world: World, given: Path, images: object, output: Path) -> tuple[str, bool]:
    """Build and read again: the content of the rows, and whether a warning spoke of the files."""
    with (
        warnings.catch_warnings(record=True) as caught,
        mock.patch.object(annotations, "PUBLISHED_PAIRS", world.pairs),
        mock.patch.object(builder, "PUBLISHED_PAIRS", world.pairs),
    ):
        warnings.simplefilter("always")
        cache = str(output.parent / "cache")
        made = HardPositives(
            config_name="visual_genome",
            annotation_dir=given,
            images=[images],
            splits=["replace"],
            cache_dir=cache,
        )
        folder = build_parquet(made.as_streaming_dataset(), output, progress=False)
    [file] = (folder / "data").iterdir()
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=cache)
    pictures = [
        row["bytes"] for row in rows.cast_column("image", datasets.Image(decode=False))["image"]
    ]
    if world.outside.read_bytes() in pictures:
        raise RuntimeError("the picture outside was opened")
    told = any("to be the published files" in str(warning.message) for warning in caught)
    return content_of(rows), told


def verdict(world: World, given: Path, images: object, output: Path) -> str:
    """How a build on changed files ended."""
    existed = os.path.lexists(output)  # unlike Path.exists, False of names that cannot be
    try:
        content, warned = build(world, given, images, output)
    except TYPED as error:
        if "Expected " not in str(error):
            return f"bare error: {error!r}"
        return (
            "refused" if existed or not os.path.lexists(output) else "left a folder after an error"
        )
    except Exception as error:  # what the command line would show as a traceback
        return f"untyped error: {error!r}"
    if content == world.content:
        return "right"
    return "refused" if warned else "accepted without a word"


# Bit flips in annotation files


def flip_annotation(world: World, rng: random.Random, folder: Path) -> str:
    """Flip one bit of one annotation file and build."""
    given = folder / "annotations"
    copy_tree(world.annotations, given)
    path = rng.choice(sorted(path for path in given.rglob("*") if path.is_file()))
    flip(path, rng)
    return verdict(world, given, world.images, folder / "out")


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def copy_tree(source: Path, target: Path) -> None:
    """Copy folders and files."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


# Hostile inputs: each takes the world, a random generator and an empty folder, and gives a verdict

Hostile = Callable[[World, random.Random, Path], str]

HOSTILE_PATHS = (
    *("../outside/1.jpg", "data/../../outside/1.jpg", "..", ".", "", "/", "//etc/hostname"),
    *("{outside}", "/etc/hostname", "/dev/zero", "/proc/self/environ", "~/1.jpg", "./1.jpg"),
    *("data//1.jpg", "data/./1.jpg", "data/1.jpg/", "..\\outside\\1.jpg", "C:\\1.jpg", "C:1.jpg"),
    *("http://localhost:9/1.jpg", "file:///etc/hostname", "hf://a/b", "data::1.jpg", "zip://a"),
    *("1.jpg\0", "\0", "data/\0/1.jpg", "..%2foutside%2f1.jpg", "%2e%2e/outside/1.jpg"),
    *(
        "\uff0e\uff0e/outside/1.jpg",
        "\u2025/1.jpg",
        "\ud800.jpg",
        "x" * 5000,
        "x/" * 3000 + "1.jpg",
    ),
    *("*.jpg", "[1].jpg", "{1..3}.jpg", "$HOME/1.jpg", "`id`.jpg", "1.jpg\n", " ", "-rf", "1.jpg;"),
)


def hostile_path(path: str) -> Hostile:
    """An `image_path` that leads elsewhere: refused, or found inside the folder with a warning."""

    def attack(world: World, rng: random.Random, folder: Path) -> str:
        given = folder / "annotations"
        copy_tree(world.annotations, given)
        name, place = rng.choice(world.pairs).file_name, rng.randrange(6)
        for side in annotations.LAYOUTS[0]:
            rows = json.loads((given / side / name).read_text())
            rows[place]["image_path"] = path.replace("{outside}", str(world.outside))
            (given / side / name).write_text(json.dumps(rows))
        return verdict(world, given, world.images, folder / "out")

    return attack


def changed_image(change: Callable[[Path, World], None]) -> Hostile:
    """Something else in the place of one image, in a folder."""

    def attack(world: World, rng: random.Random, folder: Path) -> str:
        images = folder / "images"
        copy_tree(world.images, images)
        path = images / FOLDER / f"{rng.randrange(NUM_IMAGES) + 1}.jpg"
        path.unlink()
        change(path, world)
        return verdict(world, world.annotations, images, folder / "out")

    return attack


def link(target: str) -> Callable[[Path, World], None]:
    """Make the image a link; `{outside}` is the picture that nobody may open."""
    return lambda path, world: path.symlink_to(target.replace("{outside}", str(world.outside)))


def content(data: bytes) -> Callable[[Path, World], None]:
    """Make the image a file with this content."""
    return lambda path, world: path.write_bytes(data) and None


def chain(path: Path, world: World) -> None:
    """Make the image a link to a link that leads out."""
    path.with_name("chain").symlink_to(world.outside)
    path.symlink_to("chain")


def linked_folder(path: Path, world: World) -> None:
    """Make the images' folder a link that leads out."""
    for other in path.parent.iterdir():
        other.unlink()
    path.parent.rmdir()
    path.parent.symlink_to(world.outside.parent)


def sparse(path: Path, world: World) -> None:
    """Make the image a file of a terabyte that takes no room."""
    path.touch()
    os.truncate(path, 2**40)


def bind_socket(path: Path, world: World) -> None:
    """Make the image a socket."""
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may take some 100 bytes only
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def png_bomb(width: int, height: int, text: bool = False) -> bytes:
    """A PNG of zeros, much smaller than its pixels, or with a text that is."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"IDAT", zlib.compress(bytes(height * (width + 1)))),
        (b"IEND", b""),
    ]
    if text:
        chunks.insert(1, (b"zTXt", b"bomb\0\0" + zlib.compress(bytes(10_000_000))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def in_format(form: str) -> bytes:
    """A small picture in a format that is not for photographs."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, form)
    return buffer.getvalue()


def zipped(change: Callable[[Path, World, random.Random], None]) -> Hostile:
    """The images in a zip that is changed."""

    def attack(world: World, rng: random.Random, folder: Path) -> str:
        path = folder / "images.zip"
        change(path, world, rng)
        return verdict(world, world.annotations, path, folder / "out")

    return attack


def write_zip(path: Path, world: World, last: zipfile.ZipInfo | None = None, data=b"") -> None:
    """All images in a zip; where another member is given, image 3 is left out for it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(1, NUM_IMAGES + (last is None)):
            file.writestr(f"{FOLDER}/{number}.jpg", picture(number))
        if last is not None:
            file.writestr(last, data, zipfile.ZIP_DEFLATED)


def member(name: str, data: bytes, mode: int = 0o644) -> Callable:
    """Instead of image 3, a member of this name, content and mode."""

    def change(path: Path, world: World, rng: random.Random) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        write_zip(path, world, info, data)

    return change


def header(marker: bytes, offset: int, new: bytes) -> Callable:
    """Other bytes in the headers of one member."""

    def change(path: Path, world: World, rng: random.Random) -> None:
        write_zip(path, world)
        data = bytearray(path.read_bytes())
        places = [i for i in range(len(data)) if data[i : i + 4] == marker]
        place = rng.choice(places) + offset
        data[place : place + len(new)] = new
        path.write_bytes(data)

    return change


def flipped_zip(path: Path, world: World, rng: random.Random) -> None:
    """One bit flipped, anywhere."""
    write_zip(path, world)
    flip(path, rng)


def cut_zip(path: Path, world: World, rng: random.Random) -> None:
    """Cut off, anywhere."""
    write_zip(path, world)
    os.truncate(path, rng.randrange(path.stat().st_size))


def source(make: Callable[[Path], object]) -> Hostile:
    """Something else than a folder or a zip as the source of images."""
    return lambda world, rng, folder: verdict(
        world, world.annotations, make(folder / "source"), folder / "out"
    )


def as_annotations(make: Callable[[Path], object]) -> Hostile:
    """Something else in the place of an annotation file."""

    def attack(world: World, rng: random.Random, folder: Path) -> str:
        copy_tree(world.annotations, folder / "annotations")
        path = folder / "annotations" / "original" / world.pairs[0].file_name
        path.unlink()
        make(path)
        return verdict(world, folder / "annotations", world.images, folder / "out")

    return attack


def output(name: str) -> Hostile:
    """A name for the output that no folder can have, or that `load_dataset` cannot read."""

    def attack(world: World, rng: random.Random, folder: Path) -> str:
        found = verdict(world, world.annotations, world.images, folder / name)
        return found if found != "right" else f"built {name[:40]!r}"

    return attack


def made(make: Callable[[Path], object]) -> Callable[[Path], Path]:
    """Make something at a path and give the path."""

    def at(path: Path) -> Path:
        make(path)
        return path

    return at


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
LINK = 0o120777
BOMB = bytes(2**27)
# What `build` must refuse. Flips and cuts of zips may be harmless, and come last.
ATTACKS: dict[str, Hostile] = {
    **{f"path {path[:40]!r}": hostile_path(path) for path in HOSTILE_PATHS},
    **{
        f"link to {target}": changed_image(link(target))
        for target in (
            *("{outside}", "/etc/hostname", "/dev/zero", "/dev/stdin", "/proc/self/environ"),
            *("../../../outside/1.jpg", "/", "nowhere", "/dev/null", "/dev/random"),
        )
    },
    "chain of links": changed_image(chain),
    "loop": changed_image(lambda path, world: path.symlink_to(path.name)),
    "folder is a link": changed_image(linked_folder),
    "FIFO": changed_image(lambda path, world: os.mkfifo(path)),
    "socket": changed_image(bind_socket),
    "folder": changed_image(lambda path, world: path.mkdir()),
    "sparse": changed_image(sparse),
    **{
        f"content {name}": changed_image(content(data))
        for name, data in {
            "empty": b"",
            "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n",
            "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/hostname'/></svg>",
            "TIFF": in_format("TIFF"),
            "PPM": in_format("PPM"),
            "ICO": in_format("ICO"),
            "PDF": in_format("PDF"),
            "cut": picture(1)[:-100],
            "pixels": png_bomb(13_000, 13_000),
            "more pixels": png_bomb(20_000, 20_000),
            "text": png_bomb(4, 4, text=True),
            "GIF of 65,535 x 65,535": b"GIF89a" + b"\xff" * 4 + in_format("GIF")[10:],
        }.items()
    },
    **{
        f"member {name[:30]!r}": zipped(member(name, data, mode))
        for name, data, mode in (
            ("../VG_100K/3.jpg", picture(3), 0o644),
            ("../../outside/3.jpg", picture(3), 0o644),
            ("/VG_100K/3.jpg", picture(3), 0o644),
            ("C:\\VG_100K\\3.jpg", picture(3), 0o644),
            ("VG_100K/3.jpg/", b"", 0o755),
            ("VG_100K/./3.jpg", picture(3), 0o644),
            (f"{FOLDER}/3.jpg", b"/etc/hostname", LINK),
            (f"data/{FOLDER}/3.jpg", b"../../../outside/1.jpg", LINK),
            ("3.jpg", BOMB, 0o644),
            (f"VG_100K_2/{'x' * 9}/3.jpg", BOMB, 0o644),
        )
    },
    "member PNG bomb": zipped(member(f"{FOLDER}/3.jpg", png_bomb(13_000, 13_000))),
    **{
        f"header {name}": zipped(header(*where))
        for name, where in {
            "encrypted": (CENTRAL, 8, b"\x01"),
            "LZMA": (CENTRAL, 10, b"\x0e"),
            "unknown method": (CENTRAL, 10, b"\x63"),
            "small size": (CENTRAL, 24, b"\x09\0\0\0"),
            "large size": (CENTRAL, 24, b"\xfe\xff\xff\xff"),
            "other checksum": (CENTRAL, 16, b"\x01\x02\x03\x04"),
            "no directory entry": (CENTRAL, 0, b"PX"),
            "no local header": (LOCAL, 0, b"PX"),
            "offset": (CENTRAL, 42, b"\xff\xff\xff\x7f"),
            "other name": (LOCAL, 30, b"../"),
        }.items()
    },
    "source /dev/zero": source(lambda path: "/dev/zero"),
    "source /dev/null": source(lambda path: "/dev/null"),
    "source nowhere": source(lambda path: path),
    "source NUL": source(lambda path: f"{path}\0"),
    "source FIFO": source(made(os.mkfifo)),
    "source text": source(made(lambda path: path.write_text("PK"))),
    "source loop": source(made(lambda path: path.symlink_to(path))),
    "annotations FIFO": as_annotations(os.mkfifo),
    "annotations /dev/zero": as_annotations(lambda path: path.symlink_to("/dev/zero")),
    "annotations sparse": as_annotations(lambda path: sparse(path, None)),
    "annotations brackets": as_annotations(lambda path: path.write_text("[" * 200_000)),
    "annotations digits": as_annotations(lambda path: path.write_text("9" * 5_000)),
    "annotations NaN": as_annotations(lambda path: path.write_text("[NaN]")),
    **{
        f"output {name[:20]!r}": output(name)
        for name in ("br[ack]*ets", "a?", "a*", "a::b", "x" * 250, "é" * 130, "a[/b", "a\0b")
    },
}
HARMLESS_AT_TIMES = {
    "flipped zip": zipped(flipped_zip),
    "cut zip": zipped(cut_zip),
    "long name": zipped(header(CENTRAL, 28, b"\xff\xff")),
}


# Trials


def annotation_flips(small: int, full: int) -> Attack:
    """Flip single bits in annotation files."""

    def try_one(world: World, trial: Trial) -> str:
        return flip_annotation(world, trial.random, trial.folder)

    return _in_a_world("flips: annotations", try_one, small, full)


def hostile_inputs(small: int, full: int) -> Attack:
    """Try every attack once in order, then flips and cuts of zips."""

    def try_one(world: World, trial: Trial) -> str:
        names = [*ATTACKS, *HARMLESS_AT_TIMES]
        later = trial.number - len(ATTACKS)
        place = trial.number if later < 0 else len(ATTACKS) + later % len(HARMLESS_AT_TIMES)
        found = hostile_input(names[place], world, trial.random, trial.folder)
        return found if found in ("right", "refused") else f"{names[place]}: {found}"

    return _in_a_world("paths and zips", try_one, small, full)


def _in_a_world(name: str, try_one: Callable[[World, Trial], str], small: int, full: int) -> Attack:
    @contextmanager
    def prepare(scratch: Path) -> Iterator[Attempt]:
        # In the process that needs it: what a fork begins with should have no threads.
        world = cache(lambda process: make_world(scratch / f"world-{process}"))

        def attempt(trial: Trial) -> Outcome:
            found = try_one(world(os.getpid()), trial)
            return Outcome(found) if found in ("right", "refused") else wrong(found)

        yield attempt

    return Attack(name, prepare, small, full)


def hostile_input(name: str, world: World, rng: random.Random, folder: Path) -> str:
    """One hostile input by name; what must be refused and is not, is wrong."""
    if name in HARMLESS_AT_TIMES:
        return HARMLESS_AT_TIMES[name](world, rng, folder)
    found = ATTACKS[name](world, rng, folder)
    return "built as if nothing were wrong" if found == "right" else found
