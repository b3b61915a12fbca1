"""Headless Chromium driven through its DevTools protocol, for tests that look at what a person would see."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import websocket
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look at pages with (chromium, google-chrome)")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--window-size=1280,1000",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
PATIENCE = 120  # seconds, on a loaded machine


def until(condition, what: str, seconds: float = PATIENCE):
    """What `condition()` returns as soon as it is true; fails with `what` was waited for after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s in vain for {what}")
        time.sleep(0.1)
    return value


class Page:
    """One page of a browser. `errors`: its uncaught exceptions and what it wrote to the console as an error."""

    def __init__(self, socket: websocket.WebSocket):
        self.socket, self.numbers, self.session, self.errors = socket, itertools.count(1), None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """Send one command of the protocol and return its result; events that come meanwhile are looked at."""
        number = next(self.numbers)
        said = {"id": number, "method": method, "params": parameters}
        self.socket.send(json.dumps(said | ({"sessionId": self.session} if self.session else {})))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            event = answer.get("params", {})
            if answer.get("method") == "Runtime.exceptionThrown":
                details = event["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            elif answer.get("method") == "Runtime.consoleAPICalled" and event["type"] == "error":
                self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in event["args"]))
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def js(self, expression: str):
        """The value of a JavaScript expression, awaited."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, (expression, done["exceptionDetails"])
        return done["result"].get("value")

    def until(self, expression: str):
        """Wait until a JavaScript expression is true; its value."""
        return until(lambda: self.js(expression), expression)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of the first element that a CSS selector finds, scrolled into view, in pixels of the window."""
        box = self.js(
            f"(e => (e.scrollIntoView({{block: 'nearest'}}), e.getBoundingClientRect().toJSON()))"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def wheel(self, selector: str, delta: float):
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def key(self, selector: str, name: str, code: int):
        """Press a key on an element; `code`: the key's Windows virtual key code."""
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def canvas(self, selector: str) -> np.ndarray:
        """(H, W, 4) uint8: what is painted on a canvas."""
        url = self.js(f"document.querySelector({json.dumps(selector)}).toDataURL('image/png')")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).convert("RGBA"))

    def photograph(self, path: Path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browse(url: str, folder: Path):
    """The page at `url` in a browser of its own, whose profile lies in `folder`."""
    profile = Path(folder) / "chromium"
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = profile / "DevToolsActivePort"
        where = until(lambda: port.exists() and port.read_text().count("\n") and port.read_text().split(), "Chromium")
        socket = websocket.create_connection(
            f"ws://127.0.0.1:{where[0]}{where[1]}", timeout=PATIENCE, http_no_proxy=["127.0.0.1"]
        )
        page = Page(socket)
        page.call("Page.navigate", url=url)
        yield page
        socket.close()
    finally:
        process.terminate()
        process.wait(30)
