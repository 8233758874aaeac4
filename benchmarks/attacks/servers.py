"""Language model servers that answer anything but an edited caption, or never end.

A server on loopback plays one fault to all requests, to some, or to all but the first few. The run
must end in time, with a typed error or with a set that holds nothing but what was well answered.
"""

import http.server
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq

from attacks.trials import Attack, Outcome, Trial, right, verdict_of, wrong
from hard_positives import LanguageModel, Rules, generate, read_captions
from hard_positives.generation.language_model import PROMPTS
from hard_positives.generation.run import TASKS

CAPTIONS = [f"a red cup and a white dog on a table number {number}" for number in range(4)]
PATIENCE = 20  # seconds; four tasks in two tries of half a second each need five
DEEP = "[" * 100_000


def completion(content: Any) -> bytes:
    """The body of an answer that follows the protocol, whatever its content is."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    about = {"id": "1", "created": 1, "model": "m", "system_fingerprint": ""}
    return json.dumps({**about, "choices": [choice], "usage": usage}).encode()


STATUSES = (301, 400, 401, 403, 404, 408, 413, 418, 422, 429, 500, 502, 503)
CONTENTS = (None, 7, 1.5, True, [], ["a"], {}, {"a": 1}, "", " ", "None", "no", "\x00", "\x1b[31m")
CONTENTS += ("\u202ea red cup", "word " * 100_000, "\ud800", "<think>", "x" * 1_000_000)
BODIES = (b"", b"null", b"7", b"[]", b"{}", b'{"choices": []}', b'{"choices": null}', b"\xff\xfe")
BODIES += (b'{"choices": [{}]}', b'{"choices": [{"message": null}]}', b"<html>", DEEP.encode())
BODIES += (b'{"choices": ' + DEEP.encode(), b"NaN", b'"text"', b"data: [DONE]\n\n")
MANNERS = ("silence", "drop", "half", "drip", "reset", "too long", "no gzip", "endless header")
FAULTS = [
    *(("status", status) for status in STATUSES),
    *(("content", content) for content in CONTENTS),
    *(("body", body) for body in BODIES),
    *(("manner", manner) for manner in MANNERS),
]


@dataclass(frozen=True)
class Script:
    """Which requests get the fault: all after the first `spared`, with a probability."""

    kind: str
    what: Any
    spared: int
    share: float

    def strikes(self, number: int, random: Random) -> bool:
        """Whether the request of this number gets the fault."""
        return number >= self.spared and random.random() < self.share


def server_faults(small: int, full: int) -> Attack:
    """Attack generation by a language model."""

    @contextmanager
    def prepare(scratch: Path) -> Iterator[Callable[[Trial], Outcome]]:
        yield _generate_from

    return Attack("servers", prepare, small, full)


def _generate_from(trial: Trial) -> Outcome:
    kind, what = FAULTS[trial.number % len(FAULTS)]
    script = Script(kind, what, trial.random.choice((0, 0, 1, 5)), trial.random.choice((1, 1, 0.3)))
    (trial.folder / "captions.txt").write_text("\n".join(CAPTIONS))
    with _served(script, trial.random) as url:
        model = LanguageModel("m", url, timeout=0.5, max_tries=2, backoff=0.001)
        began = time.monotonic()
        outcome = _judge(model, trial.folder)
        seconds = time.monotonic() - began
    said = f"{kind} {what!r:.80}, first {script.spared} spared, share {script.share}"
    if seconds > PATIENCE:
        return wrong(f"{said}: it took {seconds:.0f} s")
    return wrong(f"{said}: {outcome.detail}") if outcome.verdict == "wrong" else outcome


def _judge(model: LanguageModel, folder: Path) -> Outcome:
    source = read_captions(folder / "captions.txt")
    try:
        output = generate(source, folder / "out", model, progress=False)
    except Exception as error:
        return verdict_of(error)
    edits = {Rules().edit(caption, task).caption for caption in CAPTIONS for task in TASKS}
    table = pq.read_table(output / "data")
    made = {text for name in ("hard_positive", "hard_negative") for text in table[name].to_pylist()}
    if not made - {None}:
        return wrong("an empty set, without a word")
    return right() if made <= {*edits, None} else wrong(f"took over {made - edits}")


@contextmanager
def _served(script: Script, random: Random) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.script, server.random, server.numbers = script, random, itertools.count()
    server.closing, server.daemon_threads = threading.Event(), True
    server.handle_error = lambda *_: None  # clients that give up belong to the attack
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


class _Answers(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        script, order = self.server.script, request["messages"][0]["content"]
        task = next(task for task in TASKS if PROMPTS[str(task)][0] == order)
        edit = Rules().edit(request["messages"][-1]["content"], task).caption
        body = completion(edit or "None")
        if not script.strikes(next(self.server.numbers), self.server.random):
            self._send(body)
        elif script.kind == "status":
            self._send(b'{"error": "a fault to order"}', script.what)
        elif script.kind == "content":
            self._send(completion(script.what))
        elif script.kind == "body":
            self._send(script.what)
        else:
            self._misbehave(script.what, body)

    def _send(self, body: bytes, status: int = 200, length: int = 0, coding: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(body)))
        if status == 301:
            self.send_header("Location", self.path)
        if coding:
            self.send_header("Content-Encoding", coding)
        self.end_headers()
        self.wfile.write(body)

    def _misbehave(self, manner: str, body: bytes) -> None:
        self.close_connection = True
        if manner == "silence":
            self.server.closing.wait(2 * PATIENCE)
        elif manner == "half":
            self._send(body[:20], length=len(body))
        elif manner == "too long":
            self._send(body + b"}" * 1000, length=len(body))
        elif manner == "no gzip":
            self._send(body, coding="gzip")
        elif manner == "drip":
            self._send(b"", length=10**9)
            self._drip(b" ")
        elif manner == "endless header":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self._drip(b"X-A: b\r\n")
        elif manner == "reset":
            linger = b"\1\0\0\0\0\0\0\0"  # on, for no time: closing sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def _drip(self, drop: bytes) -> None:
        until = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < until and not self.server.closing.wait(0.02):
            self.wfile.write(drop)
