"""A model behind a server: a real one on loopback, which plays faults."""

import base64
import hashlib
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import uvicorn
from conftest import ROOT
from fastapi import FastAPI, Request, Response
from PIL import Image
from test_generative import make, without_videos  # noqa: F401  (a fixture for all tests)

from hard_positives import score
from hard_positives.models.kinds import QUESTION
from hard_positives.suite.columns import CAPTION_COLUMNS

KEY = "sk-very-secret"


def log_probabilities(image: Image.Image, text: str) -> tuple[float, float]:
    """What the stand-in thinks of Yes and No: of the pixels and the question alone."""
    digest = hashlib.sha256(np.asarray(image.convert("RGB")).tobytes() + text.encode()).digest()
    yes = 0.05 + 0.5 * digest[0] / 256
    return math.log(yes), math.log(0.6 - yes)


def stand_in(image: Image.Image, text: str) -> dict[str, float]:
    """First tokens and their log-probabilities."""
    yes, no = log_probabilities(image, text)
    return {"Yes": yes, "No": no, " Yes": -4.0, "Maybe": -5.0, "The": -6.0}


class Server:
    """Answers as vLLM does; counts requests, and how many are there at once."""

    def __init__(self, first_tokens=stand_in):
        self.first_tokens = first_tokens
        self.app, self.asked, self.headers = FastAPI(), Counter(), []
        self.at_once = self.most_at_once = 0
        self.faults, self.seen = {}, Counter()
        self.hidden, self.created = {}, 0
        self.delay = 0.0
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/chat/completions")(self.complete)

    def models(self):
        self.created += 1
        one = {"id": "tiny/vlm", "object": "model", "created": self.created, "root": "tiny/vlm"}
        return {"object": "list", "data": [one]}

    async def complete(self, request: Request):
        import asyncio

        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay)
            return self.answer(await request.json(), request.headers)
        finally:
            self.at_once -= 1

    def answer(self, body: dict, headers) -> Response | dict:
        self.headers.append(dict(headers))
        picture, question = body["messages"][0]["content"]
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny/vlm", 1, 0)
        encoded = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
        image, text = Image.open(io.BytesIO(base64.b64decode(encoded))), question["text"]
        pair = (encoded, text)
        self.seen[pair] += 1
        fault = self.faults.get(len(self.headers))
        if fault is not None:
            return fault()
        self.asked[pair] += 1
        given = self.first_tokens(image, text)
        tokens = [one for one in given if one not in self.hidden.get(text, ())]
        top = [{"token": one, "logprob": given[one], "bytes": None} for one in tokens]
        top = sorted(top, key=lambda one: -one["logprob"])[: body["top_logprobs"]]
        content = [{**top[0], "top_logprobs": top}] if top else []
        message = {"role": "assistant", "content": top[0]["token"] if top else ""}
        choice = {"index": 0, "message": message, "logprobs": {"content": content}}
        return {"object": "chat.completion", "model": body["model"], "choices": [choice]}


@contextmanager
def running(server: Server):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    runner = uvicorn.Server(uvicorn.Config(server.app, port=port, log_level="error"))
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    while not runner.started:
        os.sched_yield()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        runner.should_exit = True
        thread.join()


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def url(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    with running(server) as address:
        yield address


def expected_logits(rows) -> np.ndarray:
    logits = []
    for row in rows:
        texts = [QUESTION.replace("{}", row[name]) for name in CAPTION_COLUMNS]
        answers = [log_probabilities(row["image"], text) for text in texts]
        logits.append([yes - no for yes, no in answers])
    return np.array(logits)


def test_every_pair_is_asked_once_many_at_a_time_and_kept(server, url, triples):
    logits = score("server:tiny/vlm", triples, base_url=url)
    np.testing.assert_allclose(logits, expected_logits(triples), atol=1e-5, rtol=0)
    assert set(server.asked.values()) == {1}
    assert server.most_at_once > 4
    again = score("server:tiny/vlm", triples, base_url=url)
    np.testing.assert_array_equal(again, logits)
    assert set(server.asked.values()) == {1}
    score("server:tiny/vlm", triples, base_url=url, question="Is it {}?")
    assert len(server.asked) == 2 * sum(1 for _ in {*server.asked} if "figure" in _[1])


class ServedModel:
    """A whole generative model, as a server runs it: one forward pass a request."""

    def __init__(self, family: str):
        self.model, self.processor = make(family)
        self.lock = threading.Lock()

    def __call__(self, image: Image.Image, text: str) -> dict[str, float]:
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with self.lock, torch.no_grad():
            last = self.model(**inputs).logits[0, -1].log_softmax(-1)
        words = self.processor.tokenizer.convert_ids_to_tokens(range(len(last)))
        return dict(zip(words, last.tolist(), strict=True))


@pytest.mark.parametrize("family", ["llava", "qwen3-vl"])
def test_a_served_model_gives_the_logits_that_it_gives_here(family, triples, tmp_path, monkeypatch):
    monkeypatch.setenv("HARD_POSITIVES_CACHE", str(tmp_path / "cache"))
    served = ServedModel(family)
    head = served.model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
    # Among the likeliest, as those of a trained model are.
    head.bias.data[served.processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])] = 20.0
    rows = triples.select(range(12)).map(lambda row: {"image": row["image"].convert("RGB")})
    here = score(served.model, rows, processor=served.processor, cache=False)
    with warnings.catch_warnings(record=True) as caught, running(Server(served)) as url:
        warnings.simplefilter("always")
        behind = score("server:tiny/vlm", rows, base_url=url)
    assert not [one for one in caught if "are bounds" in str(one.message)]
    np.testing.assert_allclose(behind, here, atol=2e-4, rtol=0)


def test_faults_are_tried_again_and_change_nothing(server, url, triples):
    def slow_down():
        return Response(status_code=429, headers={"Retry-After": "0.1"})

    server.faults = {
        2: lambda: Response(status_code=500),
        3: slow_down,
        5: lambda: Response("<html>"),
        7: lambda: Response('{"choices": []}'),
        9: lambda: Response(status_code=503, content="busy"),
    }
    rows = triples.select(range(16))
    logits = score("server:tiny/vlm", rows, base_url=url)
    np.testing.assert_allclose(logits, expected_logits(rows), atol=1e-5, rtol=0)
    assert len(server.headers) == len(server.asked) + len(server.faults)


def test_a_bound_is_counted_and_shown_also_from_the_cache(server, url, triples):
    rows = triples.select(range(4))
    question = QUESTION.replace("{}", rows[0]["caption"])
    server.hidden = {question: ("No",)}
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 12 logits are bounds: Yes or No was not among"):
            logits = score("server:tiny/vlm", rows, base_url=url)
        yes, _ = log_probabilities(rows[0]["image"], question)
        assert logits[0, 0] == pytest.approx(yes + 6.0, abs=1e-5)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (("Yes", "No"), r"to answer Yes or No, got \[' Yes', 'Maybe', 'The'\]"),
        (("Yes", "No", " Yes", "Maybe", "The"), "to give log-probabilities of the likeliest"),
    ],
)
def test_a_server_that_does_not_answer_so_is_refused(server, url, triples, hidden, message):
    server.hidden = {QUESTION.replace("{}", triples[0]["caption"]): hidden}
    with pytest.raises(ValueError, match=message):
        score("server:tiny/vlm", triples.select(range(1)), base_url=url)


def test_what_cannot_be_asked_is_refused_before_any_pair(server, url, triples):
    with pytest.raises(ValueError, match="Expected base_url to be the address of the server"):
        score("server:tiny/vlm", triples)
    with pytest.raises(ValueError, match=r"\['tiny/vlm'\], got 'tiny/other'"):
        score("server:tiny/other", triples, base_url=url)
    with pytest.raises(ValueError, match="Expected dtype to be left out for generative models beh"):
        score("server:tiny/vlm", triples, base_url=url, dtype="bfloat16")
    with pytest.raises(ConnectionError, match=r"got status 404 .*tries: 1"):
        score("server:tiny/vlm", triples, base_url=url.replace("/v1", "/v2"))
    assert not server.headers


def test_the_key_is_sent_and_never_shown(server, url, triples, monkeypatch, tmp_path):
    monkeypatch.setenv("HARD_POSITIVES_API_KEY", KEY)
    rows = triples.select(range(4))
    score("server:tiny/vlm", rows, base_url=url)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in kept
    server.faults = dict.fromkeys(
        range(100), lambda: Response(json.dumps({"error": {"message": f"no {KEY}"}}), 401)
    )
    with pytest.raises(ConnectionError, match=r"status 401: no \*\*\*"):
        score("server:tiny/vlm", rows, base_url=url, cache=False)


@pytest.mark.slow
def test_a_killed_run_asks_nothing_again_that_was_kept(server, url, triples, tmp_path):
    folder = tmp_path / "rows"
    triples.to_parquet(folder / "replace-00000-of-00001.parquet")
    server.delay = 0.05
    program = "from hard_positives.models.server import ServerModel as S; "
    program += "S.images_per_batch = S.images_per_chunk = 2; "
    program += "from hard_positives.cli import app; app()"
    command = [sys.executable, "-c", program, "evaluate", "server:tiny/vlm", "--base-url", url]
    command += ["--dataset", str(folder), "--output"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
    until = time.monotonic() + 120
    kept = tmp_path / "cache"
    while len(list(kept.glob("*/*.safetensors"))) < 2 and time.monotonic() < until:
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = 2 * len(list(kept.glob("*/*.safetensors")))
    before = Counter(server.asked)
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment)
    twice = {image for (image, _), times in server.asked.items() if times > 1}
    assert len({image for image, _ in before}) - len(twice) >= finished > 0
    environment["HARD_POSITIVES_CACHE"] = str(tmp_path / "other")
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    for name in ("results.json", "scores.parquet"):
        killed, whole = (tmp_path / run / name for run in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()
