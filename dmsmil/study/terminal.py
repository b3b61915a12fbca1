"""What a person reads in the terminal: lines, a progress bar below them, and what the cells of a notebook print."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm


def say(line: str, stream: TextIO | None = None) -> None:
    """Write a line (to stdout), at once. When nobody reads any more, as in `dmsmil methods | head`, when the window is
    closed or the disk of a log is full, what is at work goes on in silence: a study of hours does not end with what
    watched it."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Lead a stream whose reader is gone to nowhere; what it still holds goes there too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Bar:
    """Says lines above a progress bar in a terminal, which follows their `[done/all]`; plain lines elsewhere."""

    def __init__(self):
        self.bar = tqdm(
            total=1,
            bar_format="{desc} {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]",
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def __call__(self, line: str) -> None:
        with tqdm.external_write_mode(sys.stdout):
            say(line)
        if count := re.match(r"\s+\[(\d+)/(\d+)\]", line):
            done, total = map(int, count.groups())
            if done == 1 or total != self.bar.total:
                self.bar.reset(total)
            self.bar.update(done - self.bar.n)
        elif name := re.match(r"(\d\d_\w+)  \(", line):
            self.bar.set_description_str(name.group(1))


class Lines:
    """A text stream that hands on what the cells print, line by line."""

    def __init__(self, tell: Callable[[str], None]):
        self.tell, self.rest = tell, ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.tell("    " + line)

    def flush(self) -> None:
        """Nothing waits but an unfinished line."""
