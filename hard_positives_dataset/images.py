"""Rows -> the image bytes that are scored: lookup, safety, decoding, crops.

Images lie in folders or zip files. Zips are read in place, so there is no unpacked folder that a
killed run could leave half full, and only the images that rows ask for are read, each once.

What a row carries is exactly what is scored. A whole image keeps its bytes. A crop, or an image
whose EXIF data asks for a rotation (which the published loader ignores and `datasets.Image`
applies), is stored as a lossless PNG without EXIF.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError

from .annotations import Triple, count_rows
from .folders import read_regular_file

IMAGE_FOLDERS = ("VG_100K", "VG_100K_2")

# Formats that photographs come in. Pillow knows others that start outside programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# Visual Genome's images have at most 1280 x 1280 pixels; this is forty times as many, and 256 MiB
# when decoded. Without a limit a file of 200 kB takes gigabytes.
MAX_PIXELS = 2**26
MAX_IMAGE_BYTES = 2**26  # Visual Genome's images have less than a hundredth of it.
_WORKERS = min(4, os.cpu_count() or 1)
_LOOK_AHEAD = 4 * _WORKERS


class UnreadableImagesError(ValueError):
    """Images that cannot be decoded, or boxes that cut nothing out of them."""


class OutsideFolderError(ValueError):
    """A link leads out of the folder in which an image was looked up."""


@dataclass(frozen=True)
class ImageFile:
    """Where an image lies: in a folder or a zip (`source`), under a name in there."""

    source: str
    name: str


class ImageStore:
    """Folders and zip files in which images are looked up by their published path.

    A path such as `data/VG_100K/2401814.jpg` is found under each of its endings and under the two
    Visual Genome folders, so that an unpacked tree, the original zips and a flat folder all serve.

    Args:
        sources: folders and zip files, searched in this order.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source is neither a folder nor a whole zip.
    """

    def __init__(self, sources: Sequence[str | os.PathLike]) -> None:
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._sources = [os.path.realpath(_checked_source(source)) for source in sources]
        for source in self._sources:
            if os.path.isfile(source):
                self._zips[source] = _opened_zip(source)
        self._names = {source: set(file.namelist()) for source, file in self._zips.items()}

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._zips.values():
            file.close()

    def find(self, image_path: str) -> ImageFile | None:
        """Where the image lies, or None.

        Raises:
            OutsideFolderError: the file found leads out of its folder through a link.
        """
        for source in self._sources:
            for name in _candidates(image_path):
                if source in self._zips:
                    found = name in self._names[source]
                else:
                    found = _is_inside(source, name)
                if found:
                    return ImageFile(source, name)
        return None

    def read(self, file: ImageFile) -> bytes:
        """The bytes of an image that `find` has found.

        Raises:
            ValueError: it cannot be read, or is too large; the message is a phrase.
        """
        if file.source in self._zips:
            return _read_member(self._zips[file.source], file.name)
        try:
            return read_regular_file(os.path.join(file.source, file.name), MAX_IMAGE_BYTES)
        except OSError as error:
            raise ValueError(f"a file that cannot be read ({error.strerror})") from error


def _opened_zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # A damaged directory makes zipfile raise exceptions of many kinds.
        raise ValueError(
            f"Expected {path} to be a whole zip, got a damaged directory of its files ({error}). "
            "Download it again."
        ) from error


def _read_member(opened: zipfile.ZipFile, name: str) -> bytes:
    member = opened.getinfo(name)
    if member.flag_bits & 1:
        raise ValueError("a file encrypted in its zip")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("a file compressed by another method than deflate")
    if member.file_size > MAX_IMAGE_BYTES:  # More than is stated here is not unpacked.
        raise ValueError(f"a file of {member.file_size:,} bytes, more than {MAX_IMAGE_BYTES:,}")
    try:
        return opened.read(member)
    except Exception as error:
        raise ValueError("a file damaged in its zip") from error


def _checked_source(source: str | os.PathLike) -> str | os.PathLike:
    if not os.path.exists(source):
        raise FileNotFoundError(
            f"Expected images to be existing folders or zip files, got {source}. Unpack or "
            "download Visual Genome's images.zip and images2.zip there."
        )
    if not os.path.isdir(source) and not (os.path.isfile(source) and zipfile.is_zipfile(source)):
        raise ValueError(
            f"Expected images to be folders or zip files, got {source}, which is neither. A "
            "download that was cut off is no zip: fetch it again."
        )
    return source


def _candidates(image_path: str) -> list[str]:
    parts = image_path.split("/")
    endings = ["/".join(parts[start:]) for start in range(len(parts))]
    folders = [f"{folder}/{parts[-1]}" for folder in IMAGE_FOLDERS]
    return list(dict.fromkeys(endings + folders))


def _is_inside(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return False
    if os.path.commonpath([folder, os.path.realpath(path)]) != folder:
        raise OutsideFolderError(f"Expected {path} to lie inside {folder}, got a link out of it.")
    return True


def describe_source(source: str | os.PathLike) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of the files a source holds: its identity for a cache."""
    _checked_source(source)
    folders = ["", *IMAGE_FOLDERS, "data", *(f"data/{name}" for name in IMAGE_FOLDERS)]
    paths = [os.path.realpath(source)]
    for folder in folders:
        folder = os.path.join(paths[0], folder)
        if os.path.isdir(folder):
            paths += sorted(entry.path for entry in os.scandir(folder))
    for path in paths:
        if os.path.isfile(path):
            status = os.stat(path)
            yield path, status.st_size, status.st_mtime_ns


def locate_images(
    triples: Iterable[Triple], store: ImageStore, *, partial: bool = False
) -> dict[str, ImageFile]:
    """Find the image of every row before anything is read.

    Returns:
        Where each distinct `image_path` lies; with `partial`, of those that are there.

    Raises:
        FileNotFoundError: images are missing; with `partial`, all of them.
        ValueError: images lie outside their folder, behind a link.
        Both count all rows concerned and name the first few.
    """
    files: dict[str, ImageFile | None] = {}
    missing, outside = defaultdict(list), defaultdict(list)
    for triple in triples:
        path = triple.image_path
        try:
            if path not in files:
                files[path] = store.find(path)
        except OutsideFolderError:
            outside["a link out of it"].append(triple.id)
            continue
        if files[path] is None:
            missing["no image file"].append(triple.id)
    if outside:
        raise ValueError(
            f"Expected images to lie inside the folder given, got {count_rows(outside)}. Pass the "
            "folder that the link leads to as another of images."
        )
    absent = [path for path, file in files.items() if file is None]
    if absent and (not partial or len(absent) == len(files)):
        raise FileNotFoundError(
            f"Expected images to hold the image of every row, got {count_rows(missing)}; "
            f"{len(absent)} images are missing, the first is {absent[0]}. Pass every folder or zip "
            "that holds Visual Genome images, or `partial` for the rows whose images are there."
        )
    return {path: file for path, file in files.items() if file}


def image_order(triples: Sequence[Triple]) -> list[Triple]:
    """Rows of one image together, and of one box together therein; else in published order.

    Only so can an image be read once, and stored once in a Parquet file.
    """
    first: dict[object, int] = {}
    for position, triple in enumerate(triples):
        first.setdefault(triple.image_path, position)
        first.setdefault((triple.image_path, triple.bbox), position)
    # The sort is stable: within one box the published order stays.
    return sorted(triples, key=lambda t: (first[t.image_path], first[t.image_path, t.bbox]))


def read_images(
    triples: Sequence[Triple], files: dict[str, ImageFile], store: ImageStore
) -> Iterator[tuple[Triple, bytes]]:
    """Each row with the bytes of what is scored, in `image_order`.

    Images are read, decoded and cropped a few ahead in threads; Pillow works outside Python's lock.

    Raises:
        UnreadableImagesError: after all rows are read; counts every row that cannot be used.
    """
    groups: dict[str, list[Triple]] = defaultdict(list)
    for triple in image_order(triples):
        groups[triple.image_path].append(triple)
    problems, first = defaultdict(list), None

    def read(group: list[Triple]) -> list[tuple[Triple, bytes | str]]:
        return _read_group(group, lambda: store.read(files[group[0].image_path]))

    for rows in _map_ahead(read, groups.values()):
        for triple, content in rows:
            if isinstance(content, str):
                first = first or _place(files[triple.image_path])
                problems[content].append(triple.id)
            elif not problems:  # After the first problem only the count matters.
                yield triple, content
    if problems:
        raise UnreadableImagesError(
            "Expected every image to be whole and every box to cut something out of it, got "
            f"{count_rows(problems)}. The first is {first}. Replace these image files, or correct "
            "the boxes."
        )


def _place(file: ImageFile) -> str:
    return f"{file.name} in {file.source}"


def _read_group(group: list[Triple], read: Callable[[], bytes]) -> list[tuple[Triple, bytes | str]]:
    """Each row of one image with its bytes, or with what is wrong in words."""
    try:
        content = read()
        image = open_image_bytes(content)
    except ValueError as problem:
        return [(triple, str(problem)) for triple in group]
    scored: dict[object, bytes | str] = {}
    for triple in group:
        if triple.bbox not in scored:
            scored[triple.bbox] = _scored(image, content, triple.bbox)
    return [(triple, scored[triple.bbox]) for triple in group]


def _scored(image: Image.Image, content: bytes, bbox: tuple | None) -> bytes | str:
    if bbox is None:
        upright = image.getexif().get(ExifTags.Base.Orientation) in (None, 1)
        return content if upright else _png(image.convert("RGB"))
    x, y, width, height = bbox
    if width <= 0 or height <= 0:
        return "an empty box"
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        return "a box outside the image"
    try:
        # As the published loader cuts: what lies outside the image becomes black.
        return _png(image.convert("RGB").crop((x, y, x + width, y + height)))
    except Image.DecompressionBombError:
        return "a box far larger than the image"


def _png(image: Image.Image) -> bytes:
    image.info.clear()  # Colour profiles and the like would be written to every crop.
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def open_image_bytes(content: bytes) -> Image.Image:
    """Decode an image that somebody else has made, within limits of format, size and pixels.

    Returns:
        The image, decoded, in the mode and the orientation of the file.

    Raises:
        ValueError: It cannot be used; the message is a phrase such as "a truncated or damaged
            image", for a sentence that names the row.

    Examples:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (3, 2)).save(buffer, "PNG")
        >>> open_image_bytes(buffer.getvalue()).size
        (3, 2)
        >>> open_image_bytes(b"<html>")
        Traceback (most recent call last):
        ...
        ValueError: a file that is no JPEG, PNG, WEBP, GIF or BMP image
    """
    if len(content) > MAX_IMAGE_BYTES:
        raise ValueError(f"a file of {len(content):,} bytes, more than {MAX_IMAGE_BYTES:,}")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ValueError(f"a file that is no {known} image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"an image of more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Damaged data makes the decoders raise exceptions of many kinds.
        raise ValueError("a truncated or damaged image") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise ValueError(f"an image of {size} pixels, more than {MAX_PIXELS:,} in all")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError("a truncated or damaged image") from error
    return image


def _map_ahead(function: Callable, items: Iterable) -> Iterator:
    """Map in threads and in order, with a bounded number of results waiting."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _LOOK_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
