"""Keeps what people said unreadable to whoever has the database without its key. Knows no table.

A column of type `SealedText` or `SealedJson` is encrypted on its way in (AES-256-GCM) and opened on its way out. The
key is a file of the server's home, or `EVERSWARM_TEXT_KEY`; whoever loses it has lost the text.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Dialect, LargeBinary
from sqlalchemy.types import TypeDecorator

from everswarm.errors import ConfigurationError

KEY_BYTES = 32
KEY_VARIABLE = "EVERSWARM_TEXT_KEY"
KEY_NAME = "text.key"  # of the file
PSEUDONYM_BYTES = 10
FINGERPRINT_BYTES = 16
_VERSION = b"\x01"
_PREFIX_BYTES, _COUNTER_BYTES = 8, 4  # of a nonce: random once a process, then counted, so that none comes twice

Mask: TypeAlias = Callable[[str], str]


class Seal:
    """One key, and what is done with it. Safe to use from many threads."""

    def __init__(self, key: bytes) -> None:
        """`key` has 32 bytes."""
        self._cipher = AESGCM(key)
        self._key = hashlib.blake2b(key, digest_size=32, person=b"everswarm-names").digest()
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)  # or parent and child would use the same nonces

    def _renew(self) -> None:
        self._nonces = (os.urandom(_PREFIX_BYTES), itertools.count())

    def close(self, data: bytes) -> bytes:
        """Return `data` sealed, 29 bytes longer; nothing stays nothing."""
        if not data:
            return b""
        prefix, counter = self._nonces
        count = next(counter)
        if count >= 1 << 8 * _COUNTER_BYTES:
            self._renew()
            return self.close(data)
        nonce = prefix + count.to_bytes(_COUNTER_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, data, None)

    def open(self, sealed: bytes) -> bytes:
        """Return what was sealed.

        Raises:
            ConfigurationError: another key sealed it, or it was changed.
        """
        if not sealed:
            return b""
        try:
            if sealed[:1] != _VERSION:
                raise InvalidTag
            end = 1 + _PREFIX_BYTES + _COUNTER_BYTES
            return self._cipher.decrypt(sealed[1:end], sealed[end:], None)
        except InvalidTag as error:
            raise ConfigurationError(
                f"A text in the database cannot be opened: another key sealed it, or it was changed. Put back the "
                f"{KEY_NAME} that belongs to this database, or set {KEY_VARIABLE} to its content."
            ) from error

    def pseudonym(self, name: str) -> str:
        """Return the name by which `name` is known outside of this server: always the same, and not to be undone."""
        digest = hashlib.blake2b(name.encode(), key=self._key, digest_size=PSEUDONYM_BYTES, person=b"pseudonym")
        return f"u-{digest.hexdigest()}"

    def fingerprint(self, data: bytes) -> bytes:
        """Return 16 bytes that tell whether two texts are the same, to whoever has the key."""
        return hashlib.blake2b(data, key=self._key, digest_size=FINGERPRINT_BYTES, person=b"fingerprint").digest()


class SealSource:
    """Finds the key when it is first needed; makes it where there is none yet."""

    def __init__(self, file: Path | None, *, mask: Mask | None = None) -> None:
        """Say how text is kept.

        Args:
            file: holds the key where the variable is not set; None: only the variable may.
            mask: takes out of a text what must not be stored at all.
        """
        self.mask = mask
        self._file = file
        self._seal: Seal | None = None
        self._lock = threading.Lock()

    @property
    def seal(self) -> Seal:
        """The seal of this database.

        Raises:
            ConfigurationError: there is no key and no place for one, or it is damaged.
        """
        if self._seal is None:
            with self._lock:
                self._seal = self._seal or Seal(self._key())
        return self._seal

    @property
    def has_key(self) -> bool:
        """Whether there is a key already, right or not."""
        return bool(os.environ.get(KEY_VARIABLE)) or (self._file is not None and self._file.exists())

    def _key(self) -> bytes:
        given = os.environ.get(KEY_VARIABLE)
        if given:
            return _decoded(given, where=KEY_VARIABLE)
        if self._file is None:
            raise ConfigurationError(
                f"What people say is sealed with a key, and there is none. Set {KEY_VARIABLE} to 32 bytes in base64; "
                "all servers of one database need the same."
            )
        _make_key_file(self._file)
        return _decoded(self._file.read_text(encoding="ascii", errors="replace"), where=str(self._file))


class SealedText(TypeDecorator[str]):
    """Text that is sealed in the database. An empty text is empty there, too, so that SQL can tell."""

    impl = LargeBinary
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[str | None], bytes | None]:
        """Return what seals a text: by itself, a third of what SQLAlchemy's own way costs."""
        source = _source_of(dialect)

        def sealed(value: str | None) -> bytes | None:
            if value is None:
                return None
            return source.seal.close((source.mask(value) if source.mask else value).encode())

        return sealed

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        """Return the text."""
        return None if value is None else _source_of(dialect).seal.open(bytes(value)).decode()


class SealedJson(TypeDecorator[Any]):
    """A value of JSON that is sealed in the database. None is NULL."""

    impl = LargeBinary
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], bytes | None]:
        """Return what seals a value."""
        source = _source_of(dialect)

        def sealed(value: Any) -> bytes | None:
            if value is None:
                return None
            return source.seal.close(orjson.dumps(_masked(value, source.mask) if source.mask else value))

        return sealed

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> Any:
        """Return the value."""
        return None if value is None else orjson.loads(_source_of(dialect).seal.open(bytes(value)))


def give_seal(dialect: Dialect, source: SealSource) -> None:
    """Let the sealed columns of one engine use `source`."""
    dialect.everswarm_seal = source  # type: ignore[attr-defined]  # the one object that a column type is handed


def as_stored(dialect: Dialect, value: Any) -> Any:
    """Return a text, or a value of JSON, as a sealed column of this engine will give it back."""
    mask = _source_of(dialect).mask
    return value if mask is None else _masked(value, mask)


def seal_of(dialect: Dialect) -> Seal:
    """Return the seal of the engine that `dialect` belongs to."""
    return _source_of(dialect).seal


def _source_of(dialect: Dialect) -> SealSource:
    source: SealSource = dialect.everswarm_seal  # type: ignore[attr-defined]
    return source


def _masked(value: Any, mask: Mask) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list):
        return [_masked(item, mask) for item in value]
    if isinstance(value, dict):
        return {name: _masked(item, mask) for name, item in value.items()}
    return value


def _make_key_file(path: Path) -> None:
    """Make sure that there is a key at `path`; of several processes one makes it, whole or not at all."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 from the start
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _decoded(text: str, *, where: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"{where} should hold {KEY_BYTES} bytes in base64, and does not. Put back the key that belongs to this "
            "database; without it what people said cannot be read."
        )
    return key
