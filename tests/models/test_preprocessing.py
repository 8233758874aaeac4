"""Images prepared as OpenAI's transform does, to the bit, beside transformers' own way."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    EfficientNetImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
    ViltImageProcessorPil,
)

from hard_positives import evaluate, score
from hard_positives.models import encoders
from hard_positives.models.pixels import (
    OneImage,
    PillowProcessor,
    Preparation,
    UnscaledProcessor,
    cut_in_two,
    look_up,
)
from hard_positives.models.preprocessing import OpenAIPreprocessing, choose_image_processor
from hard_positives.suite.rows import decode_image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Width and height -> left and top of the crop, seen with torchvision 0.28's Resize and CenterCrop.
TORCHVISION_CROPS = {
    (640, 427): (56, 0),
    (427, 640): (0, 56),
    (500, 334): (56, 0),
    (334, 500): (0, 56),
    (1024, 683): (56, 0),
    (640, 480): (37, 0),
    (500, 375): (37, 0),
    (500, 333): (56, 0),
    (640, 426): (56, 0),
    (640, 428): (55, 0),
}
# Of these, transformers cuts one pixel further left or up.
ONE_PIXEL_OFF = {(640, 427), (427, 640), (500, 334), (334, 500), (1024, 683)}


def noise(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def clip(side: int = 224) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


def restated(image: Image.Image, side: int, left: int, top: int) -> torch.Tensor:
    """Resize, cut at a given place, scale to [0, 1], normalise: in NumPy, one step at a time."""
    shorter, longer = min(image.size), max(image.size)
    other = int(side * longer / shorter)
    size = (side, other) if image.size[0] == shorter else (other, side)
    pixels = np.array(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = pixels[top : top + side, left : left + side] / np.float32(255)
    pixels = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("size", TORCHVISION_CROPS)
def test_the_crop_is_torchvisions_to_the_bit(size):
    prepare = choose_image_processor(clip(), "openai")
    found = prepare(noise(size), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(found, restated(noise(size), 224, *TORCHVISION_CROPS[size]))


@pytest.mark.parametrize("size", TORCHVISION_CROPS)
def test_transformers_own_crop_is_one_pixel_off_where_torchvision_rounds_up(size):
    own = clip()(noise(size), return_tensors="pt")["pixel_values"][0]
    published = choose_image_processor(clip(), "openai")(noise(size))["pixel_values"][0]
    same = torch.allclose(own, published, atol=1e-5)
    assert same == (size not in ONE_PIXEL_OFF)


def test_an_image_of_the_right_size_is_not_resampled():
    image = noise((224, 300))
    prepared = choose_image_processor(clip(), "openai")(image)["pixel_values"][0]
    assert torch.equal(prepared, restated(image.crop((0, 38, 224, 262)), 224, 0, 0))


def test_any_clip_processor_gives_its_own_sizes_and_colours():
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 48},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
    )
    expected = OpenAIPreprocessing(48, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert choose_image_processor(processor, "openai") == expected


@pytest.mark.parametrize(
    ("processor", "got"),
    [
        (SiglipImageProcessorPil(), "SiglipImageProcessorPil without do_center_crop"),
        (CLIPImageProcessorPil(do_normalize=False), "without do_normalize"),
        (CLIPImageProcessorPil(resample=2), "resample 2"),
        (CLIPImageProcessorPil(rescale_factor=1 / 127.5), "rescale_factor"),
        (CLIPImageProcessorPil(size={"height": 224, "width": 224}), "sizes"),
        (clip(224).__class__(size={"shortest_edge": 200}), "a crop of 224"),
    ],
)
def test_processors_of_another_kind_are_refused(processor, got):
    with pytest.raises(ValueError, match=got):
        choose_image_processor(processor, "openai")
    assert choose_image_processor(processor, "transformers") is processor


def test_an_unknown_preprocessing_is_refused_before_a_model_is_loaded(triples):
    with pytest.raises(ValueError, match=r"one of \['transformers', 'openai'\], got 'clip'"):
        score("/no/such/model", triples, preprocessing="clip")


def test_a_function_prepares_its_pictures_itself(triples):
    with pytest.raises(ValueError, match="left out for functions and objects"):
        score(lambda images, captions: None, triples, preprocessing="openai")


def test_each_preprocessing_has_its_own_logits_cache_and_signature(
    tiny_clip, triples, tmp_path, monkeypatch
):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path))
    ours, published = (
        evaluate(tiny_clip, triples, preprocessing=name) for name in ("transformers", "openai")
    )
    names = [r.signature["processor"]["preprocessing"] for r in (ours, published)]
    assert names == ["transformers", "openai"]
    assert len(list(tmp_path.iterdir())) == 2
    truth = score(tiny_clip, triples, preprocessing="openai", cache=False)
    np.testing.assert_array_equal(published.logits, truth)
    assert np.abs(ours.logits - published.logits).max() > 1e-3


def test_the_logits_are_those_of_the_models_own_forward_on_openais_pixels(tiny_clip, triples):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    prepare = choose_image_processor(processor.image_processor, "openai")
    logits = score(tiny_clip, triples, preprocessing="openai", device="cpu", cache=False)
    for row, found in zip(triples, logits, strict=True):
        texts = [row[name] for name in ("caption", "hard_positive", "hard_negative")]
        inputs = processor.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs, **prepare(row["image"].convert("RGB"))).logits_per_image[0]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.skipif("HARD_POSITIVES_DATA" not in os.environ, reason="no published annotations")
def test_no_row_flips_against_the_published_counters(tiny_clip, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import published_counters

    data = Path(os.environ["HARD_POSITIVES_DATA"]) / "replace"
    arguments = ["--annotations", str(data), "--model", str(tiny_clip), "--rows", "40"]
    monkeypatch.setattr(sys, "argv", ["published_counters.py", *arguments])
    with pytest.raises(SystemExit, match=r"^0$|^False$"):
        published_counters.main()
    told = capsys.readouterr().out
    assert told.count("ours, openai") == 2
    assert told.count(", 0 rows flip") >= 2


def decoded(mode: str, size: tuple[int, int]) -> Image.Image:
    """What the scorer decodes from a file in one of Pillow's modes."""
    buffer = io.BytesIO()
    image = noise(size).convert("I" if mode == "I;16" else mode)
    image.convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    return decode_image({"bytes": buffer.getvalue(), "path": None}, 0)


PICTURES = [
    decoded(mode, size)
    for mode, size in [
        ("RGB", (640, 427)),
        ("RGB", (427, 640)),
        ("RGB", (224, 224)),
        ("L", (500, 334)),
        ("LA", (300, 301)),
        ("RGBA", (33, 1000)),
        ("P", (7, 5)),
        ("1", (1, 1)),
        ("CMYK", (500, 375)),
        ("I;16", (225, 224)),
    ]
]
CUT = {
    "CLIP": (clip(), PillowProcessor),
    "CLIP, openai": (choose_image_processor(clip(), "openai"), UnscaledProcessor),
    "CLIP, a smaller crop": (CLIPImageProcessorPil(size={"shortest_edge": 256}), PillowProcessor),
    "CLIP, a larger crop": (CLIPImageProcessorPil(size={"shortest_edge": 200}), UnscaledProcessor),
    "CLIP, no resize": (CLIPImageProcessorPil(do_resize=False), UnscaledProcessor),
    "CLIP, not normalised": (CLIPImageProcessorPil(do_normalize=False), PillowProcessor),
    "CLIP, not rescaled": (CLIPImageProcessorPil(do_rescale=False), PillowProcessor),
    "SigLIP": (SiglipImageProcessorPil(), PillowProcessor),
    "SigLIP, bilinear": (
        SiglipImageProcessorPil(size={"height": 96, "width": 48}, resample=2),
        PillowProcessor,
    ),
}


@pytest.mark.parametrize(("whole", "kind"), CUT.values(), ids=CUT)
def test_the_two_halves_of_a_processor_give_what_the_whole_does_to_the_bit(whole, kind):
    halves = cut_in_two(whole, PICTURES[:1])
    assert isinstance(halves.prepare.image_processor, kind)
    for picture in PICTURES:
        pixels = halves.prepare(picture)["pixel_values"][None]
        expected = whole(picture, return_tensors="pt")["pixel_values"]
        found = look_up(pixels, halves.floats)
        assert pixels.dtype == torch.uint8
        assert found.is_contiguous()
        assert found.dtype == expected.dtype
        assert found.numpy().tobytes() == expected.numpy().tobytes()


def test_the_table_in_half_precision_is_the_whole_in_half_precision():
    halves = cut_in_two(clip(), PICTURES[:1])
    pixels = halves.prepare(PICTURES[0])["pixel_values"][None]
    expected = clip()(PICTURES[0], return_tensors="pt")["pixel_values"]
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(look_up(pixels, halves.floats.to(dtype)), expected.to(dtype))


class PerImage(CLIPImageProcessorPil):
    def normalize(self, image, mean, std, **options):
        return super().normalize(image, image.mean(), image.std() + 1, **options)


class Lightening(CLIPImageProcessorPil):
    """Differs for dark pictures only, which need not be among those that are checked."""

    def normalize(self, image, mean, std, **options):
        return super().normalize(image + (image.mean() < 0.1), mean, std, **options)


def lightening(processor):
    """The same without a class of one's own."""
    processor.normalize = lambda image, *options, **others: image + (image.mean() < 0.1)
    return processor


UNCUT = {
    "a class from outside": Lightening(),
    "a method from outside": lightening(clip()),
    "padding after normalising": CLIPImageProcessorPil(
        do_pad=True, pad_size={"height": 300, "width": 300}
    ),
    "a mask beside the pixels": ViltImageProcessorPil(),
    "patches": Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    "a step that cannot be left out": EfficientNetImageProcessorPil(),
    "neither step": CLIPImageProcessorPil(do_rescale=False, do_normalize=False),
}


@pytest.mark.parametrize("whole", UNCUT.values(), ids=UNCUT)
def test_what_cannot_be_cut_stays_whole(whole):
    assert cut_in_two(whole, PICTURES[:1]) == Preparation(OneImage(whole))


def test_a_processor_that_looks_at_the_whole_picture_is_found_out_by_the_pictures(monkeypatch):
    def normalize(self, image, mean, std, **options):
        return (image - image.mean()).astype(np.float32)

    normalize.__module__ = "transformers.models"
    monkeypatch.setattr(CLIPImageProcessorPil, "normalize", normalize, raising=False)
    whole = clip()
    assert cut_in_two(whole, []).floats is not None
    assert cut_in_two(whole, PICTURES[:1]) == Preparation(OneImage(whole))


def test_a_picture_that_comes_out_otherwise_keeps_a_processor_whole(monkeypatch):
    # As if another version of transformers cropped otherwise, by one pixel for one of the sizes.
    whole = clip()
    resized = PillowProcessor._resized
    monkeypatch.setattr(
        PillowProcessor,
        "_resized",
        lambda self, image: tuple(side + (image.width == 33) for side in resized(self, image)),
    )
    assert cut_in_two(whole, PICTURES[:5]).floats is not None
    assert cut_in_two(whole, PICTURES) == Preparation(OneImage(whole))


@pytest.mark.parametrize("preprocessing", ["transformers", "openai"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_cut_or_whole_the_logits_are_the_same(
    tiny_clip, triples, monkeypatch, preprocessing, num_workers
):
    options = {"preprocessing": preprocessing, "num_workers": num_workers, "cache": False}
    finish, looked_up = Preparation.finish, []

    def counting(self, batch):
        looked_up.append(0 if self.floats is None else len(batch["pixel_values"]))
        return finish(self, batch)

    monkeypatch.setattr(Preparation, "finish", counting)
    cut = score(tiny_clip, triples, **options)
    assert sum(looked_up) == 10
    monkeypatch.setattr(
        encoders, "cut_in_two", lambda processor, images: Preparation(OneImage(processor))
    )
    np.testing.assert_array_equal(cut, score(tiny_clip, triples, **options))
    assert sum(looked_up) == 10


def test_a_processor_from_outside_gives_the_logits_of_its_own_pixels(tiny_clip, triples):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny_clip, backend="pil")
    processor.image_processor = PerImage(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    logits = score(model, triples, processor=processor, cache=False)
    for row, found in zip(triples, logits, strict=True):
        texts = [row[name] for name in ("caption", "hard_positive", "hard_negative")]
        inputs = processor(images=row["image"], text=texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits_per_image[0]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
