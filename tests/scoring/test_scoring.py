import io
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY_TOWER
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoProcessor, BertConfig, BertModel, CLIPModel, CLIPTokenizer

from hard_positives import score as score_with_cache
from hard_positives.models.loading import load_model
from hard_positives.suite.columns import CAPTION_COLUMNS, Columns
from hard_positives.suite.comparisons import read_comparisons
from hard_positives.suite.rows import open_image

score = partial(score_with_cache, cache=False)  # tests/test_engine.py has the cache


@pytest.fixture(scope="module")
def model(tiny_clip) -> CLIPModel:
    return CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return AutoProcessor.from_pretrained(tiny_clip, backend="pil")


def naive_logits(model, processor, rows: Dataset) -> np.ndarray:
    """One row at a time through the model's own forward."""
    logits = []
    for row in rows:
        inputs = processor(
            images=row["image"].convert("RGB"),
            text=[row[name] for name in CAPTION_COLUMNS],
            padding="max_length",
            max_length=77,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits.append(model(**inputs).logits_per_image[0].numpy())
    return np.stack(logits)


def test_logits_are_those_of_the_models_own_forward(model, processor, triples):
    logits = score(model, triples, processor=processor)
    assert logits.shape == (40, 3)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, naive_logits(model, processor, triples), atol=1e-5, rtol=0)


def test_the_fixture_tells_captions_and_images_apart(model, processor, triples):
    logits = score(model, triples, processor=processor)
    assert len(np.unique(logits, axis=0)) == len(triples)
    assert np.ptp(logits, axis=1).min() > 1e-4


def test_id_folder_and_objects_give_the_same_logits(tiny_clip, model, processor, triples):
    expected = score(model, triples, processor=processor)
    np.testing.assert_array_equal(score(tiny_clip, triples), expected)
    np.testing.assert_array_equal(score(str(tiny_clip), triples), expected)


def test_the_model_sees_each_distinct_image_and_caption_once(model, processor, triples):
    seen = {"images": 0, "captions": 0}

    def count(name):
        def hook(module, args, kwargs):
            values = args[0] if args else next(iter(kwargs.values()))
            seen[name] += len(values)

        return hook

    hooks = [
        model.vision_model.register_forward_pre_hook(count("images"), with_kwargs=True),
        model.text_model.register_forward_pre_hook(count("captions"), with_kwargs=True),
    ]
    score(model, triples, processor=processor, batch_size=3)
    for hook in hooks:
        hook.remove()
    captions = {row[name] for row in triples for name in CAPTION_COLUMNS}
    assert seen == {"images": 10, "captions": len(captions)}
    assert len(captions) < 3 * len(triples)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_batch_size_changes_nothing_but_rounding(tiny_clip, triples, batch_size):
    expected = score(tiny_clip, triples)
    logits = score(tiny_clip, triples, batch_size=batch_size)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    assert (np.argsort(logits, axis=1) == np.argsort(expected, axis=1)).all()


def test_row_i_of_the_result_is_row_i_of_the_dataset(tiny_clip, triples):
    order = np.random.default_rng(1).permutation(len(triples))
    shuffled = score(tiny_clip, triples.select(order))
    np.testing.assert_allclose(shuffled, score(tiny_clip, triples)[order], atol=1e-5, rtol=0)


def test_any_caption_columns_can_be_scored(tiny_clip, triples):
    columns = Columns(positives="hard_negative", negatives="caption")
    pair = score(tiny_clip, triples, columns=columns)
    np.testing.assert_allclose(pair, score(tiny_clip, triples)[:, [2, 0]], atol=1e-5, rtol=0)


def test_a_pair_has_one_logit_among_however_many_candidates(triples):
    # On the bundled model: its embeddings are long enough for sums in other orders to differ.
    rows = triples.select(range(8))
    captions = [rows["caption"][0], rows["caption"][1]]
    logits = []
    for number in range(1, 12):
        lists = {
            "positives": [[captions[0]] * number] * len(rows),
            "negatives": [captions[::-1]] * len(rows),
        }
        columns = Columns(positives=["positives"], negatives=["negatives"])
        some = rows.select_columns("image").to_dict() | lists
        dataset = Dataset.from_dict(some, features=features_with_lists(rows))
        logits.append(score("shapes_clip", dataset, columns=columns))
    first = np.concatenate([np.delete(one, -2, axis=1) for one in logits], axis=1)
    np.testing.assert_array_equal(first, np.broadcast_to(first[:, :1], first.shape))
    second = np.stack([one[:, -2] for one in logits], axis=1)
    np.testing.assert_array_equal(second, np.broadcast_to(second[:, :1], second.shape))


def features_with_lists(rows: Dataset) -> Features:
    texts = List(Value("string"))
    return Features({"image": rows.features["image"], "positives": texts, "negatives": texts})


def test_exif_orientation_is_not_applied(tiny_clip):
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (32, 48, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees
    files = []
    for options in ({}, {"exif": exif}):
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", **options)
        files.append({"bytes": buffer.getvalue(), "path": None})
    captions = {name: [name] * 2 for name in CAPTION_COLUMNS}
    rows = Dataset.from_dict({"image": files, **captions}).cast_column("image", ImageFeature())
    plain, rotated = score(tiny_clip, rows)
    assert len(read_comparisons(rows).pictures) == 2
    np.testing.assert_array_equal(plain, rotated)


def test_images_on_disk_are_scored_as_those_in_the_rows(tiny_clip, tmp_path, triples):
    cells = triples.cast_column("image", ImageFeature(decode=False))["image"][:]
    for row, cell in enumerate(cells):
        (tmp_path / f"{row}.png").write_bytes(cell["bytes"])
    rows = triples.to_list()
    for row in range(0, len(rows), 3):
        rows[row]["image"] = {"bytes": None, "path": str(tmp_path / f"{row}.png")}
    mixed = Dataset.from_list(rows, features=triples.features)
    assert read_comparisons(mixed).image_digests == read_comparisons(triples).image_digests
    np.testing.assert_array_equal(score(tiny_clip, mixed), score(tiny_clip, triples, cache=False))


def test_an_image_file_that_changes_while_it_is_scored_is_refused(tmp_path, triples):
    cells = triples.cast_column("image", ImageFeature(decode=False))["image"][:]
    (tmp_path / "0.png").write_bytes(cells[0]["bytes"])
    rows = triples.select(range(1)).to_list()
    rows[0]["image"] = {"bytes": None, "path": str(tmp_path / "0.png")}
    index = read_comparisons(Dataset.from_list(rows, features=triples.features))
    assert open_image(index, 0).size == (60, 40)
    (tmp_path / "0.png").write_bytes(cells[39]["bytes"])
    with pytest.raises(ValueError, match="image file of row 0 to stay as it is"):
        open_image(index, 0)


def test_only_the_encoders_run_in_half_precision(tiny_clip, triples):
    full = score(tiny_clip, triples)
    half = score(tiny_clip, triples, dtype="bfloat16")
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, full, atol=0.2)
    assert not np.array_equal(half, full)
    assert (half[:, 0] == half[:, 2]).mean() == 0  # no ties of near-identical captions


def test_memory_that_runs_out_halves_the_batch_and_goes_on(model, processor, triples):
    sizes = []

    def refuse_more_than_four(module, args, kwargs):
        sizes.append(len(kwargs["pixel_values"]))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError

    hook = model.vision_model.register_forward_pre_hook(refuse_more_than_four, with_kwargs=True)
    logits = score(model, triples, processor=processor)
    hook.remove()
    assert sizes[0] == 10 and max(sizes[-2:]) <= 4
    expected = score(model, triples, processor=processor)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


def test_a_missing_column_is_named(tiny_clip, triples):
    with pytest.raises(ValueError, match=r"Rename or add \['hard_negative'\]"):
        score(tiny_clip, triples.remove_columns("hard_negative"))


def test_no_rows_are_an_error(tiny_clip, triples):
    with pytest.raises(ValueError, match="to have rows, got none"):
        score(tiny_clip, triples.select([]))


def test_rows_of_another_kind_are_an_error(tiny_clip, triples):
    with pytest.raises(TypeError, match=r"datasets.Dataset, got list"):
        score(tiny_clip, list(triples))
    with pytest.raises(TypeError, match="'image' to be of type Image"):
        score(tiny_clip, triples.remove_columns("image").rename_column("image_id", "image"))


def test_a_caption_that_is_none_is_an_error_that_names_the_row(tiny_clip, triples):
    captions = [None if row == 7 else text for row, text in enumerate(triples["caption"])]
    rows = triples.remove_columns("caption").add_column("caption", captions)
    with pytest.raises(TypeError, match="'caption' to hold strings, got None in row 7"):
        score(tiny_clip, rows)


def test_a_caption_over_the_models_length_is_an_error_before_any_encoding(tiny_clip, triples):
    long = "x" * 76  # letter by letter: 76, and the start and end tokens
    rows = triples.map(lambda row: {"caption": long if row["image_id"] == "3" else row["caption"]})
    with pytest.raises(ValueError, match=r"at most 77 tokens long, got 1 longer ones, such as 'xx"):
        score(tiny_clip, rows)
    fits = triples.map(lambda row: {"caption": long[1:]})
    assert score(tiny_clip, fits).shape == (40, 3)


@pytest.mark.parametrize("file", [b"", b"not an image", b"\xff\xd8\xff\xe0 truncated"])
def test_an_image_that_cannot_be_read_is_an_error_that_names_the_row(tiny_clip, triples, file):
    rows = triples.to_list()[:3]
    rows[2]["image"] = {"bytes": file, "path": None}
    bad = Dataset.from_list(rows, features=triples.features)
    with pytest.raises(ValueError, match="Expected row 2 to hold a readable image"):
        score(tiny_clip, bad)


def test_a_row_without_an_image_is_an_error_that_names_the_row(tiny_clip, triples):
    rows = triples.to_list()[:3]
    rows[1]["image"] = None
    with pytest.raises(ValueError, match="Expected row 1 to have an image"):
        score(tiny_clip, Dataset.from_list(rows, features=triples.features))


def test_a_model_that_is_no_dual_encoder_is_refused_before_its_weights_load(
    tmp_path, processor, triples
):
    BertConfig(**TINY_TOWER).save_pretrained(tmp_path)  # no weights at all
    processor.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"dual encoder .* got BertModel"):
        score(tmp_path, triples)
    with pytest.raises(TypeError, match=r"dual encoder .* got BertModel"):
        score(BertModel(BertConfig(**TINY_TOWER)), triples, processor=processor)


def test_a_model_without_its_processor_is_an_error(model, triples):
    with pytest.raises(TypeError, match=r"AutoProcessor\), got NoneType"):
        score(model, triples)


def test_a_tokenizer_that_cannot_tell_captions_apart_is_an_error(model, processor, triples):
    vocabulary = {
        "<|startoftext|>": 512,
        "<|endoftext|>": 513,
        "n</w>": 5,
    }  # of all words the end of "on"
    for known, message in (
        (vocabulary, "tell 45 captions apart, got 9 different"),
        (None, "know words of captions, got none in 45 of 45"),
    ):
        broken = CLIPTokenizer(vocab=known, merges=[])
        with pytest.raises(ValueError, match=message):
            score(model, triples, processor=type(processor)(processor.image_processor, broken))


def test_a_tokenizer_that_ends_captions_otherwise_is_an_error(model, processor, triples):
    tokenizer = CLIPTokenizer(
        vocab=processor.tokenizer.get_vocab(), merges=[], eos_token="<|startoftext|>"
    )
    broken = type(processor)(processor.image_processor, tokenizer)
    with pytest.raises(ValueError, match="hold the end token 513, got 45 without"):
        score(model, triples, processor=broken)


def test_a_tokenizer_of_another_model_is_an_error(model, processor, triples):
    vocabulary = {word: place + 100 for word, place in processor.tokenizer.get_vocab().items()}
    broken = type(processor)(processor.image_processor, CLIPTokenizer(vocab=vocabulary, merges=[]))
    with pytest.raises(ValueError, match="ids below 514, got 613"):
        score(model, triples, processor=broken)


def test_logits_that_are_not_finite_are_an_error(tiny_clip, processor, triples):
    broken = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)
    torch.nn.init.constant_(broken.visual_projection.weight, torch.nan)
    with pytest.raises(ValueError, match=r"finite, got NaN or inf in 40 rows, first \[0, 1, 2"):
        score(broken, triples, processor=processor)


def test_unknown_settings_are_errors_that_name_the_known_ones(tiny_clip, triples):
    with pytest.raises(ValueError, match=r"'float16', 'auto'\], got 'int8'"):
        score(tiny_clip, triples, dtype="int8")
    with pytest.raises(ValueError, match="device to be one that this machine has, got 'gpu9'"):
        score(tiny_clip, triples, device="gpu9")
    with pytest.raises(ValueError, match="batch_size to be at least 1, got 0"):
        score(tiny_clip, triples, batch_size=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_logits_of_the_cpu(tiny_clip, triples):
    assert load_model(tiny_clip).device.type == "cuda"
    on_gpu = score(tiny_clip, triples, device="cuda")
    np.testing.assert_allclose(on_gpu, score(tiny_clip, triples, device="cpu"), atol=1e-3)
