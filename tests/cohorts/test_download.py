"""Downloads: every fault of a server by name, what a kill leaves, whose files are never touched, who sees the token."""

import dataclasses
import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import requests

from dmsmil.cohorts import download, fetching, server
from dmsmil.cohorts.download import Remote, drop_claimed
from dmsmil.cohorts.fetching import downloadable, fetch_all, slide_path
from dmsmil.cohorts.ids import plain_name
from dmsmil.cohorts.server import ServerAway, TokenRefused, amount, duration
from dmsmil.jobs.files import DiskFull, InputError
from dmsmil.jobs.parallel import run_units
from tests.cohorts.gdc_server import GdcServer, proxy_to
from tests.conftest import ROOT, assert_one_line

BIG = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def gdc():
    with GdcServer() as server_:
        yield server_


def quick(gdc, **options):
    """A remote that does not wait."""
    return Remote(gdc if isinstance(gdc, str) else gdc.url, **{"pause": 0.0, "timeout": (5.0, 5.0), **options})


def md5(content):
    return hashlib.md5(content).hexdigest()


def get(gdc, path, content=BIG, **options):
    """Fetch `content` from the server to `path`; returns (path, notes)."""
    file_id, notes = gdc.add(path.name, content), []
    quick(gdc, **options).fetch(file_id, path, len(content), md5(content), notes.append)
    return path, notes


def test_what_a_fetch_brought_can_be_dropped_and_nothing_else(gdc, tmp_path):
    path, claim = tmp_path / "a.svs", tmp_path / ".a.svs.fetched"
    arguments = gdc.add("a.svs", BIG), path, len(BIG), md5(BIG)
    quick(gdc).fetch(*arguments, claim=claim)
    drop_claimed(path, claim)
    assert not list(tmp_path.iterdir())
    path.write_bytes(BIG)
    quick(gdc).fetch(*arguments, claim=claim)
    drop_claimed(path, claim)
    assert path.exists() and not claim.exists(), "it was there: it is somebody's"
    path.unlink()
    quick(gdc).fetch(*arguments, claim=claim)
    path.unlink()
    path.write_bytes(BIG)
    drop_claimed(path, claim)
    assert path.exists() and not claim.exists(), "another file of the same content"


def left(folder):
    """Visible files of a folder."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_a_file_comes_whole_and_alone(gdc, tmp_path):
    path, notes = get(gdc, tmp_path / "deep" / "a.svs")
    assert path.read_bytes() == BIG and not notes
    assert [p.name for p in path.parent.iterdir()] == ["a.svs"], "no part and no lock is left"


# ------------------------------------------------------------------------------------------------ faults that pass


@pytest.mark.parametrize(
    ("fault", "options", "said"),
    [
        ("cut", {"after": 100_000}, "the connection was cut"),
        ("hang up", {}, "no connection"),
        ("status", {"code": 500}, "HTTP 500"),
        ("status", {"code": 502}, "HTTP 502"),
        ("status", {"code": 503, "headers": {"Retry-After": "0"}}, "HTTP 503"),
        ("status", {"code": 429}, "HTTP 429"),
        ("longer", {"longer": 7}, "offers 300,007 bytes where 300,000 are due"),
        ("longer", {"longer": -7}, "offers 299,993 bytes where 300,000 are due"),
        ("chunked", {"more": 5}, "sends more than 300,000 bytes"),
        ("other content", {}, "not what the MD5 says: from the start"),
    ],
)
def test_faults_that_pass(gdc, tmp_path, fault, options, said):
    gdc.fault("data", fault, **options)
    path, notes = get(gdc, tmp_path / "a.svs")
    assert path.read_bytes() == BIG and left(tmp_path) == ["a.svs"]
    assert len(notes) == 1 and said in notes[0] and len(gdc.asked("data")) == 2


@pytest.mark.slow
def test_a_server_that_goes_silent_is_left_and_asked_again(gdc, tmp_path):
    gdc.fault("data", "silent", seconds=2)
    path, notes = get(gdc, tmp_path / "a.svs", timeout=(5.0, 0.2))
    assert path.read_bytes() == BIG and "no answer in time" in notes[0]
    gdc.fault("data", "slow", pause=2, block=100_000)  # silent in the middle
    path, notes = get(gdc, tmp_path / "b.svs", timeout=(5.0, 0.3))
    assert path.read_bytes() == BIG and "no answer in time" in notes[0]
    assert gdc.log[-1]["headers"]["Range"].startswith("bytes=")


@pytest.mark.slow
def test_a_slow_server_is_waited_for(gdc, tmp_path):
    gdc.fault("data", "slow", pause=0.05, block=30_000)
    path, notes = get(gdc, tmp_path / "a.svs", timeout=(5.0, 0.3))
    assert path.read_bytes() == BIG and not notes


def test_no_content_length_and_a_strange_disposition_do_no_harm(gdc, tmp_path):
    gdc.fault("data", "chunked")
    assert get(gdc, tmp_path / "a.svs")[0].read_bytes() == BIG
    gdc.fault("data", "disposition", filename="../../evil.svs")
    assert get(gdc, tmp_path / "b.svs")[0].read_bytes() == BIG
    assert left(tmp_path) == ["a.svs", "b.svs"] and not (tmp_path.parent / "evil.svs").exists()


# ------------------------------------------------------------------------------------------------ parts


def test_a_cut_file_is_continued_where_it_ends(gdc, tmp_path):
    gdc.fault("data", "cut", times=2, after=131_072)  # two blocks, which are written before the cut is seen
    path, notes = get(gdc, tmp_path / "a.svs")
    assert path.read_bytes() == BIG and len(notes) == 2
    starts = [entry["headers"].get("Range") for entry in gdc.asked("data")]
    assert starts == [None, "bytes=131072-", "bytes=262144-"]
    assert sum(entry["sent"] for entry in gdc.log) == len(BIG), "no byte came twice"


def test_a_server_without_ranges_starts_over_and_nothing_is_appended(gdc, tmp_path):
    (tmp_path / "a.svs.part").write_bytes(BIG[:1000])
    gdc.fault("data", "ignores Range")
    assert get(gdc, tmp_path / "a.svs")[0].read_bytes() == BIG
    assert gdc.log[0]["headers"]["Range"] == "bytes=1000-" and gdc.log[0]["sent"] == len(BIG)


@pytest.mark.parametrize("part", [BIG + b"more", BIG[:1000][::-1], b"", BIG])
def test_whatever_the_part_holds_the_file_is_right(gdc, tmp_path, part):
    """Too long, of another version of the file, empty, complete (killed just before it got its name)."""
    (tmp_path / "a.svs.part").write_bytes(part)
    path, _ = get(gdc, tmp_path / "a.svs")
    assert path.read_bytes() == BIG and left(tmp_path) == ["a.svs"]
    assert part != BIG or not gdc.asked("data"), "a complete part asks for nothing"


@pytest.mark.parametrize("fault", ["other range", "status"])
def test_a_part_that_the_server_cannot_continue_is_given_up(gdc, tmp_path, fault):
    (tmp_path / "a.svs.part").write_bytes(BIG[:1000])
    gdc.fault("data", fault, code=416)
    path, notes = get(gdc, tmp_path / "a.svs")
    assert path.read_bytes() == BIG and "from the start" in notes[0] and "Range" not in gdc.log[-1]["headers"]


def test_a_page_in_place_of_the_file_costs_no_part(gdc, tmp_path):
    """A proxy's login page comes as HTTP 200: hundreds of megabytes must not go for it."""
    (tmp_path / "a.svs.part").write_bytes(BIG[:200_000])
    gdc.contents["page"] = b"<html>log in</html>"
    with pytest.raises(InputError, match="offers 19 bytes") as caught:
        gdc.fault("data", "ignores Range", times=9)
        quick(gdc, attempts=3).fetch("page", tmp_path / "a.svs", len(BIG), md5(BIG))
    assert_one_line(caught, "a.svs")
    assert (tmp_path / "a.svs.part").stat().st_size == 200_000


def test_a_page_of_no_length_costs_no_part(gdc, tmp_path):
    (tmp_path / "a.svs.part").write_bytes(BIG[:200_000])
    gdc.contents["page"] = b"<html>log in</html>" * 20_000  # longer than the part, or the server would refuse its end
    gdc.fault("data", "chunked", times=9, headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(InputError, match="what came is a page and no file") as caught:
        quick(gdc, attempts=3).fetch("page", tmp_path / "a.svs", len(BIG), md5(BIG))
    assert_one_line(caught, "a.svs")
    assert (tmp_path / "a.svs.part").stat().st_size == 200_000


def test_a_server_that_is_away_is_waited_for_and_then_the_study_stops(gdc, tmp_path):
    gdc.fault("data", "status", times=7, code=503)
    path, notes = get(gdc, tmp_path / "a.svs", attempts=2, outage=60.0)
    assert path.read_bytes() == BIG and len(notes) == 7
    gdc.fault("data", "status", times=10**6, code=503)
    with pytest.raises(ServerAway, match="HTTP 503 for .*start again, it continues") as caught:
        get(gdc, tmp_path / "b.svs", attempts=2, outage=0.1)
    assert_one_line(caught, "b.svs")
    table = pd.DataFrame([{"slide_id": "c", "file_id": gdc.add("c.svs", BIG), "md5": md5(BIG), "size": len(BIG)}])
    with pytest.raises(ServerAway):  # and is no row of failures for each slide that is left
        fetch_all(quick(gdc, attempts=2, outage=0.1), table, tmp_path, report=str)


def test_a_token_that_has_expired_stops_the_study_and_not_slide_after_slide(tmp_path):
    """And a file that it does not cover stops no other; what another host refuses says nothing of our token."""
    (tmp_path / "t").write_text("old\n")
    with GdcServer(secret="new") as gdc:
        rows = [{"slide_id": name, "file_id": gdc.add(f"{name}.svs", BIG)} for name in "abcdef"]
        table = pd.DataFrame(rows).assign(md5=md5(BIG), size=len(BIG))
        remote = quick(gdc, token=str(tmp_path / "t"))
        with pytest.raises(TokenRefused, match="gdc_token.*start again, it continues"):
            fetch_all(remote, table, tmp_path, workers=1, report=str)
        assert len(gdc.asked("data")) <= 2  # the thread may have begun the next
        (tmp_path / "t").write_text("new\n")
        gdc.fault("data", "status", code=403)
        failures = fetch_all(remote, table, tmp_path, workers=1, report=str)
        assert [row["unit"] for row in failures] == ["a"] and "does not cover" in failures[0]["reason"]
        with GdcServer(secret="of the other host") as other:
            file_id = gdc.add("g.svs", BIG)
            other.contents[file_id] = BIG
            gdc.fault("data", "redirect", to=other.url + "/data/{file_id}")
            with pytest.raises(InputError) as caught:
                remote.fetch(file_id, tmp_path / "g.svs", len(BIG), md5(BIG))
            assert not isinstance(caught.value, TokenRefused)


def test_refusals_and_cuts_are_not_waited_for(gdc, tmp_path):
    gdc.fault("data", "cut", times=99, after=10)
    with pytest.raises(InputError, match="the connection was cut .2 times in a row") as caught:
        get(gdc, tmp_path / "a.svs", attempts=2, outage=3600.0)
    assert not isinstance(caught.value, ServerAway)


SCRIPT = """
import sys
from dmsmil.cohorts.download import Remote
url, file_id, path, size, md5 = sys.argv[1:]
Remote(url, pause=0).fetch(file_id, path, int(size), md5)
"""


def start(gdc, file_id, path):
    """A process that fetches BIG."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, gdc.url, file_id, str(path), str(len(BIG)), md5(BIG)], cwd=ROOT
    )


def until(condition, seconds=20):
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
def test_killed_then_continued(gdc, tmp_path):
    file_id, part = gdc.add("a.svs", BIG), tmp_path / "a.svs.part"
    gdc.fault("data", "slow", pause=0.2, block=65_536)
    process = start(gdc, file_id, tmp_path / "a.svs")
    assert until(lambda: part.exists() and part.stat().st_size >= 131_072)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "a.svs").exists()
    have = part.stat().st_size
    assert have < len(BIG)
    path = quick(gdc).fetch(file_id, tmp_path / "a.svs", len(BIG), md5(BIG))
    assert path.read_bytes() == BIG and left(tmp_path) == ["a.svs"]
    assert gdc.log[-1]["headers"]["Range"] == f"bytes={have}-" and gdc.log[-1]["sent"] == len(BIG) - have


@pytest.mark.slow
def test_two_processes_take_turns(gdc, tmp_path):
    file_id = gdc.add("a.svs", BIG)
    gdc.fault("data", "slow", pause=0.3, block=65_536)
    both = [start(gdc, file_id, tmp_path / "a.svs") for _ in range(2)]
    assert [process.wait(timeout=30) for process in both] == [0, 0]
    assert (tmp_path / "a.svs").read_bytes() == BIG and len(gdc.asked("data")) == 1


@pytest.mark.slow
def test_two_threads_take_turns_too(gdc, tmp_path):
    file_id, notes = gdc.add("a.svs", BIG), []
    gdc.fault("data", "slow", pause=0.1, block=65_536)
    with ThreadPoolExecutor(3) as pool:
        for done in [
            pool.submit(quick(gdc).fetch, file_id, tmp_path / "a.svs", len(BIG), md5(BIG), notes.append)
            for _ in range(3)
        ]:
            assert done.result().read_bytes() == BIG
    assert len(gdc.asked("data")) == 1 and all("another process is fetching it" in note for note in notes)
    assert [p.name for p in tmp_path.iterdir()] == ["a.svs"]


# ------------------------------------------------------------------------------------------------ faults that stay


@pytest.mark.parametrize(
    ("fault", "options", "said"),
    [
        ("hang up", {}, r"no connection \(3 times in a row\).*network.*continues"),
        ("status", {"code": 500}, r"HTTP 500 \(3 times in a row\)"),
        ("longer", {"longer": 7}, "offers 300,007 bytes"),
        ("chunked", {"more": 5}, "sends more than"),
        ("other content", {}, "not what the table says.*has changed"),
    ],
)
def test_faults_that_stay_end_in_one_line(gdc, tmp_path, fault, options, said):
    gdc.fault("data", fault, times=99, **options)
    with pytest.raises(InputError, match=said) as caught:
        get(gdc, tmp_path / "a.svs", attempts=3)
    assert_one_line(caught, "a.svs")
    assert not (tmp_path / "a.svs").exists()
    assert len(gdc.asked("data")) == (2 if fault == "other content" else 3)


@pytest.mark.parametrize(
    ("code", "token", "said"),
    [
        (401, "", "gdc_token"),
        (403, "", "may ask for a token.*gdc_token"),
        (401, "t", "takes the token of the key 'gdc_token' no more.*start again, it continues"),
        (403, "t", "gdc_token.*expired or does not cover it"),
        (404, "", "has no file"),
        (410, "", "has no file"),
        (400, "", "HTTP 400, which is no file"),
    ],
)
def test_refusals_fail_at_once(gdc, tmp_path, code, token, said):
    (tmp_path / "t").write_text("secret-1234\n")
    gdc.fault("data", "status", times=99, code=code)
    with pytest.raises(InputError, match=said) as caught:
        get(gdc, tmp_path / "a.svs", token=str(tmp_path / "t") if token else "")
    assert_one_line(caught, "a.svs")
    assert len(gdc.asked("data")) == 1 and "secret" not in str(caught.value)


def test_progress_is_not_failure(gdc, tmp_path, monkeypatch):
    """A line that is cut every few bytes still brings the file; a server that always starts over does not, for ever."""
    monkeypatch.setattr(server, "STEP", 65_536)
    gdc.fault("data", "cut", times=4, after=65_536)
    assert get(gdc, tmp_path / "a.svs", attempts=2)[0].read_bytes() == BIG
    monkeypatch.setattr(server, "STEP", 400_000)
    gdc.fault("data", "cut", times=99, after=30_000)
    with pytest.raises(InputError, match="2 times in a row"):
        get(gdc, tmp_path / "b.svs", attempts=2)


def test_pauses_grow_and_retry_after_is_kept(gdc, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(server.Traffic, "sleep", lambda self, seconds: slept.append(seconds) if seconds else None)
    gdc.fault("data", "status", times=4, code=500)
    get(gdc, tmp_path / "a.svs", pause=1.0)
    assert len(slept) == 4 and all(0.75 * 2**i <= pause <= 1.25 * 2**i for i, pause in enumerate(slept))
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90))
    for i, (asked, expected) in enumerate([("30", 30), (soon, 90), ("nonsense", 1), ("-5", 1)]):
        slept.clear()
        gdc.fault("data", "status", code=503, headers={"Retry-After": asked})
        get(gdc, tmp_path / f"b{i}.svs", pause=1.0)
        assert len(slept) == 1 and abs(slept[0] - expected) < 2, asked
    gdc.fault("data", "status", code=429, headers={"Retry-After": "86400"})
    with pytest.raises(InputError, match="asks to wait 24 h 0 min"):
        get(gdc, tmp_path / "c.svs")


@pytest.mark.parametrize("address", ["", "api.gdc.cancer.gov", "file:///etc", "https:///data", "http://[half"])
def test_an_address_that_is_none(tmp_path, address):
    with pytest.raises(InputError, match="address"):
        quick(address).fetch("a", tmp_path / "a.svs", 1, "0" * 32)


def test_nobody_there(tmp_path):
    with GdcServer() as gone:
        pass
    with pytest.raises(InputError, match="no connection"):
        quick(gone, attempts=2).fetch("a", tmp_path / "a.svs", 1, "0" * 32)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_stops_everything(gdc, tmp_path):
    (tmp_path / "a.svs.part").symlink_to("/dev/full")
    file_id = gdc.add("a.svs", BIG)
    with pytest.raises(DiskFull, match="no space left.*a.svs.*continues"):
        quick(gdc).fetch(file_id, tmp_path / "a.svs", len(BIG), md5(BIG))
    with pytest.raises(DiskFull):
        fetch_all(quick(gdc), table(gdc), tmp_path, report=lambda line: None)


def test_a_folder_that_is_none(gdc, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a.svs cannot be written.*'slides'"):
        get(gdc, tmp_path / "file" / "a.svs")


# ------------------------------------------------------------------------------------------------ what is there already


def test_a_right_file_is_taken_as_it_is_and_read_once(gdc, tmp_path, monkeypatch):
    path, log = tmp_path / "a.svs", tmp_path / "study" / "checked.txt"
    path.write_bytes(BIG)
    before, read = path.stat(), []
    monkeypatch.setattr(download, "file_md5", lambda p, real=download.file_md5: read.append(p) or real(p))
    for _ in range(3):
        get(gdc, path, checked=str(log))
    after = path.stat()
    assert len(read) == 1 and not gdc.log and left(tmp_path) == ["a.svs", "study"]
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    os.utime(path, ns=(0, 0))  # it may be another one now
    get(gdc, path, checked=str(log))
    assert len(read) == 2
    get(gdc, path)
    assert len(read) == 3, "without a place to remember it is read each time"


def test_what_was_downloaded_need_not_be_read_again(gdc, tmp_path, monkeypatch):
    path, _ = get(gdc, tmp_path / "a.svs", checked=str(tmp_path / "checked.txt"))
    monkeypatch.setattr(download, "file_md5", None)
    get(gdc, path, checked=str(tmp_path / "checked.txt"))


@pytest.mark.parametrize(
    ("content", "said"),
    [(BIG[:-1], "has 299,999 bytes where 300,000 are due"), (BIG[::-1], "its MD5 is not"), (b"", "has 0 bytes")],
)
def test_a_wrong_file_is_named_and_left(gdc, tmp_path, content, said):
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{said}.*left as it is.*move it away") as caught:
        get(gdc, path)
    assert_one_line(caught, "a.svs")
    assert path.read_bytes() == content and left(tmp_path) == ["a.svs"] and not gdc.log


def test_a_link_into_a_disk_that_is_not_mounted_is_left(gdc, tmp_path):
    (tmp_path / "a.svs").symlink_to(tmp_path / "away" / "a.svs")
    with pytest.raises(InputError, match="link to a file that is not there"):
        get(gdc, tmp_path / "a.svs")
    assert (tmp_path / "a.svs").is_symlink() and not gdc.log


def test_a_file_put_there_meanwhile_is_not_overwritten(gdc, tmp_path):
    path, file_id = tmp_path / "a.svs", gdc.add("a.svs", BIG)
    gdc.fault("data", "cut", after=70_000)
    quick(gdc).fetch(file_id, path, len(BIG), md5(BIG), lambda note: path.write_bytes(BIG))
    assert path.read_bytes() == BIG and left(tmp_path) == ["a.svs"]
    path.unlink()
    gdc.fault("data", "cut", after=70_000)
    with pytest.raises(InputError, match="left as it is"):
        quick(gdc).fetch(file_id, path, len(BIG), md5(BIG), lambda note: path.write_bytes(b"mine"))
    assert path.read_bytes() == b"mine"


# ------------------------------------------------------------------------------------------------ names, tokens, proxy


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a.svs",
        "/etc/passwd",
        "a/b.svs",
        "a\\b.svs",
        ".hidden",
        "-rf",
        "a\x00.svs",
        "a\n.svs",
        "C:a.svs",
        "a.svs ",
        "a.",
        "x" * 241,
        "a\u202esvs",
        "~a",
        "NUL.svs",
        "com1",
        "aux .svs",
    ],
)
def test_names_that_are_not_plain(name):
    with pytest.raises(InputError, match="plain file name") as caught:
        plain_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF.svs", "a b (1).svs", "Präparat.ndpi"])
def test_plain_names(name):
    assert plain_name(name) == name


@pytest.mark.parametrize(
    ("file_id", "size", "md5_", "said"),
    [
        ("../status", 1, "0" * 32, "file_id"),
        ("a,b", 1, "0" * 32, "file_id"),
        ("a?b", 1, "0" * 32, "file_id"),
        ("", 1, "0" * 32, "file_id"),
        ("a", 0, "0" * 32, "size"),
        ("a", "", "0" * 32, "size"),
        ("a", float("nan"), "0" * 32, "size"),
        ("a", 1, "", "md5"),
        ("a", 1, "z" * 32, "md5"),
    ],
)
def test_entries_that_cannot_be(gdc, tmp_path, file_id, size, md5_, said):
    with pytest.raises(InputError, match=said) as caught:
        quick(gdc).fetch(file_id, tmp_path / "a.svs", size, md5_)
    assert_one_line(caught, "a.svs")
    assert not gdc.log


def test_the_token_goes_to_the_server_and_nowhere_else(tmp_path):
    (tmp_path / "token.txt").write_text("secret-1234\n")
    with GdcServer(secret="secret-1234") as gdc, GdcServer() as other:
        file_id = gdc.add("a.svs", BIG)
        other.contents[file_id] = BIG
        gdc.fault("data", "redirect", to=other.url + "/data/{file_id}")
        remote = quick(gdc, token=str(tmp_path / "token.txt"))
        assert remote.fetch(file_id, tmp_path / "a.svs", len(BIG), md5(BIG)).read_bytes() == BIG
        assert gdc.log[0]["headers"]["X-Auth-Token"] == "secret-1234"
        assert len(other.log) == 1 and "secret-1234" not in str(other.log)
        gdc.fault("data", "redirect", to="/data/{file_id}")  # on the same host it stays
        remote.fetch(file_id, tmp_path / "b.svs", len(BIG), md5(BIG))
        assert gdc.log[-1]["headers"]["X-Auth-Token"] == "secret-1234"
        remote.ask("status")
        assert "X-Auth-Token" not in gdc.log[-1]["headers"], "a query needs none"
        gdc.fault("data", "redirect", times=99, to="/data/{file_id}")
        with pytest.raises(InputError, match="TooManyRedirects"):
            remote.fetch(file_id, tmp_path / "c.svs", len(BIG), md5(BIG))
    assert "secret" not in repr(remote) and b"secret" not in pickle.dumps(remote)


@pytest.mark.parametrize("content", [None, b"", b"two words", b"two\nlines", "zwölf".encode()])
def test_a_token_file_that_is_none(gdc, tmp_path, content):
    if content is not None:
        (tmp_path / "token.txt").write_bytes(content)
    with pytest.raises(InputError, match="token file token.txt.*") as caught:
        get(gdc, tmp_path / "a.svs", token=str(tmp_path / "token.txt"))
    assert_one_line(caught, "token.txt")
    assert "words" not in str(caught.value) and not gdc.log


def test_the_proxy_of_the_environment_is_used(gdc, tmp_path, monkeypatch):
    file_id = gdc.add("a.svs", BIG)
    with proxy_to(gdc) as (address, passed):
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("http_proxy", address)
        remote = quick("http://gdc.invalid")
        assert remote.fetch(file_id, tmp_path / "a.svs", len(BIG), md5(BIG)).read_bytes() == BIG
        assert remote.ask("status")["status"] == "OK"
        assert passed == [f"http://gdc.invalid/data/{file_id}", "http://gdc.invalid/status"]
    with pytest.raises(InputError, match="proxy does not let us through"):
        quick("http://gdc.invalid", attempts=2).fetch(file_id, tmp_path / "b.svs", len(BIG), md5(BIG))


def test_queries_are_asked_again_or_fail_in_one_line(gdc):
    gdc.fault("status", "status", code=500)
    gdc.fault("status", "hang up")
    assert quick(gdc).ask("status")["status"] == "OK" and len(gdc.log) == 3
    gdc.fault("status", "status", code=400)
    with pytest.raises(InputError, match="refuses a query of /status .HTTP 400.*a fault of this server") as caught:
        quick(gdc).ask("status")
    assert_one_line(caught, "status")


def test_an_id_that_changed_is_renewed_once(gdc, tmp_path):
    file_id, asked = gdc.add("a.svs", BIG), []

    def renew(name, md5_):
        asked.append((name, md5_))
        return file_id

    for number, refusal in enumerate((404, 403)):
        gdc.fault("data", "status", code=refusal)
        quick(gdc, renew=renew).fetch("old-id", tmp_path / f"a{number}.svs", len(BIG), md5(BIG))
        assert asked.pop() == (f"a{number}.svs", md5(BIG)) and gdc.log[-1]["path"] == f"/data/{file_id}"
    with pytest.raises(InputError, match="has no file other"):
        quick(gdc, renew=lambda name, md5_: "other").fetch("old-id", tmp_path / "b.svs", len(BIG), md5(BIG))
    with pytest.raises(InputError, match="has no file old-id"):
        quick(gdc, renew=lambda name, md5_: "old-id").fetch("old-id", tmp_path / "b.svs", len(BIG), md5(BIG))


@pytest.mark.slow
def test_a_remote_works_in_worker_processes(gdc, tmp_path):
    remote = quick(gdc, checked=str(tmp_path / "checked.txt"))
    assert pickle.loads(pickle.dumps(remote)) == remote
    with pytest.raises(dataclasses.FrozenInstanceError):
        remote.server = "x"
    units = {name: (gdc.add(name, BIG), tmp_path / name, len(BIG), md5(BIG)) for name in ("a.svs", "b.svs")}
    units["c.svs"] = ("unknown", tmp_path / "c.svs", 1, "0" * 32)
    done = {name: (result, error) for name, result, error in run_units(remote.fetch, units, workers=2)}
    assert done["a.svs"] == (tmp_path / "a.svs", None) and (tmp_path / "b.svs").read_bytes() == BIG
    assert isinstance(done["c.svs"][1], InputError) and "has no file unknown" in str(done["c.svs"][1])
    assert len((tmp_path / "checked.txt").read_text().splitlines()) == 2


def test_a_certificate_that_is_not_trusted_is_said_at_once(gdc, tmp_path, monkeypatch):
    def request(*args, **options):
        raise requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

    monkeypatch.setattr(requests.Session, "request", request)
    with pytest.raises(InputError, match="REQUESTS_CA_BUNDLE"):
        get(gdc, tmp_path / "a.svs")


# ------------------------------------------------------------------------------------------------ many files


def table(gdc):
    """What to download, of all that the server has."""
    return pd.DataFrame(
        [
            {
                "slide_id": r["file_name"].removesuffix(".svs"),
                "file_id": r["file_id"],
                "md5": r["md5sum"],
                "size": str(r["file_size"]),
            }
            for r in gdc.records
        ]
    )


def test_all_files_with_a_line_each_and_failures_beside(gdc, tmp_path):
    for i in range(6):
        gdc.add(f"s{i}.svs", BIG[i * 1000 :])
    entries = table(gdc)
    entries.loc[2, "file_id"] = "unknown"
    entries.loc[3, "md5"] = "0" * 31 + "1"
    entries.loc[4, "slide_id"] = "../s4"
    entries.loc[5, "size"] = "many"
    lines, folder = [], tmp_path / "slides"
    failures = fetch_all(quick(gdc), entries, folder, report=lines.append)
    assert {(f["unit"], f["stage"]) for f in failures} == {(s, "download") for s in ("s2", "s3", "../s4", "s5")}
    assert left(folder) == ["s0.svs", "s1.svs"] and left(tmp_path) == ["slides"]
    for number in range(1, 5):
        assert sum(line.startswith(f"[{number}/4] ") for line in lines) == 1
    done = [line for line in lines if re.fullmatch(r"\[\d/4\] s[01]  \d+ kB  \d+ [kM]B/s(  .* left)?", line)]
    assert len(done) == 2 and sum(" failed: " in line for line in lines) == 4


def test_what_is_there_is_not_fetched_and_what_is_not_right_is_told(gdc, tmp_path):
    for i in range(4):
        gdc.add(f"s{i}.svs", BIG[i * 1000 :])
    entries = table(gdc).assign(path=["", str(tmp_path / "mine" / "copy of s1.svs"), "", "elsewhere/s3.svs"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "copy of s1.svs").write_bytes(BIG[1000:])
    (tmp_path / "s2.svs").write_bytes(b"half")
    remote, lines = quick(gdc, checked=str(tmp_path / "log" / "checked.txt")), []
    failures = fetch_all(remote, entries, tmp_path, report=lines.append)
    assert [f["unit"] for f in failures] == ["s2"] and (tmp_path / "s2.svs").read_bytes() == b"half"
    assert left(tmp_path) == ["log", "mine", "s0.svs", "s2.svs", "s3.svs"] and len(gdc.asked("data")) == 2
    assert sum("s1  299 kB  was there, checked" in line for line in lines) == 1
    lines.clear()
    fetch_all(remote, entries, tmp_path, report=lines.append)
    assert lines[0] == "3 slides there already" and len(lines) == 2 and len(gdc.asked("data")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "bound"), [(3, 3), (50, fetching.MOST_WORKERS), (0, 1)])
def test_no_more_at_a_time_than_agreed(gdc, tmp_path, workers, bound):
    for i in range(12):
        gdc.add(f"s{i}.svs", BIG[: 1000 + i])
    gdc.fault("data", "slow", times=99, pause=0.1, block=600)
    assert not fetch_all(quick(gdc), table(gdc), tmp_path, workers, report=lambda line: None)
    assert gdc.most_flying == bound and len(left(tmp_path)) == 12


@pytest.mark.slow
def test_a_long_file_is_told_of_and_so_are_the_troubles(gdc, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "QUIET", 0.3)
    gdc.add("s0.svs", BIG)
    gdc.fault("data", "status", code=500)
    gdc.fault("data", "slow", pause=0.35, block=100_000)
    lines = []
    fetch_all(quick(gdc), table(gdc), tmp_path, report=lines.append)
    assert lines[0] == "  s0.svs: the server answers HTTP 500; again in 0 s"
    assert any(re.fullmatch(r"  \d+ kB of 300 kB  \d+ kB/s(  \d+ s left)?", line) for line in lines)


def test_not_enough_room_is_said_before_anything_is_fetched(gdc, tmp_path):
    gdc.add("s0.svs", BIG)
    entries = table(gdc).assign(size=10**18)
    with pytest.raises(InputError, match="1 slide still to fetch, 1000000.00 TB in all.*keep_slides: false") as caught:
        fetch_all(quick(gdc), entries, tmp_path / "not" / "there", report=lambda line: None)
    assert_one_line(caught, "slides")
    assert not gdc.log and not (tmp_path / "not").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_the_parts(gdc, tmp_path):
    for i in range(5):
        gdc.add(f"s{i}.svs", BIG[i * 1000 :])
    table(gdc).to_csv(tmp_path / "table.csv", index=False)
    code = (
        "import signal, sys, pandas as pd; from dmsmil.cohorts.download import Remote\n"
        "from dmsmil.cohorts.fetching import fetch_all\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started deaf to it\n"
        "fetch_all(Remote(sys.argv[1], pause=0), pd.read_csv(sys.argv[2]), sys.argv[3], 2)"
    )
    gdc.fault("data", "slow", times=2, pause=0.3, block=65_536)
    process = subprocess.Popen(
        [sys.executable, "-c", code, gdc.url, str(tmp_path / "table.csv"), str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    parts = [tmp_path / f"s{i}.svs.part" for i in range(2)]
    assert until(lambda: all(p.exists() and p.stat().st_size for p in parts))
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=10)[1]
    have = [p.stat().st_size for p in parts]
    assert all(have) and left(tmp_path) == ["s0.svs.part", "s1.svs.part", "table.csv"]
    before = len(gdc.log)
    assert before == 2, "what waited was never begun"
    assert not fetch_all(quick(gdc), table(gdc), tmp_path, report=lambda line: None)
    continued = {entry["headers"].get("Range") for entry in gdc.log[before:]}
    assert continued == {f"bytes={n}-" for n in have} | {None} and len(left(tmp_path)) == 6


def test_a_reader_that_leaves_stops_the_threads(gdc, tmp_path):
    """Ctrl-C while a line is printed, as it may come in a notebook: nothing goes on in the background."""
    for i in range(6):
        gdc.add(f"s{i}.svs", BIG[i * 1000 :])

    def report(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_all(quick(gdc), table(gdc), tmp_path, 1, report)
    asked = len(gdc.log)
    time.sleep(0.3)
    assert len(gdc.log) == asked < 6


def test_tables_with_and_without_downloads(gdc, tmp_path):
    plain = pd.DataFrame({"slide_id": ["a"], "label": ["x"]})
    assert not downloadable(plain) and not downloadable(plain.assign(file_id="", md5="", size=""))
    assert not downloadable(plain.assign(file_id=None, md5=None, size=None))
    with pytest.raises(InputError, match="file_id, md5 and size"):
        fetch_all(quick(gdc), plain, tmp_path)
    gdc.add("s0.svs", BIG)
    mixed = pd.concat([table(gdc), pd.DataFrame({"slide_id": ["own"], "path": ["own.svs"]})])
    assert downloadable(mixed) and not fetch_all(quick(gdc), mixed, tmp_path, report=lambda line: None)
    assert left(tmp_path) == ["s0.svs"]


def test_where_a_slide_is_or_will_be(tmp_path):
    def row(**fields):
        return next(pd.DataFrame([fields]).itertuples())

    (tmp_path / "here.svs").touch()
    assert slide_path(row(slide_id="s", path=str(tmp_path / "here.svs")), "to") == tmp_path / "here.svs"
    assert str(slide_path(row(slide_id="s", path="../../gone.tif"), "to")) == "to/gone.tif"
    assert str(slide_path(row(slide_id="TCGA.1-2"), "to")) == "to/TCGA.1-2.svs"
    assert str(slide_path(row(slide_id="s.svs", path=""), "to")) == "to/s.svs"
    assert str(slide_path(row(slide_id="s", file_name="n.ndpi", path="gone.svs"), "to")) == "to/n.ndpi"
    with pytest.raises(InputError):
        slide_path(row(slide_id="s", file_name="../n.svs"), "to")


def test_sizes_and_times_for_a_reader():
    assert [amount(n) for n in (0, 5300, 34e6, 999.6e6, 1.24e9, 928e9, 1.98e12)] == [
        "0 kB",
        "5 kB",
        "34 MB",
        "1.0 GB",
        "1.2 GB",
        "928.0 GB",
        "1.98 TB",
    ]
    assert [duration(s) for s in (0, 40, 89, 91, 3599, 7800)] == [
        "0 s",
        "40 s",
        "89 s",
        "2 min",
        "1 h 0 min",
        "2 h 10 min",
    ]


def test_the_token_file_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token.txt").write_text("secret\n")
    assert list(Remote("https://example.org", "~/token.txt").secret().values()) == ["secret"]
