"""An OpenAI-compatible server, asked by many requests at a time.

vLLM, SGLang, TGI, `transformers serve`, llama.cpp and Inference Providers all speak this protocol.
Each request has a limit of time and of size; what the server cannot answer now is asked again,
later and later. Neither the key nor what the address holds of it is ever shown.
"""

import asyncio
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from anyio.from_thread import start_blocking_portal

from hard_positives.names import printable, public_url

_RETRIED_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)
# The server understood and declines this one request; asking again would not help.
_DECLINED_STATUS = (400, 413, 422)
_ANSWER_BYTES = 2**20  # an answer is one caption or one token, and what stands around it in JSON
Answer = TypeVar("Answer")


class _DeclinedError(Exception):
    """The server declines a request, for the reason that it gives."""


@dataclass(frozen=True)
class ChatServer:
    """Asks a server for chat completions.

    Args:
        model: The name that the server knows the model by.
        base_url: Of the server, such as `http://localhost:8000/v1`. User, password and query are
            sent, but never shown.
        api_key: Where the server asks for one.
        max_in_flight: Requests under way at one time, 1 or more.
        timeout: Seconds that a request may take, from the connection to the answer's last byte.
        max_tries: How often a request is sent before the run stops.
        backoff: Seconds before the second try, doubled for each further one, up to a minute.

    Raises:
        ValueError: A number outside its range, or an address that is none.
    """

    model: str
    base_url: str = field(repr=False)
    api_key: str | None = field(default=None, repr=False)
    max_in_flight: int = 32
    timeout: float = 60.0
    max_tries: int = 6
    backoff: float = 1.0

    def __post_init__(self) -> None:
        for name, smallest in {"max_in_flight": 1, "max_tries": 1, "backoff": 0}.items():
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

    def complete_all(
        self,
        requests: Sequence[dict],
        read: Callable[[bytes], Answer],
        *,
        declines: bool = False,
    ) -> list[Answer | None]:
        """Ask for a completion of each request; the i-th answer belongs to the i-th request.

        Args:
            requests: What is posted, but for the model's name.
            read: Turns the body of an answer into what is wanted; a `ValueError` asks again.
            declines: Give None where the server declines one request, rather than raise.

        Raises:
            ConnectionError: No usable answer in `max_tries` tries, or a request is declined.
        """

        async def all_of_them(session: aiohttp.ClientSession) -> list[Answer | None]:
            slots = asyncio.Semaphore(self.max_in_flight)

            async def ask(request: dict) -> Answer | None:
                async with slots:
                    try:
                        return await self._ask(session, request, read)
                    except _DeclinedError as error:
                        if declines:
                            return None
                        raise ConnectionError(self._complaint(str(error))) from error

            tasks = [asyncio.ensure_future(ask(request)) for request in requests]
            try:
                return await asyncio.gather(*tasks)
            finally:  # after one has failed for good, the others have no reader
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        return self._in_session(all_of_them)

    def list_models(self) -> list[dict[str, Any]]:
        """What the server says of its models, as `GET /models` gives it.

        Raises:
            ConnectionError: No usable answer.
        """

        async def models(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
            try:
                return await self._try(lambda: self._send(session, "GET", "models"), _models_of)
            except _DeclinedError as error:
                raise ConnectionError(self._complaint(str(error))) from error

        return self._in_session(models)

    def _in_session(self, run: Callable) -> Any:
        async def with_session() -> Any:
            async with aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self.timeout),
                connector=aiohttp.TCPConnector(limit=self.max_in_flight),
            ) as session:
                return await run(session)

        # In a thread of its own, since a notebook's thread has a loop already. Ctrl-C, which comes
        # to this one, cancels what is under way.
        with start_blocking_portal() as portal:
            return portal.call(with_session)

    async def _ask(
        self, session: aiohttp.ClientSession, request: dict, read: Callable[[bytes], Answer]
    ) -> Answer:
        body = {**request, "model": self.model}
        return await self._try(
            lambda: self._send(session, "POST", "chat/completions", json=body), read
        )

    async def _try(self, send: Callable, read: Callable[[bytes], Answer]) -> Answer:
        """The server's answer, asked for again while it is in trouble."""
        for attempt in range(1, self.max_tries + 1):
            wait = 0.0
            try:
                status, wait, body = await send()
                if status == 200:
                    return read(body)
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

    async def _send(
        self, session: aiohttp.ClientSession, method: str, place: str, **options: Any
    ) -> tuple[int, float, bytes]:
        """Status, seconds to wait and body of one answer."""
        parts = urlsplit(self.base_url)
        path = f"{parts.path.rstrip('/')}/{place}"
        # A user in the address is sent by the client, in the place of the key.
        use_key = self.api_key and not parts.username
        async with session.request(
            method,
            urlunsplit(parts._replace(path=path)),
            headers={"Authorization": f"Bearer {self.api_key}"} if use_key else {},
            proxy=None if proxy_bypass(parts.hostname) else getproxies().get(parts.scheme),
            allow_redirects=False,
            **options,
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


def _models_of(body: bytes) -> list[dict[str, Any]]:
    try:
        return [dict(model) for model in json.loads(body)["data"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError("an answer that is no list of models") from None


def _reason_in(body: bytes) -> str:
    """What a server says of its refusal, as OpenAI's does; empty where it says it otherwise."""
    try:
        return f": {json.loads(body)['error']['message']:.300}"
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _seconds(value: str) -> float:
    return min(60.0, float(value)) if re.fullmatch(r"\d+(\.\d+)?", value) else 0.0
