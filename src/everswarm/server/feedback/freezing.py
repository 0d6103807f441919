"""Judged interactions as they may leave this server: without personal data, their users by pseudonym."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row

from everswarm.schemas.dataset import FrozenInteraction
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.feedback.repository import SWARM
from everswarm.server.feedback.reviews.service import verdicts
from everswarm.server.feedback.scrubbing import Masker, Scrubber, without_personal_data
from everswarm.server.feedback.service import folded
from everswarm.server.sealing import Seal


@dataclass(slots=True)
class Tally:
    """What was met on the way."""

    judged: int = 0
    without_consent: int = 0
    masked: Counter[str] = field(default_factory=Counter)  # kind of personal data → how often


def frozen_interactions(
    connection: Connection, *, seal: Seal, scrubber: Scrubber, tally: Tally, everyone: bool = False
) -> Iterator[FrozenInteraction]:
    """Yield what `judged_interactions` does as it may leave this server, of those who consented.

    Args:
        connection: of the transaction.
        seal: gives the pseudonyms.
        scrubber: finds personal data.
        tally: is kept up to date.
        everyone: yield also what nobody may learn from.
    """
    decided = verdicts(connection)
    for judged, rows in folded(connection):
        tally.judged += 1
        tally.without_consent += not judged.consent
        if not judged.consent and not everyone:
            continue
        masker = Masker(scrubber)
        yield FrozenInteraction(
            **without_personal_data(judged, masker).model_dump(exclude={"device_id"}),
            device_id=seal.pseudonym(judged.device_id),
            written_by="swarm" if _is_by_swarm(judged, rows) else "person",
            looked_up=bool(rows[0].looked_up),
            review=decided.get(judged.id),
        )
        tally.masked.update(masker.counts)


def _is_by_swarm(judged: JudgedInteraction, rows: list[Row[Any]]) -> bool:
    """Say whether the correction that counts is the swarm's: one of a person always comes first."""
    return judged.correction is not None and not any(row.correction and row.author != SWARM for row in rows)
