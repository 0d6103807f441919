"""`everswarm serve` as it is, which also notes how many records each transaction of the ingest had.

`python -m benchmarks.feedback.ingest_server FILE serve …`: one number a line goes to FILE.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from everswarm.cli.main import app
from everswarm.server.feedback.ingest import Ingest


def main() -> None:
    """Note the sizes, and serve."""
    notes = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    store = Ingest._store_drafted

    def store_and_note(ingest: Ingest, drafted: Sequence[Any]) -> Any:
        os.write(notes, b"%d\n" % sum(len(drafts) for _, drafts in drafted))
        return store(ingest, drafted)

    with patch.object(Ingest, "_store_drafted", store_and_note):
        app()


if __name__ == "__main__":
    main()
