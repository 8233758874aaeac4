"""Which of Visual Genome's pictures are COCO's, too: models tuned on COCO have seen those.

About half are. Visual Genome says which in its own `image_data.json`, by a `coco_id`.
"""

import json
from collections.abc import Iterable
from pathlib import Path


def coco_pictures(image_data: str | Path, image_ids: Iterable[str]) -> frozenset[str]:
    """Find which pictures of Visual Genome are in COCO.

    Args:
        image_data: Visual Genome's `image_data.json`: a list with `image_id` and `coco_id` (null
            where it is not COCO's) of each picture.
        image_ids: The pictures in question, by Visual Genome's number.

    Returns:
        Those of `image_ids` that are COCO's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is another file, or does not list a picture in question.
    """
    path = Path(image_data)
    try:
        entries = json.loads(path.read_bytes())
        coco = {str(entry["image_id"]): entry["coco_id"] is not None for entry in entries}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Expected {path} to be Visual Genome's image_data.json, got no such file. It is in "
            "image_data.json.zip, beside Visual Genome's pictures."
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"Expected {path} to be Visual Genome's image_data.json, a list with image_id and "
            f"coco_id of each picture, got another file ({type(error).__name__}: {error})."
        ) from error
    image_ids = frozenset(image_ids)
    unknown = sorted(image_ids - coco.keys())
    if unknown:
        raise ValueError(
            f"Expected the rows to show pictures that {path} lists, by their image_id, got "
            f"{len(unknown):,} of {len(image_ids):,} that it does not, first {unknown[0]!r}. Leave "
            "it out for rows without Visual Genome's numbers."
        )
    return frozenset(filter(coco.get, image_ids))
