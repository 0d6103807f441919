"""From whom a device takes updates."""

from __future__ import annotations

import httpx

from everswarm.client.loopback import is_loopback
from everswarm.errors import ConfigurationError, ForbiddenError


def refuse_remote(server: str) -> None:
    """Let only this machine's own server pass: releases are not signed yet, so nothing else proves who sent them.

    Raises:
        ConfigurationError: not an http address.
        ForbiddenError: not an address of this machine.
    """
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise ConfigurationError(
            f"'{server}' is no address of a server ({error}). Write it as http://127.0.0.1:8000"
        ) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(f"'{server}' is no address of a server. Write it as http://127.0.0.1:8000")
    if not is_loopback(url.host):
        raise ForbiddenError(
            f"This device was asked to trust {url.host}, which is another machine. Updates are not signed yet, "
            "so a device takes them only from a server on its own machine (127.0.0.1, ::1 or localhost). "
            "Run the server here and use http://127.0.0.1:8000"
        )
