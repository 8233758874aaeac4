"""Hard positives and hard negatives from a language model behind an OpenAI-compatible server.

`servers` asks; what it answers is checked here before it is believed.

This file starts no server and holds no weights.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hard_positives.generation.grammar import Token, analyse
from hard_positives.generation.rules import Rules, known_relation
from hard_positives.generation.run import TASKS, Edit, Task, changed_words, flaw_of, words_of
from hard_positives.names import public_url
from hard_positives.servers import ChatServer

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


@dataclass(frozen=True)
class LanguageModel:
    """Edits captions with a language model; see `hard_positives.generation.run.Editor`.

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
        if not self.temperature >= 0:
            raise ValueError(f"Expected temperature to be 0 or more, got {self.temperature}.")
        _ = self.server  # refuses its own

    @property
    def server(self) -> ChatServer:
        """The server that is asked."""
        return ChatServer(
            self.model,
            self.base_url,
            self.api_key,
            self.max_in_flight,
            self.timeout,
            self.max_tries,
            self.backoff,
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
        self._ask_all(["a cat and a dog"], TASKS[2], declines=False)

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
        requests = [
            {
                "messages": messages_for(caption, task),
                "temperature": self.temperature,
                "seed": request_seed(self.seed, caption, task),
                "max_tokens": 2 * len(caption.split()) + 48,
            }
            for caption in captions
        ]
        return self.server.complete_all(requests, _content_of, declines=declines)


def _content_of(body: bytes) -> str:
    """The text of a chat completion; empty where the model gave none."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError("an answer that is no chat completion") from None
    if not isinstance(content, str | None):
        raise ValueError(f"a chat completion whose content is a {type(content).__name__}")
    return content or ""


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
