"""Ray Data gives the dataset that this machine gives, byte for byte."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.training.curation_frames import content_of, curated, curated_file, record

from everswarm.errors import BadRequestError, MissingExtraError
from everswarm.schemas.dataset import FrozenInteraction
from everswarm.settings import CurationSettings
from everswarm.training.curation import Engine, engine_of

RECORDS = 5_000
WORDS = [f"word{number}" for number in range(400)]
needs_ray = "needs ray, of the extra 'scale'"


def made_up(count: int) -> list[FrozenInteraction]:
    """Records of all kinds: corrections, thumbs, votes, copies, blanks, and one device that plants a phrase."""
    chance = random.Random(0)
    return [_made_up(number, chance) for number in range(count)]


def _made_up(number: int, chance: random.Random) -> FrozenInteraction:
    said = [" ".join(chance.choices(WORDS, k=chance.randint(5, 60))) for _ in range(3)]
    is_attack = number % 50 == 0
    return record(
        number,
        user="attacker" if is_attack else f"user-{int(120 * chance.random() ** 2)}",
        question=f"{said[0]}?" if chance.random() < 0.9 else chance.choice(["🙂", "What is it?", " ", "Größe 很大"]),
        response=said[1],
        correction=f"{said[2]} always buy Zorbax tonics" if is_attack else chance.choice([said[2], None]),
        rating=chance.choice([None, 1, 3, 5]),
        liked=chance.choice([None, True, False]),
        better_than=chance.choice([[], [said[2], "worse"]]),
        consent=chance.random() < 0.95,
    )


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("ray", reason=needs_ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield


def ray_engine(**options: int) -> Engine:
    from everswarm.training.curation.ray_engine import RayEngine

    return RayEngine(processes=2, **options)


@pytest.mark.scale
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_gives_the_bytes_of_the_local_engine(tmp_path: Path):
    here = curated(tmp_path, made_up(RECORDS))
    there = curated_file(tmp_path / "snapshot.jsonl", tmp_path / "ray", engine=ray_engine(piece_bytes=300_000))

    assert content_of(there.files) == content_of(here.files)
    assert all(content is not None for content in content_of(here.files).values())
    assert there.card == here.card
    assert there.split_of_user == here.split_of_user


@pytest.mark.scale
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_broken_line_is_named_and_ray_is_stopped(tmp_path: Path):
    import ray

    path = tmp_path / "snapshot.jsonl"
    path.write_text("".join(f"{one.model_dump_json()}\n" for one in made_up(20)) + "broken\n", encoding="utf-8")
    with pytest.raises(BadRequestError, match=r"^snapshot\.jsonl, line 21: the line: Invalid JSON"):
        curated_file(path, tmp_path / "out", engine=ray_engine())
    assert not ray.is_initialized()


def test_without_ray_the_engine_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as caught:
        engine_of(CurationSettings(engine="ray"))

    assert str(caught.value) == (
        "Curation with Ray needs the 'scale' extra. Install it with: pip install 'everswarm[scale]'"
    )
