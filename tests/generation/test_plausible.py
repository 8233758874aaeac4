"""Edits chosen by a language model: real rules, and a model whose likelihoods can be read."""

import json

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from tokenizers.pre_tokenizers import ByteLevel
from typer.testing import CliRunner

from hard_positives import Rules, generate, read_captions
from hard_positives.cli import app
from hard_positives.generation.plausible import Plausible
from hard_positives.generation.run import TASKS, words_of
from hard_positives.generation.text_alone import TextAlone, describe
from hard_positives.models.loading import load_model

CAPTIONS = [
    "a red car and a black truck near a sofa",
    "two dogs and a cat on a white bed",
    "a young man and a little boy stand near a wooden table",
    "a small white bird on an old green bench",
    "a big horse beside a brown cow",
] * 2
REPLACE_POSITIVE, REPLACE_NEGATIVE, _, SWAP_NEGATIVE = TASKS


def words(captions) -> list[str]:
    return [word for caption in captions for word in words_of(caption)]


class ByLength:
    """A blind model to which a text is the less likely, the more letters it has."""

    class identity:
        cache_key = "by length"

    def log_likelihoods(self, captions):
        return np.array([-len(caption) for caption in captions], np.float32)


class Fixed(ByLength):
    """One that finds what it is told to find usual."""

    class identity:
        cache_key = "fixed"

    def __init__(self, usual):
        self.usual = usual

    def log_likelihoods(self, captions):
        return np.array([-1.0 if text in self.usual else -50.0 for text in captions], np.float32)


def source_of(captions):
    return read_captions(Dataset.from_dict({"caption": captions}))


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_candidates_begin_with_the_edit_that_the_rules_make(task):
    for caption in CAPTIONS:
        candidates = [edit.caption for edit in Rules().candidates(caption, task)]
        assert candidates[:1] == [edit for edit in [Rules().edit(caption, task).caption] if edit]
        assert len(set(candidates)) == len(candidates)
        assert all(words_of(text) != words_of(caption) for text in candidates)


def test_the_hard_negative_is_the_one_whose_likelihood_is_nearest_to_the_captions():
    caption = CAPTIONS[0]
    edits = [edit.caption for edit in Rules().candidates(caption, REPLACE_NEGATIVE)]
    positives = Rules().candidates(caption, REPLACE_POSITIVE)
    able = {_ends(caption, edit.caption) for edit in positives}
    usable = [text for text in edits if _ends(caption, text) in able]
    assert len(usable) > 3
    for usual in usable:
        model = Fixed({caption, usual})
        [chosen] = Plausible(Rules(), model, "fixed").edit_batch([caption], REPLACE_NEGATIVE)
        assert chosen.caption == usual
        assert chosen.likelihoods == (-1, -1 if usual == edits[0] else -50, -1)


def test_a_likelier_edit_is_no_better_than_a_less_likely_one():
    """Nearest, not likeliest: else text alone would find the hard negative instead."""
    [chosen] = Plausible(Rules(), ByLength(), "length").edit_batch(CAPTIONS[:1], REPLACE_NEGATIVE)
    lengths = [
        abs(len(edit.caption) - len(CAPTIONS[0]))
        for edit in Rules().candidates(CAPTIONS[0], REPLACE_NEGATIVE)
    ]
    assert min(lengths) < max(lengths)
    assert abs(len(chosen.caption) - len(CAPTIONS[0])) == min(lengths)


def test_hard_positive_and_hard_negative_change_the_same_words_where_rules_would():
    for caption in CAPTIONS[:5]:
        plain = [Rules().edit(caption, task).caption for task in TASKS[:2]]
        editor = Plausible(Rules(), ByLength(), "length")
        chosen = [editor.edit_batch([caption], task)[0].caption for task in TASKS[:2]]
        if None not in plain and _ends(caption, plain[0]) == _ends(caption, plain[1]):
            assert _ends(caption, chosen[0]) == _ends(caption, chosen[1])


def _ends(caption, edited):
    """The words behind the change."""
    pairs = zip(words_of(caption)[::-1], words_of(edited)[::-1], strict=False)
    return [one == other for one, other in pairs].index(False)


def test_what_no_rule_edits_keeps_its_reason():
    [edit] = Plausible(Rules(), ByLength(), "length").edit_batch(["hello"], REPLACE_POSITIVE)
    assert edit == Rules().edit("hello", REPLACE_POSITIVE)
    assert edit.reason


def test_the_record_counts_what_text_alone_tells_before_and_after(tmp_path):
    class OnlyCaptions(Fixed):
        """Finds captions and the last candidate usual, and nothing else."""

    usual = set(CAPTIONS)
    for caption in CAPTIONS:
        for task in TASKS:
            usual |= {edit.caption for edit in Rules().candidates(caption, task)[-1:]}
    editor = Plausible(Rules(), OnlyCaptions(usual), "usual")
    folder = generate(source_of(CAPTIONS), tmp_path / "train", editor, progress=False)
    record = json.loads((folder / "generation.json").read_text())
    assert record["settings"]["plausible_by"] == {"model": "usual", "sha256": "fixed"}
    rows = Dataset.from_parquet(str(next((folder / "data").iterdir())), cache_dir=str(tmp_path))
    likelihood = OnlyCaptions(usual).log_likelihoods
    for kind in ("replace", "swap"):
        whole = [row for row in rows if row["id"].endswith(kind) and row["hard_negative"]]
        caption, negative = (
            likelihood([row[name] for row in whole]) for name in ("caption", "hard_negative")
        )
        after = record["text_alone"]["after"][kind]
        assert after["num_examples"] == len(whole)
        assert after["original_accuracy"] == pytest.approx((caption > negative).mean())
        firsts = [Rules().edit(row["caption"], _negative(kind)).caption for row in whole]
        before = record["text_alone"]["before"][kind]
        assert before["original_accuracy"] == pytest.approx((caption > likelihood(firsts)).mean())
    assert (
        record["text_alone"]["after"]["replace"]["original_accuracy"]
        < record["text_alone"]["before"]["replace"]["original_accuracy"]
    )
    [line, *_] = describe(record["text_alone"])
    assert line.startswith("Text alone puts the caption above the hard negative in ")


def _negative(kind):
    return REPLACE_NEGATIVE if kind == "replace" else SWAP_NEGATIVE


def test_rules_alone_record_nothing_of_text_alone(tmp_path):
    folder = generate(source_of(CAPTIONS), tmp_path / "train", Rules(), workers=1, progress=False)
    assert "text_alone" not in json.loads((folder / "generation.json").read_text())
    assert TextAlone().record() == {}


def test_a_run_resumes_only_under_the_same_language_model(tmp_path):
    class Stopping(ByLength):
        def log_likelihoods(self, captions):
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError):
        generate(
            source_of(CAPTIONS),
            tmp_path / "train",
            Plausible(Rules(), Stopping(), "length"),
            progress=False,
        )
    other = Plausible(Rules(), Fixed(set()), "length")
    with pytest.raises(ValueError, match="got another plausible_by"):
        generate(source_of(CAPTIONS), tmp_path / "train", other, progress=False)
    same = Plausible(Rules(), ByLength(), "length")
    generate(source_of(CAPTIONS), tmp_path / "train", same, progress=False)


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory):
    """A random GPT-2 that reads letter by letter."""
    vocabulary = {letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary["<|end|>"] = len(vocabulary)
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(), decoders.ByteLevel()
    torch.manual_seed(0)
    config = hf.GPT2Config(
        vocab_size=len(vocabulary), n_embd=16, n_layer=1, n_head=2, n_positions=128
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    hf.GPT2LMHeadModel(config).save_pretrained(folder)
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(
        folder
    )
    return folder


def test_the_command_chooses_prints_and_records(tiny_gpt2, tmp_path):
    path, output = tmp_path / "captions.txt", tmp_path / "train"
    path.write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    command = ["generate", str(path), "--output", str(output), "--plausible-by", f"lm:{tiny_gpt2}"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "Text alone puts the caption above the hard negative in" in done.stdout
    settings = json.loads((output / "generation.json").read_text())["settings"]
    assert settings["plausible_by"]["model"] == "lm:tiny"
    assert str(tiny_gpt2.parent) not in (output / "generation.json").read_text()
    model = load_model(f"lm:{tiny_gpt2}")
    assert settings["plausible_by"]["sha256"] == model.identity.cache_key
    [edit] = Plausible(Rules(), model, "x").edit_batch(CAPTIONS[:1], SWAP_NEGATIVE)
    expected = model.log_likelihoods([CAPTIONS[0], edit.caption])
    assert edit.likelihoods[::2] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("options", [["--model", "qwen"], ["--engine", "ray"], ["--workers", "2"]])
def test_what_a_language_model_here_cannot_be_combined_with_is_refused(
    options, tiny_gpt2, tmp_path
):
    path = tmp_path / "captions.txt"
    path.write_text("a red car\n")
    command = ["generate", str(path), "--output", str(tmp_path / "train"), *options]
    done = CliRunner().invoke(app, [*command, "--plausible-by", f"lm:{tiny_gpt2}"])
    assert done.exit_code == 1
    assert "Expected plausible_by to be given with the rules on this machine" in done.stderr


def test_a_model_that_sees_pictures_does_not_judge_texts(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a red car\n")
    command = ["generate", str(path), "--output", str(tmp_path / "train")]
    done = CliRunner().invoke(app, [*command, "--plausible-by", "shapes_clip"])
    assert done.exit_code == 1
    assert "a language model that sees no picture, got 'shapes_clip'" in done.stderr
