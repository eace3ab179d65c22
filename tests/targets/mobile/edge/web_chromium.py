"""The bundle's own page in headless Chromium, against this machine's answers."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge.proof import CannotRunError, Case, Feed, NotProvenError, command, main, read_answers
from edge.web import PACKAGE, installed_web

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
TIMEOUT_S = 120.0


def prove(artifact: Path, given: Sequence[Case], cache: Path) -> Sequence[Feed]:
    """What the page answers to each case."""
    browser, driver = _installed_browser()
    library = installed_web(cache) / "node_modules" / PACKAGE / "dist"
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(given):
            case.write(Path(folder) / f"case{number}.json")
        with _served(artifact, library, Path(folder)) as site, _driven(browser, driver) as page:
            texts = [
                _shown(page, f"{site}/web/index.html?example=/cases/case{number}.json")
                for number in range(len(given))
            ]
    return read_answers(f"[{','.join(texts)}]")


def _installed_browser() -> tuple[str, str]:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser and driver:
        return browser, driver
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise CannotRunError("chromium and chromedriver are not installed, and only root can install them")
    command("apt-get", "update", "-qq")
    command("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "chromium-driver")
    return "/usr/bin/chromium", "/usr/bin/chromedriver"


class _Files(http.server.SimpleHTTPRequestHandler):
    """The bundle, with onnxruntime-web where its page looks for it, and the cases."""

    extensions_map = {  # noqa: RUF012 - as the base class has it
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *arguments: Any, library: Path, cases: Path, **options: Any) -> None:
        self._library, self._cases = library, cases
        super().__init__(*arguments, **options)

    def translate_path(self, path: str) -> str:
        path = path.partition("?")[0]
        for prefix, folder in (("/web/onnxruntime-web/", self._library), ("/cases/", self._cases)):
            if path.startswith(prefix):
                return str(folder / Path(path).name)
        return super().translate_path(path)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _served(artifact: Path, library: Path, cases: Path) -> Iterator[str]:
    handler = functools.partial(_Files, directory=str(artifact), library=library, cases=cases)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def _driven(browser: str, driver: str) -> Iterator[str]:
    """The address of a WebDriver session, in a browser with an empty profile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [driver, f"--port={port}", "--silent"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            options = {"binary": browser, "args": [*FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
            root = f"http://127.0.0.1:{port}/session"
            session = f"{root}/{_when_ready(root, wanted)['sessionId']}"
            try:
                yield session
            finally:
                _ask("DELETE", session)
        finally:
            process.terminate()
            process.wait(timeout=20)


def _when_ready(root: str, wanted: dict[str, Any]) -> dict[str, Any]:
    until = time.monotonic() + 30
    while True:
        try:
            answer: dict[str, Any] = _ask("POST", root, wanted)
            return answer
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise CannotRunError(f"chromium does not start: {said}") from error
        except urllib.error.URLError as error:
            if time.monotonic() > until:
                raise CannotRunError(f"chromedriver does not answer: {error.reason}") from error
            time.sleep(0.2)


def _shown(session: str, address: str) -> str:
    """The answer that the page at ``address`` shows when it is done, as JSON."""
    _ask("POST", f"{session}/url", {"url": address})
    until = time.monotonic() + TIMEOUT_S
    script = """const result = document.getElementById("result");
                const plain = ([name, { dims, data }]) => [name, { dims, data: Array.from(data, Number) }];
                const answer = Object.fromEntries(Object.entries(result.answer || {}).map(plain));
                return [document.body.dataset.state || "", result.textContent, JSON.stringify(answer)]"""
    state, text, answer = "", "", ""
    while not state and time.monotonic() < until:
        time.sleep(0.2)
        state, text, answer = _ask("POST", f"{session}/execute/sync", {"script": script, "args": []})
    if state != "done" or "largest difference" not in text:
        raise NotProvenError(f"the page {address} is {state or 'not done'} and shows: {text}")
    return str(answer)


def _ask(method: str, address: str, content: object = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TIMEOUT_S) as answer:
        return json.loads(answer.read())["value"]


if __name__ == "__main__":
    main(prove, __doc__ or "")
