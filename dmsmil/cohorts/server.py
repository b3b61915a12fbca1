"""One HTTP server, asked with patience: pauses that grow, Retry-After, proxies, a token that stays with its server."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests
from requests import exceptions as trouble

from dmsmil.jobs.files import Halt, InputError

LONGEST_WAIT = 600.0  # s: no pause is longer; a server that asks for more is given up
STEP = 1 << 20  # bytes: an attempt that got this much further is no failed one
TOKEN = "X-Auth-Token"
AGAIN = {408, 425, 429}  # answers that may be better later, as are all from 500


class Again(Exception):
    """Worth another attempt, after `wait` seconds at least (what the server asks for). away: the server, or the way to
    it, is not there at all."""

    def __init__(self, reason: str, wait: float = 0.0, away: bool = False):
        super().__init__(reason)
        self.wait, self.away = wait, away


class ServerAway(Halt):
    """A server could not be reached for so long that the study is to be started again later."""


class TokenRefused(Halt):
    """The server takes our token no more: no other file of it can be had either."""


class Stopped(Exception):
    """A download was told to stop; what has come is kept."""


class Traffic:
    """What came in so far (bytes), over all threads of a download, and whether they shall stop."""

    def __init__(self):
        self.bytes, self._lock, self._stop = 0, threading.Lock(), threading.Event()

    def add(self, count: int) -> None:
        """Count bytes; raises Stopped when it is time to."""
        with self._lock:
            self.bytes += count
        self.sleep(0)

    def sleep(self, seconds: float) -> None:
        """Wait; raises Stopped as soon as it is time to."""
        if self._stop.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        """Make every thread stop at its next block of bytes."""
        self._stop.set()


class _Session(requests.Session):
    """A session whose token does not follow a redirect to another host."""

    def rebuild_auth(self, prepared_request, response):
        if self.should_strip_auth(response.request.url, prepared_request.url):
            prepared_request.headers.pop(TOKEN, None)
        super().rebuild_auth(prepared_request, response)


@dataclass(frozen=True)
class Server:
    """An HTTP server. Picklable; holds no secret, only where one is.

    server: its address. token: path of a file that holds one, which only downloads send, to this server alone.
    attempts: failed ones in a row before something is given up. timeout: s to connect, s without a byte. pause: s
    before the second attempt, doubled from one to the next. outage: s that a download waits for a server that cannot be
    reached, however many attempts fail. Proxies are those of the environment.
    """

    server: str
    token: str = ""
    attempts: int = 6
    timeout: tuple[float, float] = (10.0, 60.0)
    pause: float = 5.0
    outage: float = 0.0

    def ask(self, endpoint: str, query: dict | None = None) -> dict:
        """The JSON object that the server answers to POST /endpoint with `query`, or to GET without one.

        Raises InputError when it cannot be had.
        """

        def attempt() -> dict:
            with self.answer("GET" if query is None else "POST", endpoint, json=query) as answer:
                if (status := answer.status_code) != 200:
                    said = " ".join(answer.text[:120].split())
                    raise InputError(f"{self.server} refuses a query of /{endpoint} (HTTP {status}): {said}")
                try:
                    found = answer.json()
                except ValueError as error:
                    raise Again("the answer is not JSON") from error
            if not isinstance(found, dict):
                raise Again("the answer is not a JSON object")
            return found

        return self.persist(f"{self.server}/{endpoint}", attempt)

    @contextmanager
    def answer(self, method: str, endpoint: str, **options) -> Iterator[requests.Response]:
        """The server's answer to one request; Again when another attempt may do better. options: those of requests."""
        if not re.match(r"https?://[^/\s]", self.server):
            raise InputError(f"the server '{self.server}' is no address: it must begin with https:// or http://")
        with _Session() as session, _in_words():
            session.headers["User-Agent"] = "dmsmil"
            url = f"{self.server.rstrip('/')}/{endpoint}"
            with session.request(method, url, timeout=self.timeout, **options) as answer:
                if answer.status_code in AGAIN or answer.status_code >= 500:
                    away = answer.status_code >= 500
                    raise Again(f"the server answers HTTP {answer.status_code}", _asked_wait(answer), away)
                yield answer

    def secret(self) -> dict[str, str]:
        """The header with the token, if there is one; its file is read anew each time, for tokens expire."""
        if not self.token:
            return {}
        try:
            token = Path(os.path.expanduser(self.token)).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the token file {Path(self.token).name} cannot be read: check the key 'gdc_token'"
            ) from error
        if not re.fullmatch(r"[!-~]+", token):
            raise InputError(f"the token file {Path(self.token).name} must hold one token and nothing else")
        return {TOKEN: token}

    def persist(
        self,
        what: str,
        attempt: Callable,
        say: Callable[[str], None] | None = None,
        traffic: Traffic | None = None,
        reached: Callable[[], int] = lambda: 0,
        outage: float = 0.0,
    ):
        """The result of `attempt()`, which may raise Again: after pauses that grow, until `attempts` fail in a row.
        While the server is away it is waited for, `outage` seconds; then ServerAway is raised.

        reached: how far (bytes) the attempts have come; one that gets STEP further starts the count anew.
        say: gets a line for each failed attempt. Raises InputError when it is given up.
        """
        failed, best, since, traffic = 0, reached(), time.monotonic(), traffic or Traffic()
        while True:
            try:
                return attempt()
            except Again as error:
                if (now := reached()) >= best + STEP:
                    failed, best = 0, now
                since = since if failed else time.monotonic()
                failed += 1
                if error.wait > LONGEST_WAIT:
                    raise InputError(
                        f"{what}: {error} and asks to wait {duration(error.wait)}: start again then, it continues"
                    ) from error
                waited, away = time.monotonic() - since, error.away and outage > 0
                if failed >= self.attempts and (not away or waited >= outage):
                    told = f"for {duration(waited)}" if away else f"({failed} times in a row)"
                    raise (ServerAway if away else InputError)(
                        f"{what}: {error} {told}: check the network and its proxy, and start again, it continues"
                    ) from error
                growing = self.pause * 2 ** (failed - 1) * random.uniform(0.75, 1.25)  # apart from who failed with us
                pause = max(error.wait, min(growing, LONGEST_WAIT))
                if say:
                    say(f"{what}: {error}; again in {duration(pause)}")
                traffic.sleep(pause)


def amount(count: float) -> str:
    """Bytes for a reader: 1.2 GB, 34 MB, 5 kB."""
    for unit, scale, digits in (("TB", 1e12, 2), ("GB", 1e9, 1), ("MB", 1e6, 0)):
        if count >= 0.95 * scale:
            return f"{count / scale:.{digits}f} {unit}"
    return f"{count / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """A time for a reader: 2 h 10 min, 12 min, 40 s."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def first_byte(answer: requests.Response) -> int | None:
    """The first byte of a partial answer."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", answer.headers.get("Content-Range", ""))
    return int(found.group(1)) if found else None


def whole_size(answer: requests.Response) -> int | None:
    """How long the server says the whole file is, if it does."""
    header, pattern = ("Content-Range", r".*/(\d+)") if answer.status_code == 206 else ("Content-Length", r"(\d+)")
    found = re.fullmatch(pattern, answer.headers.get(header, ""))
    return int(found.group(1)) if found else None


@contextmanager
def _in_words() -> Iterator[None]:
    """What goes wrong on the way to a server: Again, or InputError where no other attempt would help."""
    try:
        yield
    except requests.RequestException as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise InputError(
                "the server's certificate cannot be verified: behind a proxy that inspects, name its "
                "certificate in the environment variable REQUESTS_CA_BUNDLE"
            ) from error
        if isinstance(error, (trouble.TooManyRedirects, ValueError)):  # ValueError: addresses that make no sense
            raise InputError(
                f"the server or the proxy cannot be used ({type(error).__name__}): check its address"
            ) from error
        if isinstance(error, trouble.ProxyError):
            said = "the proxy does not let us through"
        elif isinstance(error, trouble.Timeout) or "Read timed out" in str(error):
            said = "no answer in time"
        elif isinstance(error, trouble.ChunkedEncodingError):
            said = "the connection was cut"
        else:
            said = "no connection"
        raise Again(said, away=said != "the connection was cut") from error


def _asked_wait(answer: requests.Response) -> float:
    """Seconds that Retry-After asks to wait (it holds seconds or a date); 0 if it does not ask."""
    asked = answer.headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
