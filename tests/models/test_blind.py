"""Language models that see no picture, against their plain forward pass, a caption at a time."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import ROOT
from datasets import Dataset, Features, Image, List, Value
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from tokenizers.pre_tokenizers import ByteLevel
from typer.testing import CliRunner

from hard_positives import (
    EvaluationResult,
    evaluate,
    render_summary,
    render_table,
    score,
    write_report,
)
from hard_positives.cli import app
from hard_positives.models.blind import BlindModel
from hard_positives.models.loading import load_model
from hard_positives.scoring.cache import list_cache
from hard_positives.suite.columns import CAPTION_COLUMNS, Columns

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
FAMILIES = {
    "gpt2": hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "llama": hf.LlamaConfig(**WIDE, max_position_embeddings=64),
    "qwen2": hf.Qwen2Config(**WIDE, max_position_embeddings=64),
    "qwen3": hf.Qwen3Config(**WIDE, max_position_embeddings=64),
    "gemma2": hf.Gemma2Config(**WIDE, max_position_embeddings=64, final_logit_softcapping=3.0),
    "opt": hf.OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64),
    "bloom": hf.BloomConfig(hidden_size=16, n_layer=2, n_head=2),
    "mamba": hf.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def letters(**special) -> hf.PreTrainedTokenizerFast:
    """A tokenizer that reads letter by letter."""
    words = [*sorted(ByteLevel.alphabet()), *special.values()]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save(folder, config, tokenizer=None):
    """Save a random model whose logits differ visibly, and its tokenizer."""
    tokenizer = tokenizer or letters(eos_token="<|endoftext|>")
    config.vocab_size = len(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, tokenizer.eos_token_id)
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    for values in model.parameters():
        if values.ndim > 1:
            torch.nn.init.normal_(values, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "tiny", FAMILIES["gpt2"])


def plain(folder, caption: str, begin: int | None = None) -> float:
    """Sum over a caption's tokens, one at a time, in float64."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.eos_token_id if begin is None else begin]
    total = 0.0
    for token in tokenizer.encode(caption, add_special_tokens=False):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        total += float(logits[token] - torch.logsumexp(logits, 0))
        ids.append(token)
    return total


def captions_of(rows) -> list[list[str]]:
    return [[row[name] for name in CAPTION_COLUMNS] for row in rows]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_logit_is_the_sum_of_log_probabilities_of_the_caption(family, tmp_path, triples):
    folder = save(tmp_path / family, FAMILIES[family])
    rows = triples.select(range(0, 40, 9))
    expected = [[plain(folder, text) for text in texts] for texts in captions_of(rows)]
    assert np.ptp(expected, axis=1).min() > 0.01
    np.testing.assert_allclose(score(f"lm:{folder}", rows), expected, atol=1e-4, rtol=0)


def test_a_beginning_of_text_stands_before_the_caption_where_the_tokenizer_has_one(tmp_path):
    tokenizer = letters(bos_token="<s>", eos_token="</s>")
    folder = save(tmp_path / "model", FAMILIES["llama"], tokenizer)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    [found] = load_model(f"lm:{folder}").log_likelihoods(["a cat"])
    assert abs(plain(folder, "a cat", begin) - plain(folder, "a cat", end)) > 0.01
    np.testing.assert_allclose(found, plain(folder, "a cat", begin), atol=1e-4)


def test_a_beginning_that_the_tokenizer_itself_would_add_stands_there_once(tmp_path):
    tokenizer = letters(bos_token="<s>", eos_token="</s>")
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(one, tokenizer.convert_tokens_to_ids(one)) for one in ("<s>", "</s>")],
    )
    folder = save(tmp_path / "model", FAMILIES["llama"], tokenizer)
    read = hf.AutoTokenizer.from_pretrained(folder)("a cat")["input_ids"]
    assert read[0] == tokenizer.bos_token_id
    assert read[-1] == tokenizer.eos_token_id
    [found] = load_model(f"lm:{folder}").log_likelihoods(["a cat"])
    np.testing.assert_allclose(found, plain(folder, "a cat", read[0]), atol=1e-4)


@pytest.fixture(scope="module")
def uneven(triples):
    """Captions of which the longer one can have fewer tokens: an accent takes two."""
    return triples.map(
        lambda row: {"caption": "\u00e9" * int(row["image_id"]) + row["caption"][:9]}
    )


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 50}])
def test_batches_and_the_order_of_rows_change_nothing(gpt2, uneven, options):
    expected = score(f"lm:{gpt2}", uneven, cache=False)
    one_by_one = [plain(gpt2, text) for text in uneven["caption"][::4]]
    np.testing.assert_allclose(expected[::4, 0], one_by_one, atol=1e-4)
    order = np.random.default_rng(1).permutation(len(uneven))
    shuffled = score(f"lm:{gpt2}", uneven.select(order), cache=False, **options)
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-4, rtol=0)


def test_the_logits_are_float32_sums_whatever_the_type_of_the_rest(gpt2, triples):
    half = score(f"lm:{gpt2}", triples, dtype="bfloat16")
    assert half.dtype == np.float32
    assert len(np.unique(half)) == len(np.unique(score(f"lm:{gpt2}", triples)))
    np.testing.assert_allclose(half, score(f"lm:{gpt2}", triples), rtol=0.05)


def test_no_picture_is_decoded(gpt2, tiny_clip, triples):
    """Bytes that are no picture at all are scored like the pictures."""
    records = triples.cast_column("image", Image(decode=False)).to_list()
    broken = [
        {**record, "image": {"bytes": f"no picture {record['image_id']}".encode(), "path": None}}
        for record in records
    ]
    rows = Dataset.from_list(broken, features=triples.features)
    np.testing.assert_array_equal(score(f"lm:{gpt2}", rows), score(f"lm:{gpt2}", triples))
    with pytest.raises(Exception, match=r"[Ii]mage"):
        score(tiny_clip, rows)


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """Sizes of the batches that were scored rather than read from the cache."""
    sizes = []
    score_captions = BlindModel.score_captions

    def counting(self, token_ids):
        sizes.append(len(token_ids))
        return score_captions(self, token_ids)

    monkeypatch.setattr(BlindModel, "score_captions", counting)
    return sizes


def distinct(rows) -> int:
    return len({text for texts in captions_of(rows) for text in texts})


def test_each_distinct_caption_is_scored_once_and_kept(gpt2, uneven, scored):
    some = uneven.select(range(5))
    first = score(f"lm:{gpt2}", some)
    assert sum(scored) == distinct(some)
    whole = score(f"lm:{gpt2}", uneven)
    assert sum(scored) == distinct(uneven)
    np.testing.assert_array_equal(whole[:5], first)
    np.testing.assert_array_equal(score(f"lm:{gpt2}", uneven), whole)
    assert sum(scored) == distinct(uneven)
    [kept] = list_cache()
    assert "float32" in kept.name


def change_weights(folder):
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    model.transformer.h[1].attn.c_attn.weight.data[3, 3] += 1
    model.save_pretrained(folder)


def change_tokenizer(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(content))


def change_beginning(folder):
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "!"
    tokenizer.save_pretrained(folder)


def change_attention(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "scale_attn_weights": False}))


@pytest.mark.parametrize(
    "change", [change_weights, change_tokenizer, change_beginning, change_attention]
)
def test_whatever_changes_a_logit_has_a_cache_of_its_own(change, triples, tmp_path):
    folder = save(tmp_path / "model", FAMILIES["gpt2"])
    first = score(f"lm:{folder}", triples)
    change(folder)
    second = score(f"lm:{folder}", triples)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(second, score(f"lm:{folder}", triples, cache=False), atol=1e-5)
    assert len(list_cache()) == 2


def test_another_copy_of_the_same_model_uses_what_is_kept(gpt2, triples, tmp_path, scored):
    first = score(f"lm:{gpt2}", triples)
    copy = save(tmp_path / "copy", FAMILIES["gpt2"])
    number = sum(scored)
    np.testing.assert_array_equal(score(f"lm:{copy}", triples), first)
    assert sum(scored) == number


@pytest.mark.parametrize(
    ("caption", "match"),
    [
        ("x" * 64, "at most 64 tokens long, got 1 longer"),
        ("", "every caption to make a token, got ''"),
        ("a cat<|endoftext|>", "plain text, got the model's own token '<|endoftext|>'"),
    ],
)
def test_captions_that_would_be_misread_are_refused_before_any_is_scored(
    gpt2, triples, scored, caption, match
):
    rows = triples.map(lambda row: {"caption": caption} if row["image_id"] == "3" else {})
    with pytest.raises(ValueError, match=match):
        score(f"lm:{gpt2}", rows)
    assert not scored
    fitting = triples.map(lambda row: {"caption": "x" * 63} if row["image_id"] == "3" else {})
    assert np.isfinite(score(f"lm:{gpt2}", fitting)).all()


def test_a_tokenizer_that_neither_begins_nor_ends_texts_is_refused(tmp_path, triples):
    folder = save(tmp_path / "model", FAMILIES["gpt2"])
    tokenizer = letters()
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="a token that begins or ends a text, got none"):
        score(f"lm:{folder}", triples)


def test_a_model_that_reads_what_comes_next_is_refused(tmp_path, triples):
    config = hf.BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=64)
    folder = save(tmp_path / "bert", config)
    with pytest.raises(ValueError, match="BertLMHeadModel to read from left to right"):
        score(f"lm:{folder}", triples)
    causal = hf.BertConfig(**config.to_dict() | {"is_decoder": True})
    assert score(f"lm:{save(tmp_path / 'causal', causal)}", triples).shape == (40, 3)


def test_what_is_no_language_model_is_refused(tiny_clip, triples):
    with pytest.raises(TypeError, match="to be a causal language model of transformers, got one"):
        score(f"lm:{tiny_clip}", triples)


def test_settings_of_other_kinds_are_refused(gpt2, triples):
    with pytest.raises(ValueError, match="Expected question to be left out for language models"):
        score(f"lm:{gpt2}", triples, question="{}?")


def test_where_pictures_are_compared_all_of_them_tie(gpt2, triples):
    rows = Dataset.from_dict(
        {
            "caption": triples["caption"][:4],
            "true": [triples[place]["image"] for place in (0, 4, 8, 12)],
            "false": [triples[place]["image"] for place in (4, 8, 12, 16)],
        },
        Features({"caption": Value("string"), "true": Image(), "false": Image()}),
    )
    columns = Columns(caption="caption", positives="true", negatives="false")
    logits = score(f"lm:{gpt2}", rows, columns=columns)
    np.testing.assert_array_equal(logits[:, 0], logits[:, 1])
    result = evaluate(f"lm:{gpt2}", rows, columns=columns)
    [figures] = result.metrics["as_published"].values()
    assert figures["original_accuracy"] == 0
    assert figures["original_accuracy_half_credit"] == 0.5


def test_lists_of_captions_and_captions_alone_are_scored(gpt2, triples):
    rows = triples.map(
        lambda row: {"false": [row["hard_negative"], "no " + row["caption"]]},
        features=Features({**triples.features, "false": List(Value("string"))}),
    )
    assert score(
        f"lm:{gpt2}", rows, columns=Columns(positives="caption", negatives="false")
    ).shape == (40, 3)
    alone = score(f"lm:{gpt2}", triples, columns=Columns(text_only=True))
    # Each true caption among the others: log P of the candidates, whatever the anchor.
    np.testing.assert_array_equal(alone[0], score(f"lm:{gpt2}", triples)[0, 1:])


# Every process notes how many captions it scored.
PROCESS = """
import json, os, sys
notes = sys.argv.pop(1)
from hard_positives.models.blind import BlindModel
from hard_positives.scoring import likelihoods
from hard_positives.cli import app

likelihoods.CAPTIONS_PER_CHUNK = 8
score_captions = BlindModel.score_captions
def counting(self, token_ids):
    with open(f"{notes}/{os.getpid()}", "a") as file:
        file.write("x" * len(token_ids))
    return score_captions(self, token_ids)
BlindModel.score_captions = counting
app()
"""


def command(tmp_path, gpt2, rows, name):
    folder = tmp_path / "rows"
    if not folder.exists():
        folder.mkdir()
        rows.to_parquet(folder / "swap-00000-of-00001.parquet")
    (tmp_path / "process.py").write_text(PROCESS)
    (tmp_path / name).mkdir()
    arguments = [str(tmp_path / "process.py"), str(tmp_path / name), "evaluate", f"lm:{gpt2}"]
    return [*arguments, "--dataset", str(folder), "--output", str(tmp_path / "result")]


def many(triples):
    return triples.map(
        lambda row, place: {name: f"{row[name]} {place}" for name in CAPTION_COLUMNS},
        with_indices=True,
    )


@pytest.mark.slow
def test_two_processes_share_the_captions(gpt2, triples, tmp_path):
    rows = many(triples)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, *command(tmp_path, gpt2, rows, "notes")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    shares = [len(path.read_text()) for path in (tmp_path / "notes").iterdir()]
    assert len(shares) == 2
    assert sum(shares) == distinct(rows)
    result = EvaluationResult.load(tmp_path / "result")
    np.testing.assert_allclose(result.logits, score(f"lm:{gpt2}", rows, cache=False), atol=1e-4)


@pytest.mark.slow
def test_a_killed_run_resumes_and_scores_no_whole_chunk_again(gpt2, triples, tmp_path, own_cache):
    rows = many(triples)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([sys.executable, *command(tmp_path, gpt2, rows, "first")], env=env)
    while first.poll() is None and len(list(own_cache.glob("*/*.safetensors"))) < 3:
        time.sleep(0.001)
    kept = len(list(own_cache.glob("*/*.safetensors")))
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = len(list(own_cache.glob("*/*.safetensors")))
    assert kept >= 3
    subprocess.run([sys.executable, *command(tmp_path, gpt2, rows, "second")], env=env, check=True)
    [note] = (tmp_path / "second").iterdir() if any((tmp_path / "second").iterdir()) else [None]
    again = len(note.read_text()) if note else 0
    assert again == distinct(rows) - 8 * kept
    result = EvaluationResult.load(tmp_path / "result")
    np.testing.assert_allclose(result.logits, score(f"lm:{gpt2}", rows, cache=False), atol=1e-4)


def test_tables_and_pages_say_that_it_sees_no_picture(gpt2, tiny_clip, triples, tmp_path):
    sighted = evaluate(tiny_clip, triples, name="sighted")
    blind = evaluate(f"lm:{gpt2}", triples)
    assert "sees:text alone" in blind.signature_line
    assert str(gpt2.parent) not in json.dumps(blind.signature)
    shown = render_table(blind)
    assert shown.title.plain == "lm:tiny (text alone)"
    assert "sees no picture" in shown.caption
    summary = render_summary([sighted, blind])
    names = [cell if isinstance(cell, str) else cell.plain for cell in summary.columns[0].cells]
    assert " lm:tiny (text alone)" in names
    assert " sighted" in names
    assert "text alone" not in render_table(sighted).title.plain
    assert "sees no picture" not in render_table(sighted).caption
    page = write_report([sighted, blind], tmp_path / "page", dataset=triples)
    assert "lm:tiny (text alone)" in page.read_text()
    in_markdown = (page.parent / "report.md").read_text().replace("\\", "")
    assert "lm:tiny (text alone)" in in_markdown


def test_the_command_line_lists_and_scores_it(gpt2, tmp_path):
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["models", "--json"]).stdout)
    assert any(str(kind).count("lm:") for kind in listed)
    done = runner.invoke(app, ["evaluate", f"lm:{gpt2}", "--dataset", "shapes", "--quiet"])
    assert done.exit_code == 0, done.output
    assert "lm:tiny (text alone)" in done.stdout
    assert "sees:text alone" in done.stdout.replace("\n", "")
