"""API keys: who calls, and what they may do.

Takes a bearer key; gives a `Principal`. Keeps only the hash of a key. Knows nothing of what the routes do.
"""

from everswarm.server.auth.guard import ActingUserDep, PrincipalDep, authorise, principal_of_cached, require
from everswarm.server.auth.principal import Principal
from everswarm.server.auth.service import (
    create_key,
    ensure_first_admin_key,
    list_keys,
    revoke_key,
    revoke_keys_labelled,
)

__all__ = [
    "ActingUserDep",
    "Principal",
    "PrincipalDep",
    "authorise",
    "create_key",
    "ensure_first_admin_key",
    "list_keys",
    "principal_of_cached",
    "require",
    "revoke_key",
    "revoke_keys_labelled",
]
