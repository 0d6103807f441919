"""A real Chromium with a page that is new to the server, the real server, and a fake model behind it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.fakes.finished_cycle import add_finished_cycle
from tests.fakes.upstream import Behaviour, FakeUpstream

from everswarm.processes import reap_child
from everswarm.server.database import Database
from everswarm.settings import Settings

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ON_A_MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # Chromium's own sandbox refuses to run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 15_000.0
NOBODY_LISTENS = "http://127.0.0.1:1/v1"
MARKUP = "<img src=x onerror=\"alert('ran')\"><script>alert('ran')</script> & <b>bold</b>"


class ServedPage(NamedTuple):
    """A running server."""

    url: str
    sign_in: str  # the link that it wrote
    database: Database


def installed_chromium() -> str | None:
    """Return the path of a Chromium or Chrome of this machine."""
    if sys.platform == "darwin" and ON_A_MAC.exists():
        return str(ON_A_MAC)
    return next((path for path in map(shutil.which, NAMES) if path), None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser of a module: its event loop would be in the way of the asyncio tests of others."""
    path = installed_chromium()
    if path is None:
        pytest.skip("needs Chromium or Chrome on PATH: `make browser` installs it on Debian")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A tab without memory; an error in a script, a dialog, or a breach of the policy for content fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, service_workers="block")
    context.set_default_timeout(PATIENCE_MS)
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("dialog", lambda dialog: errors.append(f"a dialog opened: {dialog.message}"))
    tab.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
    yield tab
    context.close()
    assert not errors


@pytest.fixture(scope="module")
def upstream(chromium: Browser) -> Iterator[FakeUpstream]:
    """The model behind the server; asks for `chromium` so that nothing starts where there is none."""
    with FakeUpstream() as running:
        yield running


@pytest.fixture(autouse=True)
def usual_behaviour(upstream: FakeUpstream) -> None:
    upstream.behaviour = Behaviour()


@pytest.fixture(scope="module")
def server(upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPage]:
    """`everswarm serve` as a process, on a home where a cycle went all the way."""
    home = tmp_path_factory.mktemp("home")
    database = Database(Settings(home=home, database_url=None).sqlalchemy_url)
    database.migrate()
    add_finished_cycle(database, answer=MARKUP)
    child = start_server(home, upstream_url=upstream.base_url)
    url, link = written_link(child, home)
    yield ServedPage(url, link, database)
    database.close()
    child.terminate()
    reap_child(child, patience_seconds=20.0)


def start_server(home: Path, *, upstream_url: str) -> subprocess.Popen[str]:
    """Start a server with two endpoints: `good`, and `gone`, where nobody listens."""
    endpoints = [
        {"name": "good", "base_url": upstream_url, "model": "someone/good-model", "roles": ["primary"]},
        {"name": "gone", "base_url": NOBODY_LISTENS, "model": "someone/gone-model", "roles": ["specialist"]},
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERSWARM_")}
    environment |= {
        "EVERSWARM_CONFIG": os.devnull,
        "EVERSWARM_ENDPOINTS": json.dumps(endpoints),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "everswarm.cli.main", "serve", "--no-worker", "--port", "0", "--home", str(home)]
    # its own folder, so that no .env of this machine is read
    return subprocess.Popen(
        command, env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def written_link(child: subprocess.Popen[str], home: Path) -> tuple[str, str]:
    """Return the server's address and its sign-in link, once it says that it wrote that."""
    said = []
    assert child.stdout is not None
    for line in child.stdout:
        said.append(line)
        if "sign-in.txt" in line:
            link = (home / "sign-in.txt").read_text(encoding="utf-8").strip()
            return link.partition("/#key=")[0], link
    raise AssertionError(f"the server did not start: {''.join(said)}")
