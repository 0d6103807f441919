from __future__ import annotations

import uuid

import pytest

from everswarm import identifiers
from everswarm.identifiers import new_id


def test_id_is_a_uuid_of_version_7_and_the_variant_of_the_rfc() -> None:
    for _ in range(100):
        made = uuid.UUID(new_id())
        assert (made.version, made.variant) == (7, uuid.RFC_4122)


def test_later_ids_sort_behind_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [1_000_000_000_000, 1_700_000_000_000, 1_700_000_000_001, 4_000_000_000_000]  # milliseconds
    made = []
    for moment in moments:
        monkeypatch.setattr(identifiers.time, "time_ns", lambda moment=moment: moment * 1_000_000)
        made.append(new_id())
    assert made == sorted(made)
    assert [uuid.UUID(text).int >> 80 for text in made] == moments


def test_ids_of_one_moment_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identifiers.time, "time_ns", lambda: 1_700_000_000_000_000_000)
    assert len({new_id() for _ in range(1000)}) == 1000
