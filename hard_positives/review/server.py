"""The page on which people judge, served to this machine alone.

    GET  /TOKEN/?annotator=NAME&row=N   the page: row N, or else the first that is not judged
    GET  /TOKEN/picture/N               its picture
    POST /TOKEN/judgments               one judgment, answered once it is on the disk

Whoever shares the machine, and every site that a browser here has open, can reach the port. So all
addresses hold a random token, only this host's own names are answered (another name may lead here,
too), and a judgment must come from the page itself.
"""

import base64
import hashlib
import json
import secrets
import sqlite3
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jinja2
from markupsafe import Markup

from hard_positives.names import printable
from hard_positives.review.humans import is_whole
from hard_positives.review.judgments import JUDGMENTS, Judgments
from hard_positives.review.loading import ReviewedFolder
from hard_positives.review.rows import Row

NAME_LENGTH = 80  # characters of an annotator's name, at most
_REQUEST_BYTES = 10_000
_PATIENCE = 30  # seconds for a request to come in


class ReviewServer(ThreadingHTTPServer):
    """Serves a folder's rows on a port of 127.0.0.1.

    Args:
        folder: What is judged.
        judgments: Where judgments are kept.
        annotator: Who judges; asked for on the page if left out.
        port: 0 for any that is free.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True

    def __init__(
        self,
        folder: ReviewedFolder,
        judgments: Judgments,
        annotator: str | None = None,
        port: int = 0,
    ) -> None:
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise OSError(
                f"Expected port {port} to be free, got: {error}. Choose another, or leave it out."
            ) from error
        self.folder, self.judgments, self.annotator = folder, judgments, annotator
        self.token = secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.page = _Page()

    @property
    def address(self) -> str:
        """Where the page is, with the token."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def row(self, number: int) -> tuple[int, Row]:
        """The place of the row that is shown as number 1 to N, and the row.

        Raises:
            ValueError: There is no such row.
        """
        if not 1 <= number <= len(self.folder.order):
            raise ValueError(f"Expected a row from 1 to {len(self.folder.order)}, got {number}.")
        place = self.folder.order[number - 1]
        return place, self.folder.rows[place]


def check_annotator(name: str) -> str:
    """Return a name without blanks around it.

    Raises:
        ValueError: It is empty, too long, or holds control characters.
    """
    name = name.strip()
    if not 1 <= len(name) <= NAME_LENGTH or printable(name) != name:
        raise ValueError(
            f"Expected the annotator's name to be 1 to {NAME_LENGTH} characters, all of which can "
            f"be printed, got {name[:NAME_LENGTH]!r}. Choose another."
        )
    return name


def shuffled(row: Row, annotator: str) -> list[str]:
    """The captions of a row that are judged, in the order in which an annotator sees them.

    At random, so that it tells nothing, and the same whenever the annotator comes back.

    Examples:
        >>> row = Row("test", "object", "1", "ab12", ("cat", "kitty", "dog"), (True, True, False))
        >>> shuffled(row, "ann"), shuffled(row, "eve")
        (['cat', 'kitty', 'dog'], ['kitty', 'dog', 'cat'])
    """

    def at_random(caption: str) -> bytes:
        return hashlib.sha256(json.dumps([annotator, row.key, caption]).encode()).digest()

    return sorted(row.asked, key=at_random)


class _Page:
    """The templates, and the policy that lets their script and style run and nothing else."""

    def __init__(self) -> None:
        folder = files("hard_positives") / "review" / "page"
        self._own = {name: (folder / f"page.{name}").read_text("utf-8") for name in ("css", "js")}
        css, js = (
            base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            for text in self._own.values()
        )
        self.policy = (
            f"default-src 'none'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
            f"style-src 'sha256-{css}'; script-src 'sha256-{js}'; base-uri 'none'; "
            "frame-ancestors 'none'"
        )
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("hard_positives", "review/page"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=lambda value: printable(value) if type(value) is str else value,
        )
        self._template = environment.get_template("page.html")

    def render(self, **content: Any) -> str:
        own = {name: Markup(text) for name, text in self._own.items()}
        return self._template.render(**own, **content)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    timeout = _PATIENCE
    server_version, sys_version = "hard-positives", ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *_: Any) -> None:
        """Log nothing: addresses hold the token."""

    def _answer(self, respond: Any) -> None:
        try:
            path = self._path_behind_token()
            if path is not None:
                respond(path)
        except ValueError as error:
            self._send(HTTPStatus.BAD_REQUEST, str(error).encode(), "text/plain; charset=utf-8")
        except sqlite3.Error as error:  # such as a full disk: nothing was kept
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, str(error).encode(), "text/plain")
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # whoever asked has gone

    def _path_behind_token(self) -> str | None:
        """Refuse other hosts' names, other tokens and other sites; else say what is asked for."""
        host = self.headers.get("Host", "")
        _, token, *rest = [*urlsplit(self.path).path.split("/", 2), ""]
        if host not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN)
        elif not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
        elif self.command == "POST" and self.headers.get("Origin") != f"http://{host}":
            self._refuse(HTTPStatus.FORBIDDEN)
        else:
            return rest[0]
        return None

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, status.phrase.encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": self.server.page.policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _get(self, path: str) -> None:
        kind, _, number = path.partition("/")
        if path == "":
            text = self._page(parse_qs(urlsplit(self.path).query))
            self._send(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8")
        elif kind == "picture" and number.isdecimal():
            place, row = self.server.row(int(number))
            if row.image:
                self._send(HTTPStatus.OK, self.server.folder.picture(place), "image/png")
            else:
                self._refuse(HTTPStatus.NOT_FOUND)
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def _page(self, query: dict[str, list[str]]) -> str:
        """The row that is asked for, or the first that is not judged; else who is judging."""
        server = self.server
        annotator, problem = server.annotator, ""
        if annotator is None and "annotator" in query:
            try:
                annotator = check_annotator(query["annotator"][0])
            except ValueError as error:
                problem = str(error)
        common = {"total": len(server.folder.order), "problem": problem}
        if annotator is None:
            return server.page.render(view="name", **common)
        said = server.judgments.of(annotator)
        rows = [server.folder.rows[place] for place in server.folder.order]
        judged = [row.key in said and is_whole(row, said[row.key]) for row in rows]
        common |= {"annotator": annotator, "judged": sum(judged), "link": _links(annotator)}
        if "row" in query:
            number = _whole_number(query["row"][0])
        elif all(judged):
            return server.page.render(view="done", **common)
        else:
            number = 1 + judged.index(False)
        _, row = server.row(number)
        captions = [
            (caption, said.get(row.key, {}).get(caption)) for caption in shuffled(row, annotator)
        ]
        return server.page.render(
            view="row", number=number, row=row, captions=captions, choices=JUDGMENTS, **common
        )

    def _post(self, path: str) -> None:
        if path != "judgments":
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _REQUEST_BYTES:
            raise ValueError(
                f"Expected a judgment of at most {_REQUEST_BYTES} bytes, got {length}."
            )
        annotator, row, caption, judgment = _read_judgment(self.rfile.read(int(length)))
        if self.server.annotator not in (None, annotator):
            raise ValueError(f"Expected the annotator to be {self.server.annotator!r}.")
        _, judged = self.server.row(row)
        captions = shuffled(judged, annotator)
        if not 0 <= caption < len(captions):
            raise ValueError(f"Expected one of {len(captions)} captions, got {caption}.")
        self.server.judgments.add(annotator, judged.key, captions[caption], judgment)
        self._send(HTTPStatus.OK, b"kept", "text/plain; charset=utf-8")


def _links(annotator: str) -> Any:
    def link(row: int | None = None) -> str:
        return "?" + urlencode({"annotator": annotator, **({"row": row} if row else {})})

    return link


def _whole_number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"Expected the number of a row, got {text[:20]!r}.")
    return int(text)


def _read_judgment(content: bytes) -> tuple[str, int, int, str]:
    """Read one judgment: who, which row, which of its captions as shown, what."""
    try:
        given = json.loads(content)
        annotator, row, caption, judgment = (
            given[name] for name in ("annotator", "row", "caption", "judgment")
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("Expected the JSON of a judgment, got something else.") from error
    is_one = type(annotator) is str and type(row) is type(caption) is int
    if not is_one or judgment not in JUDGMENTS:
        raise ValueError(f"Expected a judgment among {JUDGMENTS}, got something else.")
    return check_annotator(annotator), row, caption, judgment
