"""Making, checking and revoking keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from datetime import UTC, datetime

from sqlalchemy import Connection

from everswarm.errors import BadRequestError, ConflictError, NotFoundError, UnauthorizedError
from everswarm.identifiers import new_id
from everswarm.schemas.server import KeyCreated, KeyView, Scope
from everswarm.server.auth import repository
from everswarm.server.auth.principal import Principal
from everswarm.server.auth.recent_keys import forget_all_keys
from everswarm.server.database import Database, take_turns

KEY_BYTES = 32  # 256 bits of randomness: a plain hash is enough, nobody can guess
PREFIX_CHARACTERS = 6  # of the secret that a list shows
LABEL_CHARACTERS = 100
FIRST_KEY_LABEL = "first admin key"


def create_key(database: Database, *, scope: Scope, label: str) -> KeyCreated:
    """Make a key. Its text is in the answer and nowhere else.

    Raises:
        BadRequestError: the label is empty or too long.
    """
    with database.transaction() as connection:
        return _create_key(connection, scope=scope, label=label)


def ensure_first_admin_key(database: Database) -> KeyCreated | None:
    """At the first start make the admin key; None when there has been one, even one that was revoked."""
    with database.transaction() as connection:
        take_turns(connection, "keys")
        if repository.has_scope(connection, Scope.ADMIN):
            return None
        return _create_key(connection, scope=Scope.ADMIN, label=FIRST_KEY_LABEL)


def list_keys(database: Database) -> list[KeyView]:
    """Return all keys without their secrets, oldest first."""
    with database.read() as connection:
        return repository.all_keys(connection)


def revoke_key(database: Database, key_id: str) -> None:
    """Refuse this key from now on.

    Raises:
        NotFoundError: there is no such key.
        ConflictError: it is the last admin key, and nobody could make another.
    """
    with database.transaction() as connection:
        take_turns(connection, "keys")
        if repository.live_keys_with_scope(connection, Scope.ADMIN) == [key_id]:
            raise ConflictError(
                f"Key {key_id!r} is the last admin key, and without one nobody can make keys. "
                "Create another admin key first."
            )
        if not repository.mark_revoked(connection, key_id, at=datetime.now(UTC)):
            raise NotFoundError(f"There is no key with the id {key_id!r}. `everswarm keys list` shows all.")
    forget_all_keys()


def revoke_keys_labelled(database: Database, label: str) -> int:
    """Refuse all keys with this label from now on; return how many that were."""
    with database.transaction() as connection:
        revoked = repository.mark_label_revoked(connection, label, at=datetime.now(UTC))
    forget_all_keys()
    return revoked


def principal_of(database: Database, key: str) -> Principal:
    """Return who holds `key`.

    Raises:
        UnauthorizedError: the key is not known or was revoked.
    """
    sha256 = _hash(key)
    with database.read() as connection:
        row = repository.key_with_hash(connection, sha256)
    if row is None or not hmac.compare_digest(row.sha256, sha256):
        raise UnauthorizedError("The key is not known here. `everswarm keys list` shows the keys of this server.")
    if row.revoked_at is not None:
        raise UnauthorizedError(f"The key {row.label!r} was revoked on {row.revoked_at:%Y-%m-%d}. Ask for a new one.")
    return Principal(key_id=row.id, scope=Scope(row.scope), label=row.label)


def _create_key(connection: Connection, *, scope: Scope, label: str) -> KeyCreated:
    label = label.strip()
    if not 1 <= len(label) <= LABEL_CHARACTERS:
        raise BadRequestError(f"The label of a key has 1 to {LABEL_CHARACTERS} characters, not {len(label)}.")
    secret = base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).rstrip(b"=").decode()
    start = f"esw_{scope.value}_"
    key = start + secret
    key_id = new_id()
    row = {
        "id": key_id,
        "prefix": start + secret[:PREFIX_CHARACTERS],
        "sha256": _hash(key),
        "scope": scope.value,
        "label": label,
        "created_at": datetime.now(UTC),
        "revoked_at": None,
    }
    repository.insert_key(connection, row)
    return KeyCreated(id=key_id, key=key, scope=scope, label=label)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
