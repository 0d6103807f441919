"""From the settings to the endpoints of this server."""

from __future__ import annotations

from everswarm.server.gateway.embedded import EmbeddedEndpoint
from everswarm.server.gateway.endpoints import Endpoint, RemoteEndpoint, credential_of
from everswarm.server.gateway.profiles import EMBEDDED, expand
from everswarm.settings import EndpointSettings, Settings


def open_endpoints(settings: Settings) -> list[Endpoint]:
    """Return the endpoints of the table, not started yet; the earlier is preferred.

    Raises:
        ConfigurationError: the table cannot be used, or a credential is not set.
    """
    return [_open(entry, settings) for entry in expand(settings)]


def check_table(settings: Settings) -> None:
    """Return if the table can be used and every credential in it is set; opens nothing.

    Raises:
        ConfigurationError: as `open_endpoints`.
    """
    for entry in expand(settings):
        credential_of(entry)


def _open(entry: EndpointSettings, settings: Settings) -> Endpoint:
    share = settings.gateway.interactive_share
    if entry.profile != EMBEDDED:
        return RemoteEndpoint(entry, interactive_share=share)
    return EmbeddedEndpoint(
        settings.engine,
        models_dir=settings.models_dir,
        log_path=settings.home / "logs" / "engine.log",
        entry=entry,
        interactive_share=share,
    )
