"""Hard positives and hard negatives from a language model behind an OpenAI-compatible server.

vLLM, TGI, `transformers serve`, llama.cpp and Inference Providers all speak this protocol. Many
requests are in flight at once, each with a limit of time and of size; what the server cannot answer
now is asked again, later and later; what it answers is checked before it is believed.

This file starts no server and holds no weights.
"""

import asyncio
import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from anyio.from_thread import start_blocking_portal

from hard_positives.generation.grammar import Token, analyse
from hard_positives.generation.rules import Rules, known_relation
from hard_positives.generation.run import TASKS, Edit, Task, changed_words, flaw_of, words_of
from hard_positives.names import printable, public_url

_ANSWER = "Answer with the new caption alone, on one line. If it cannot be done, answer with None."
PROMPTS = {
    "hard_positive_replace": (
        "You rewrite image captions. Replace exactly one word, an adjective, a verb, a noun or a "
        "preposition, with a synonym, so that the caption describes the very same picture. Change "
        "nothing else. " + _ANSWER,
        (
            ("a little boy holding a kite", "a little boy grasping a kite"),
            ("The cat sleeps next to a red sofa.", "The cat sleeps beside a red sofa."),
            ("three large trucks on a street", "three big trucks on a street"),
        ),
    ),
    "hard_negative_replace": (
        "You rewrite image captions. Replace exactly one word, an adjective, a verb, a noun or a "
        "preposition, with another word of its kind, so that the caption is no longer true of the "
        "picture but still describes a picture that could exist. Change nothing else. " + _ANSWER,
        (
            ("a little boy holding a kite", "a little boy throwing a kite"),
            ("The cat sleeps next to a red sofa.", "The cat sleeps next to a green sofa."),
            ("three large trucks on a street", "three small trucks on a street"),
        ),
    ),
    "hard_positive_swap": (
        "You rewrite image captions. Let what stands before and after the word 'and' change "
        "places, so that the caption keeps its meaning. Use the same words and no others. "
        + _ANSWER,
        (
            ("the paved road and the white house", "the white house and the paved road"),
            ("A man and a woman riding bikes.", "A woman and a man riding bikes."),
            ("a dog asleep on a chair", "None"),
        ),
    ),
    "hard_negative_swap": (
        "You rewrite image captions. Let two adjectives or two nouns change places, so that the "
        "caption is no longer true of the picture. Use the same words and no others. " + _ANSWER,
        (
            ("the paved road and the white house", "the white road and the paved house"),
            ("A man in a blue hat on a red horse.", "A man in a red hat on a blue horse."),
            ("a dog asleep on a chair", "a chair asleep on a dog"),
        ),
    ),
}
_REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i can(?:no|')t|i am unable|as an ai|language model|"
    r"sure[,!]|certainly|here(?: is|'s) (?:the|a|your))",
    re.IGNORECASE,
)
_RETRIED_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)
# The server understood and declines this one caption; asking again would not help.
_DECLINED_STATUS = (400, 413, 422)
_ANSWER_BYTES = 2**20  # an answer is one caption, and what stands around it in JSON


class _DeclinedError(Exception):
    """The server declines a request, for the reason that it gives."""


@dataclass(frozen=True)
class LanguageModel:
    """Edits captions with a language model; see :class:`hard_positives.generation.run.Editor`.

    Sampling is recorded and seeded, each request by `seed`, task and caption; whether a server
    gives the same answer twice is up to the server. The meaning of an answer is checked only as far
    as words go: a hard positive whose new word contradicts the old one in the lexicon is rejected,
    and so is a hard negative whose new word means the same.

    Args:
        model: The name that the server knows the model by.
        base_url: Of the server, such as `http://localhost:8000/v1`. User, password and query are
            sent, but neither recorded nor compared when a run resumes: a key may be renewed.
        api_key: Where the server asks for one; never recorded.
        temperature: 0 or more; 0 always takes the likeliest word.
        seed: Another seed asks for other answers.
        max_in_flight: Requests under way at one time, 1 or more.
        timeout: Seconds that a request may take, from the connection to the answer's last byte.
        max_tries: How often a request is sent before the run stops; finished chunks are kept.
        backoff: Seconds before the second try, doubled for each further one, up to a minute.

    Raises:
        ValueError: A number outside its range, or an address that is none.
    """

    model: str
    base_url: str = field(repr=False)
    api_key: str | None = field(default=None, repr=False)
    temperature: float = 0.7
    seed: int = 0
    max_in_flight: int = 32
    timeout: float = 60.0
    max_tries: int = 6
    backoff: float = 1.0
    chunk_size = 500
    workers = 1  # one process keeps the server busy: it only waits

    def __post_init__(self) -> None:
        least = {"temperature": 0, "max_in_flight": 1, "max_tries": 1, "backoff": 0}
        for name, smallest in least.items():
            if not getattr(self, name) >= smallest:
                raise ValueError(
                    f"Expected {name} to be {smallest} or more, got {getattr(self, name)}."
                )
        if not self.timeout > 0:
            raise ValueError(f"Expected timeout to be above 0 seconds, got {self.timeout}.")
        if not _is_address(self.base_url):
            raise ValueError(
                "Expected base_url to be the address of a server, such as "
                "http://localhost:8000/v1, got one without http://, without a host or with a port "
                "that is none."  # not shown: it may hold a password
            )

    @property
    def settings(self) -> dict:
        """What decides the output besides the captions and the server's own ways."""
        prompts = json.dumps(PROMPTS, sort_keys=True).encode()
        return {
            "editor": "language_model",
            "model": self.model,
            "base_url": public_url(self.base_url),
            "temperature": self.temperature,
            "seed": self.seed,
            "prompts_sha256": hashlib.sha256(prompts).hexdigest(),
            "lexicon_sha256": Rules().settings["lexicon_sha256"],
        }

    def prepare(self) -> None:
        """Ask once, so that a wrong address or name shows before hours of work.

        Raises:
            ConnectionError: No usable answer, or the server declines.
        """
        try:
            self._ask_all(["a cat and a dog"], TASKS[2], declines=False)
        except _DeclinedError as error:
            raise ConnectionError(self._complaint(str(error))) from error

    def edit_batch(self, captions: Sequence[str], task: Task) -> list[Edit]:
        """Edit each caption; the i-th result belongs to the i-th caption.

        Raises:
            ConnectionError: The server did not answer in `max_tries` tries, or not in this
                protocol. Run again when it does: finished chunks are kept.
        """
        answers = self._ask_all(captions, task, declines=True)
        pairs = zip(captions, answers, strict=True)
        return [checked(caption, answer, task) for caption, answer in pairs]

    def _ask_all(self, captions: Sequence[str], task: Task, *, declines: bool) -> list[str | None]:
        # In a thread of its own, since a notebook's thread has a loop already. Ctrl-C, which comes
        # to this one, cancels what is under way.
        with start_blocking_portal() as portal:
            return portal.call(self._answers, captions, task, declines)

    async def _answers(
        self, captions: Sequence[str], task: Task, declines: bool
    ) -> list[str | None]:
        slots = asyncio.Semaphore(self.max_in_flight)
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            connector=aiohttp.TCPConnector(limit=self.max_in_flight),
        ) as session:

            async def ask(caption: str) -> str | None:
                async with slots:
                    try:
                        return await self._ask(session, caption, task)
                    except _DeclinedError:
                        if declines:
                            return None
                        raise

            requests = [asyncio.ensure_future(ask(caption)) for caption in captions]
            try:
                return await asyncio.gather(*requests)
            finally:  # after one has failed for good, the others have no reader
                for request in requests:
                    request.cancel()
                await asyncio.gather(*requests, return_exceptions=True)

    async def _ask(self, session: aiohttp.ClientSession, caption: str, task: Task) -> str:
        """The server's answer, asked for again while it is in trouble."""
        request = {
            "messages": messages_for(caption, task),
            "model": self.model,
            "temperature": self.temperature,
            "seed": request_seed(self.seed, caption, task),
            "max_tokens": 2 * len(caption.split()) + 48,
        }
        for attempt in range(1, self.max_tries + 1):
            wait = 0.0
            try:
                status, wait, body = await self._post(session, request)
                if status == 200:
                    return _content_of(body)
                problem = f"status {status}{_reason_in(body)}"
            except asyncio.TimeoutError:
                status, problem = None, f"no whole answer within {self.timeout:g} s"
            except (aiohttp.ClientError, OSError, ValueError) as error:  # the line broke, or HTML
                status, problem = None, f"{type(error).__name__}: {error}".rstrip(": ")
            if status in _DECLINED_STATUS:
                raise _DeclinedError(problem)
            if status is not None and status not in _RETRIED_STATUS:
                break
            if attempt < self.max_tries:
                longest = min(60.0, self.backoff * 2 ** (attempt - 1))
                await asyncio.sleep(max(wait, random.uniform(longest / 2, longest)))
        raise ConnectionError(self._complaint(problem, attempt))

    async def _post(
        self, session: aiohttp.ClientSession, request: dict
    ) -> tuple[int, float, bytes]:
        """Status, seconds to wait and body of one answer."""
        parts = urlsplit(self.base_url)
        path = f"{parts.path.rstrip('/')}/chat/completions"
        # A user in the address is sent by the client, in the place of the key.
        use_key = self.api_key and not parts.username
        async with session.post(
            urlunsplit(parts._replace(path=path)),
            json=request,
            headers={"Authorization": f"Bearer {self.api_key}"} if use_key else {},
            proxy=None if proxy_bypass(parts.hostname) else getproxies().get(parts.scheme),
            allow_redirects=False,
        ) as response:
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > _ANSWER_BYTES:
                    raise ValueError(f"more than {_ANSWER_BYTES:,} bytes")
            return response.status, _seconds(response.headers.get("Retry-After", "")), bytes(body)

    def _complaint(self, problem: str, tries: int = 1) -> str:
        problem = printable(self._without_secrets(problem))
        return (
            f"Expected {public_url(self.base_url)} to answer as an OpenAI-compatible server with "
            f"the model {self.model!r}, got {problem} (tries: {tries}). Check the address, the "
            "model's name and the key, then run the same command again: finished chunks are kept."
        )

    def _without_secrets(self, text: str) -> str:
        """What a client or a server says, without what it repeats of the key and the address."""
        parts = urlsplit(self.base_url)
        values = [value for _, value in parse_qsl(parts.query)]
        secrets = [self.api_key, parts.username, parts.password, parts.query, *values]
        secrets += [unquote(secret) for secret in secrets if secret]
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        return False


def _content_of(body: bytes) -> str:
    """The text of a chat completion; empty where the model gave none."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError("an answer that is no chat completion") from None
    if not isinstance(content, str | None):
        raise ValueError(f"a chat completion whose content is a {type(content).__name__}")
    return content or ""


def _reason_in(body: bytes) -> str:
    """What a server says of its refusal, as OpenAI's does; empty where it says it otherwise."""
    try:
        return f": {json.loads(body)['error']['message']:.300}"
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _seconds(value: str) -> float:
    return min(60.0, float(value)) if re.fullmatch(r"\d+(\.\d+)?", value) else 0.0


def request_seed(seed: int, caption: str, task: Task) -> int:
    """A seed of 31 bits for one request, the same in every run."""
    digest = hashlib.sha256(f"{seed}/{task}/{caption}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def messages_for(caption: str, task: Task) -> list[dict[str, str]]:
    """The chat that asks for one edit: the order, three examples, the caption.

    Examples:
        >>> [message["role"] for message in messages_for("a red car", TASKS[0])][-3:]
        ['user', 'assistant', 'user']
    """
    order, examples = PROMPTS[str(task)]
    turns = [turn for pair in examples for turn in zip(("user", "assistant"), pair, strict=True)]
    chat = [("system", order), *turns, ("user", caption)]
    return [{"role": role, "content": content} for role, content in chat]


def checked(caption: str, answer: str | None, task: Task) -> Edit:
    """Turn a server's answer into an edit, or say why it cannot be one.

    Examples:
        >>> checked("a red car", '"A crimson car."', TASKS[0])
        Edit(caption='a crimson car', category='attribute', reason='')
        >>> checked("a red car", "I'm sorry, but I cannot do that.", TASKS[0]).reason
        'refusal'
        >>> checked("a red car", "a blue car", TASKS[0]).reason
        'changes_the_meaning'
    """
    if answer is None:
        return Edit(reason="declined_by_server")
    edited = answer.strip().strip("\"'“”").strip()
    if edited.lower().rstrip(".") == "none":
        return Edit(reason="none_given")
    if _REFUSAL.search(edited) and not _REFUSAL.search(caption):
        return Edit(reason="refusal")
    reason = flaw_of(caption, edited, task)
    edited = _in_form_of(caption, edited) if not reason else edited
    if not reason:
        reason = _swap_flaw(caption, edited, task) if task.kind == "swap" else ""
    if reason:
        return Edit(reason=reason)
    return Edit(edited, "swap") if task.kind == "swap" else _replacement(caption, edited, task)


def _in_form_of(caption: str, edited: str) -> str:
    """The edited caption with the full stop and the first capital of the caption, or without."""
    edited = edited.rstrip(". ") + ("." if caption.rstrip().endswith(".") else "")
    first = edited.split()[0]
    if first.isupper() and len(first) > 1:
        return edited
    return (edited[0].upper() if caption[0].isupper() else edited[0].lower()) + edited[1:]


def _swap_flaw(caption: str, edited: str, task: Task) -> str:
    same = Rules().edit(caption, Task("hard_positive", "swap")).caption
    keeps_meaning = same is not None and words_of(same) == words_of(edited)
    return "keeps_the_meaning" if keeps_meaning and task.column == "hard_negative" else ""


def _replacement(caption: str, edited: str, task: Task) -> Edit:
    old, new = changed_words(words_of(caption), words_of(edited))
    before, after = _content(caption, old), _content(edited, new)
    if not before or not after or _kind(before[-1]) != _kind(after[-1]):
        return Edit(reason="another_kind_of_word")
    relation = known_relation(caption, edited)
    if relation == "contrast" and task.column == "hard_positive":
        return Edit(reason="changes_the_meaning")
    if relation == "synonym" and task.column == "hard_negative":
        return Edit(reason="keeps_the_meaning")
    categories = {"noun": "object", "adjective": "attribute"}
    return Edit(edited, categories.get(_kind(before[-1]), "relation"))


def _content(caption: str, words: Sequence[str]) -> list[Token]:
    return [token for token in analyse(caption) if token.word in words and _kind(token)]


def _kind(token: Token) -> str:
    """The kind of a word that may be replaced; empty for the others."""
    if token.is_noun:
        return "noun"
    if token.is_adjective or token.tag == "CRD":
        return "adjective"
    # "wearing" and "in" may stand for each other.
    return "verb or preposition" if token.is_verb or token.tag in ("PRP", "PRF", "AVP") else ""
