"""Image cells that a dataset of somebody else could hold, and what becomes of them.

Each goes into a Parquet folder of its own with the traps that it may lead to, and is loaded as
`hard-positives evaluate` does. Only a ValueError is right; no file outside of the dataset's folder
may be opened, refused afterwards or not.
"""

import io
import os
import random
import socket
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

from attacks.trials import Attack, Attempt, Outcome, Trial, refused, wrong
from hard_positives.suite.rows import decode_image
from hard_positives.suite.sources import load_splits
from hard_positives_dataset.images import MAX_IMAGE_BYTES

Cell = dict[str, bytes | str | None]
COLUMNS = ("caption", "hard_positive", "hard_negative")
FEATURES = datasets.Features(
    {"image": datasets.Image(), **{name: datasets.Value("string") for name in COLUMNS}}
)


def malicious(small: int, full: int) -> Attack:
    """Put one cell into a folder a trial, and load it."""

    @contextmanager
    def prepare(scratch: Path) -> Iterator[Attempt]:
        yield _load

    return Attack("image cells", prepare, small, full)


def _load(trial: Trial) -> Outcome:
    folder = trial.folder / "dataset"
    cells = malicious_cells(folder, trial.random.getrandbits(32))
    kind, cell = next(islice(cells, trial.number, None))
    write_rows(folder, [cell])
    with files_opened() as opened:
        outcome = outcome_of(folder)
    said = f"{kind}, {cell['path']!r:.80}"
    if _left(folder, cell, opened):
        return wrong(f"{said}: opened")
    return refused() if outcome == "refused" else wrong(f"{said}: {outcome}")


def _left(folder: Path, cell: Cell, opened: list[str]) -> bool:
    """Whether a trap was opened, or whatever else outside the folder the cell names."""
    traps, path = str(folder.parent / "outside"), cell["path"] or ""
    named = set() if "\0" in path else {os.path.realpath(path), os.path.realpath(folder / path)}
    outside = {name for name in named if not name.startswith(f"{folder}/")}
    return any(name.startswith(traps) or name in outside for name in opened)


def outcome_of(folder: Path) -> str:
    """Load the first row of a folder and decode its picture."""
    try:
        (rows,) = load_splits(folder).values()
        rows = rows.cast_column("image", datasets.Image(decode=False))
        decode_image(rows[0]["image"], 0)
    except ValueError:
        return "refused"
    except Exception:
        return "wrong"
    return "wrong"


def write_rows(folder: Path, cells: list[Cell]) -> None:
    """Make a folder of rows with these images, as `load_dataset` reads it."""
    columns = {name: [f"a {name}"] * len(cells) for name in COLUMNS}
    rows = pa.table({"image": cells, **columns}, schema=FEATURES.arrow_schema)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "data" / "train.parquet")


@contextmanager
def files_opened() -> Iterator[list[str]]:
    """Note what Python opens meanwhile."""
    if not _NOTED:
        sys.addaudithook(_note)
    opened: list[str] = []
    _NOTED.append(opened)
    try:
        yield opened
    finally:
        _NOTED[:] = [[]]  # a hook stays for good


_NOTED: list[list[str]] = []


def _note(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        _NOTED[-1].append(path if "\0" in path else os.path.realpath(path))


def malicious_cells(folder: Path, seed: int = 0) -> Iterator[tuple[str, Cell]]:
    """Make cells without end, each with a word for what it tries.

    Args:
        folder: The dataset's folder. Links, pipes and large files are made in it, and what must
            not be opened in `outside` beside it.
        seed: Of the random ones, which follow those that are known.
    """
    outside = folder.parent / "outside"
    _set_traps(folder, outside)
    yield from _known_paths(folder, outside)
    for kind, content in _hostile_files():
        yield kind, {"bytes": content, "path": "picture.png"}
    draw = random.Random(seed)
    while True:
        yield "a random way out", {"bytes": None, "path": _random_way_out(folder, draw)}
        yield "a random file", {"bytes": _damaged(draw), "path": None}


def _set_traps(folder: Path, outside: Path) -> None:
    for place in (folder / "deep" / "er", outside / "folder"):
        place.mkdir(parents=True, exist_ok=True)
    for name in ("secret.png", "folder/secret.png"):
        Image.new("RGB", (8, 8), "red").save(outside / name)
    (outside / "secret.txt").write_text("secret")
    (folder / "text.png").write_text("no picture")
    with open(folder / "large.png", "wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    links = {
        "link.png": outside / "secret.png",
        "chain.png": "link.png",
        "relative.png": "../outside/secret.png",
        "deep/link.png": "../../outside/secret.png",
        "away": outside,
        "up": "..",
        "root": "/",
        "loop.png": "loop.png",
        "zero.png": "/dev/zero",
        "nowhere.png": "nowhere",
        "pipe_link.png": outside / "pipe.png",
    }
    for name, target in links.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    for pipe in (folder / "pipe.png", outside / "pipe.png"):
        if not pipe.exists():
            os.mkfifo(pipe)
    if not (folder / "socket.png").exists():
        before = os.getcwd()
        os.chdir(folder)  # a socket's name is short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("socket.png")
        os.chdir(before)


def _known_paths(folder: Path, outside: Path) -> Iterator[tuple[str, Cell]]:
    secret = outside / "secret.png"
    paths = {
        "an absolute path": [secret, f"/{secret}", f"/.{secret}", f"/proc/self/root{secret}"],
        "a path upwards": [
            "../outside/secret.png",
            "deep/../../outside/secret.png",
            "./../outside/./secret.png",
            "..//outside//secret.png",
            f"{folder}/../outside/secret.png",
            "missing/../../outside/secret.png",
            "data/train.parquet/../../../outside/secret.png",
        ],
        "a link": [
            *("link.png", "chain.png", "relative.png", "deep/link.png", "pipe_link.png"),
            *("away/secret.png", "away/folder/secret.png", "up/outside/secret.png"),
            *(f"root{secret}", "loop.png", "nowhere.png", "zero.png"),
        ],
        "a device": [
            *("/dev/zero", "/dev/random", "/dev/full", "/dev/tty", "/dev/stdin", "/dev/fd/0"),
            *("/proc/self/environ", "/proc/self/mem", "/proc/kmsg", "/proc/self/fd/0", "/dev/mem"),
        ],
        "a pipe or socket": ["pipe.png", "socket.png", outside / "pipe.png"],
        "a folder": ["", ".", "..", "/", "deep", "deep/", str(folder), str(outside)],
        "another file": [
            *("/etc/passwd", "/etc/hostname", "../../etc/hostname", outside / "secret.txt"),
            *("large.png", "text.png", "data/train.parquet", "missing.png", "text.png/"),
        ],
        "an address": [
            *(f"file://{secret}", "http://127.0.0.1:1/a.png", "https://127.0.0.1:1/a.png"),
            *("ftp://127.0.0.1/a.png", "hf://datasets/a/b/c.png", "s3://bucket/a.png"),
            *(f"zip://secret.png::{outside}/a.zip", "data:image/png;base64,AAAA"),
            *("//127.0.0.1/share/a.png", r"\\127.0.0.1\share\a.png", f"local://{secret}"),
        ],
        "a name": [
            *("a\0.png", f"{secret}\0.png", "\0", "x" * 300, "y/" * 3000 + "z", "\x1b]0;owned\x07"),
            *("~/secret.png", "$HOME/a.png", "%2e%2e/outside/secret.png", "..%2foutside"),
            *(r"..\outside\secret.png", "\u2024\u2024/outside/secret.png", "-rf", "| cat", "*.png"),
            *(
                "..\u2215outside\u2215secret.png",
                "link.png\n",
                " link.png",
                "CON",
                "link.png\u202e",
            ),
        ],
    }
    for kind, of_kind in paths.items():
        for path in of_kind:
            yield kind, {"bytes": None, "path": str(path)}
    yield "no picture", {"bytes": None, "path": None}
    yield "no bytes", {"bytes": b"", "path": str(secret)}


def _hostile_files() -> Iterator[tuple[str, bytes]]:
    yield "a format that starts a program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    yield "another format", b"%PDF-1.4\n"
    yield "another format", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    yield "another format", b"\xd3\xa1\x5a\x00" + bytes(64)
    yield "many pixels", _png_of(13_000, 13_000)
    yield "many pixels", _png_of(2**31 - 1, 2**31 - 1)
    yield "many pixels", _png_of(0, 0)
    yield "many pixels", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(16)
    header = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "many pixels", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header
    yield "much text", _png_with_much_text()
    yield "a cut file", _picture()[:-30]
    yield "a cut file", _picture()[:20]


def _png_of(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(10_000), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _png_with_much_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("much", "x" * 3_000_000, zip=True)
    return _picture(info)


def _picture(info: PngImagePlugin.PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 80).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _random_way_out(folder: Path, draw: random.Random) -> str:
    """Leave the folder by steps down, up, nowhere, and through a link."""
    steps = draw.choices(["deep", "deep/er", ".", "", "missing", "no/where"], k=draw.randrange(6))
    depth = sum(step.count("/") + 1 for step in steps if step not in (".", ""))
    target = draw.choice(["outside/secret.png", "outside/folder/secret.png", "outside/secret.txt"])
    way = draw.choice(["../" * (depth + 1), "../" * depth + "up/", "../" * depth + "away/../"])
    start = draw.choice(["", "./", f"{folder}/"])
    return start + "".join(f"{step}/" for step in steps) + way + target


def _damaged(draw: random.Random) -> bytes:
    content = bytearray(_picture())
    place = draw.randrange(8, 30)  # of the header, whose checksum tells
    content[place] ^= 1 << draw.randrange(8)
    return bytes(content)
