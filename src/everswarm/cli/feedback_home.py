"""The home that the feedback commands work on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from everswarm.cli.local import settings_of
from everswarm.errors import ConfigurationError
from everswarm.settings import Settings

if TYPE_CHECKING:
    from everswarm.server.database import Database


@contextmanager
def opened_home(home: Path | None) -> Iterator[tuple[Settings, Database]]:
    """Yield the settings and the database of a home on this machine, whether its server runs or not.

    Raises:
        ConfigurationError: the environment names a server elsewhere, or the key of the texts is gone.
    """
    if os.environ.get("EVERSWARM_SERVER"):
        raise ConfigurationError(
            "This command reads and writes the home on this machine, and EVERSWARM_SERVER names a server elsewhere. "
            "Run it on that server's machine, or unset the variable."
        )
    from everswarm.server.database import Database
    from everswarm.server.feedback.scrubbing import text_mask
    from everswarm.server.feedback.service import check_key

    settings = settings_of(home)
    mask = text_mask(settings.feedback)
    database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file, mask=mask)
    try:
        database.migrate()
        check_key(database)
        yield settings, database
    finally:
        database.close()
