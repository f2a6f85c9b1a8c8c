"""The demo in a process of its own, and pages of Chromium that watch over their console and requests."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import urlsplit

import pytest

ARGUMENTS = [
    *("--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
PATIENCE = 120_000  # milliseconds until a run counts as hung; shared machines are slow


def find_chromium() -> str | None:
    """Chromium's path, by `DMKIT_CHROMIUM`, the place of Debian's package, or `PATH`."""
    return shutil.which(os.environ.get("DMKIT_CHROMIUM") or "/usr/bin/chromium") or shutil.which("chromium")


def pytest_sessionstart():
    """Rather nothing than tests that are skipped unseen."""
    if find_chromium() is None:
        pytest.exit(
            "The browser tests need Chromium. Install it (Debian: apt-get install chromium), or give the "
            "path of one in DMKIT_CHROMIUM.",
            returncode=2,
        )


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/config", timeout=20) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of the demo as `dmkit app` serves it, with what ships."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dmkit", "app", "--device=cpu", f"--port={port}"]
    log = folder / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, f"--runs={folder / 'runs'}"], stdout=stream, stderr=stream)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 3 * PATIENCE / 1000
        while not answers(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"The demo does not start: {log.read_text()}"
            time.sleep(0.5)
        yield address
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE / 1000)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def watched():
    """What no page may do: errors in its console, and requests to other machines."""
    return []


@pytest.fixture
def visit(chromium, server, watched):
    """Opens the demo in a new window; options are those of Playwright's `new_context`."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    contexts = []

    def open_page(width: int = 1280, height: int = 900, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()

        def hear(said):
            if said.type == "error":
                watched.append(f"console: {said.text} ({said.location['url']})")

        def look(request):
            asked = urlsplit(request.url)
            if asked.scheme not in ("data", "blob") and asked.hostname != "127.0.0.1":
                watched.append(f"request: {request.url}")

        page.on("console", hear)
        page.on("pageerror", lambda error: watched.append(f"page: {error}"))
        page.on("request", look)
        page.goto(server)
        expect(page.get_by_role("tab", name="Sample", exact=True)).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not watched
