"""One file from a server: continued, checked. It has its name only when its size and MD5 are right."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import requests
from filelock import FileLock, Timeout

from dmsmil.cohorts.ids import plain_name
from dmsmil.cohorts.server import Again, Server, TokenRefused, Traffic, first_byte, whole_size
from dmsmil.jobs.files import DiskFull, InputError, file_md5, is_file, write_text

BLOCK = 1 << 16  # bytes written at a time: at most these are lost when the process is killed


class _Refused(Exception):
    """The server has no such file for us (HTTP 401, 403, 404, 410)."""


@dataclass(frozen=True)
class Remote(Server):
    """A server of files, as the GDC is one: GET /data/<file id>. Picklable: worker processes fetch with it too.

    checked: a file that remembers which files were read and found right; without it each is read again each time.
    renew: (file name, md5) -> its file id of today, asked when the server refuses the old one; raises InputError when
    there is none. The other fields: see Server.
    """

    checked: str = ""
    renew: Callable[[str, str], str] | None = None

    def fetch(
        self,
        file_id: str,
        path: str | Path,
        size: int,
        md5: str,
        say: Callable[[str], None] | None = None,
        traffic: Traffic | None = None,
        claim: Path | None = None,
    ) -> Path:
        """Bring file `file_id` of `size` bytes to `path`, whose name is the file's own; returns the path.

        A file that is there already is left as it is: accepted when size and MD5 are right, an InputError otherwise.
        What has come before an interruption stays in `<path>.part` and is continued. Two processes that want the same
        file take turns. say: gets a line for each attempt that failed. claim: a file that is written where this
        call has brought the slide, before it has its name: `drop_claimed` deletes that slide and no other. Raises
        InputError when the file cannot be had, DiskFull when there is no room for it, ServerAway when the server is
        away for `outage` seconds, TokenRefused when it takes the token no more, Stopped when `traffic` says so.
        """
        path, say, traffic = Path(path), say or (lambda line: None), traffic or Traffic()
        name = plain_name(path.name)
        file_id, size, md5 = checked_entry(name, file_id, size, md5)
        try:
            if self._is_there(path, size, md5):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            with _turn(path.with_name(f".{name}.lock"), name, say, traffic):
                if not self._is_there(path, size, md5):
                    part = self._download(file_id, path, size, md5, say, traffic)
                    if self._is_there(path, size, md5):  # someone has put it there meanwhile
                        part.unlink()
                    else:
                        if claim is not None:
                            write_text(_identity(part), claim)  # which a new name leaves as it is
                        os.replace(part, path)
                        self._remember(path, md5)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"no space left on the disk while downloading {name}: free some space and start the "
                    "same command again, it continues"
                ) from error
            raise InputError(
                f"{name} cannot be written where it belongs ({error.strerror or error}): check the key 'slides'"
            ) from error
        return path

    def remembers(self, path: Path, size: int, md5: str) -> bool:
        """Whether the file at `path` has been found right before and is unchanged since: nothing is to be done."""
        try:
            known = Path(self.checked).read_text(encoding="utf-8").splitlines() if self.checked else []
            return bool(known) and path.stat().st_size == size and _memory(path, md5) in known
        except (OSError, ValueError):
            return False

    def _remember(self, path: Path, md5: str) -> None:
        if self.checked:
            with suppress(OSError):  # it saves time, nothing else
                Path(self.checked).parent.mkdir(parents=True, exist_ok=True)
                with open(self.checked, "a", encoding="utf-8") as handle:  # one short write: processes do not mix lines
                    handle.write(_memory(path, md5) + "\n")

    def _is_there(self, path: Path, size: int, md5: str) -> bool:
        """Whether the file is at `path` already and right; InputError when what is there is something else."""
        if not path.exists():
            if path.is_symlink():
                raise InputError(f"{path.name} is a link to a file that is not there: mend the link, or remove it")
            return False
        if self.remembers(path, size, md5):
            return True
        found = path.stat().st_size
        if not path.is_file() or found != size:
            raise InputError(
                f"{path.name} is there but has {found:,} bytes where {size:,} are due: it is left as it "
                "is; move it away to have it downloaded"
            )
        if file_md5(path) != md5:
            raise InputError(
                f"{path.name} is there but its MD5 is not {md5}: it is left as it is; move it away to "
                "have it downloaded"
            )
        self._remember(path, md5)
        return True

    def _download(self, file_id: str, path: Path, size: int, md5: str, say, traffic: Traffic) -> Path:
        """The whole and right `.part` beside `path`; from the start once more if the first one is wrong."""
        name, part, tries, renewed = path.name, path.with_name(path.name + ".part"), 2, False
        while tries:
            try:
                self.persist(
                    name,
                    partial(self._pull, file_id, part, size, name, traffic),
                    say,
                    traffic,
                    partial(size_of, part),
                    self.outage,
                )
            except _Refused as refusal:
                now = self.renew(name, md5) if self.renew and not renewed else file_id
                if now == file_id:
                    raise InputError(str(refusal)) from refusal
                file_id, renewed = now, True
                continue
            if file_md5(part) == md5:
                with open(part, "rb") as handle:
                    os.fsync(handle.fileno())
                return part
            part.unlink()
            tries -= 1
            say(f"{name}: what came is not what the MD5 says" + (": from the start" if tries else ""))
        raise InputError(
            f"{name}: what the server sends is not what the table says (MD5 {md5}): its file has changed, "
            "or something on the way changes it"
        )

    def _pull(self, file_id: str, part: Path, size: int, name: str, traffic: Traffic) -> None:
        """One request for what `part` lacks."""
        have = size_of(part)
        if have > size:
            part.unlink()
            have = 0
        if have == size:
            return
        headers = {"Accept-Encoding": "identity"}  # a range counts the bytes of the file itself
        headers |= {"Range": f"bytes={have}-"} if have else {}
        with self.answer("GET", f"data/{file_id}", headers=headers | self.secret(), stream=True) as answer:
            status = answer.status_code
            if self.token and not answer.history and _of_token(answer):  # after a redirect it is not our token
                raise TokenRefused(
                    f"{name}: the server takes the token of the key 'gdc_token' no more (HTTP {status}): put a new one "
                    "into its file and start again, it continues"
                )
            if status in (401, 403, 404, 410):
                raise _Refused(self._refusal(status, file_id, name))
            if status == 416 or (status == 206 and first_byte(answer) != have):
                part.unlink(missing_ok=True)
                raise Again("the server cannot continue it: from the start")
            if status not in (200, 206):
                raise InputError(f"{name}: the server answers HTTP {status}, which is no file")
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise Again("what came is a page and no file (a proxy, or a login?)")
            if (total := whole_size(answer)) not in (None, size):
                raise Again(f"the server offers {total:,} bytes where {size:,} are due")
            with open(part, "ab" if status == 206 else "wb") as handle:
                for block in answer.iter_content(BLOCK):
                    handle.write(block)
                    traffic.add(len(block))
                    if handle.tell() > size:
                        raise Again(f"the server sends more than {size:,} bytes")
        if size_of(part) < size:
            raise Again("the connection was cut")

    def _refusal(self, status: int, file_id: str, name: str) -> str:
        if status in (404, 410):
            return f"{name}: the server has no file {file_id} (HTTP {status})"
        what = (
            "the token of the key 'gdc_token' has expired or does not cover it, get a new one"
            if self.token
            else "it may ask for a token, whose file the key 'gdc_token' names"
        )
        return f"{name}: the server refuses it (HTTP {status}): {what}"


def _of_token(answer: requests.Response) -> bool:
    """Whether an answer refuses the token itself, and not one file."""
    status = answer.status_code
    return status == 401 or status == 403 and "token" in answer.text[:500].lower()


def drop_claimed(path: str | Path, claim: Path) -> None:
    """Delete the slide at `path` if it is the one that `Remote.fetch` brought and claimed; the claim in any case."""
    if claim.exists():
        path = Path(path)
        if is_file(path) and not path.is_symlink() and _identity(path) == claim.read_text(encoding="utf-8"):
            path.unlink(missing_ok=True)
        claim.unlink(missing_ok=True)


def _identity(path: Path) -> str:
    """What knows a file again wherever it is moved on its disk."""
    found = path.stat()
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}\n"


def checked_entry(name: str, file_id, size, md5) -> tuple[str, int, str]:
    """What a table says of one file, checked: (file id, bytes, MD5 in lower case)."""
    file_id, md5 = str(file_id).strip(), str(md5).strip().lower()
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", file_id, re.ASCII):
        raise InputError(f"{name}: {file_id[:60]!r} is no file_id: letters, digits and - are expected")
    if not re.fullmatch(r"[0-9a-f]{32}", md5):
        raise InputError(f"{name}: its md5 must be 32 hexadecimal digits, not {md5[:60]!r}")
    try:
        size = int(size)
    except (TypeError, ValueError):
        size = 0
    if size <= 0:
        raise InputError(f"{name}: its size must be a number of bytes")
    return file_id, size, md5


def size_of(path: Path) -> int:
    """Bytes of the file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _memory(path: Path, md5: str) -> str:
    found = path.stat()
    return f"{md5} {found.st_size} {found.st_mtime_ns} {path.absolute()}"


@contextmanager
def _turn(lock: Path, name: str, say, traffic: Traffic) -> Iterator[None]:
    """Hold `lock` so that no other process fetches the same file; a process that dies lets go of it."""
    held, told = FileLock(lock), False
    while not held.is_locked:
        try:
            held.acquire(timeout=0.5 if told else 0)
        except Timeout:
            if not told:
                say(f"{name}: another process is fetching it; waiting")
            told = True
            traffic.sleep(0)
    try:
        yield
        with suppress(OSError):
            lock.unlink()  # the file is there: who waits for the lock finds it and is done
    finally:
        held.release()
