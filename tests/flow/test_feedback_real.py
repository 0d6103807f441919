"""Real rated interactions, by the commands that a user types: imported once, curated, and one device forgotten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import SHARED_DATA

from everswarm.server.database import Database
from everswarm.training.curation import read_desirabilities, read_examples, read_preferences

FILES = ("feedback-math.jsonl", "feedback-instructions.jsonl")
RECORDS = 4_175
DEVICE = "dev-001"

pytestmark = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real interactions (../shared/data) are not here")


class Home:
    """A home, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def feedback(self, *arguments: object, code: int = 0) -> dict[str, Any]:
        command = [sys.executable, "-c", "from everswarm.cli.main import main; main()", "feedback"]
        environment = {**os.environ, "EVERSWARM_HOME": str(self.folder)}
        done = subprocess.run(
            [*command, *map(str, arguments), "--json"],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == code, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def file(self, artifact: dict[str, Any]) -> Path:
        (found,) = self.folder.glob(f"artifacts/**/{artifact['sha256']}")
        return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("real") / "home")


def test_real_feedback_is_imported_once_curated_and_forgotten_on_request(home: Home):
    stored = [home.feedback("import", SHARED_DATA / name)["stored"] for name in (*FILES, *FILES)]
    assert stored == [4_000, 175, 0, 0]
    assert home.feedback("stats")["interactions"] == RECORDS

    dataset = home.feedback("curate")["dataset"]
    card = dataset["card"]
    assert card["read"] == RECORDS == sum(card["examples"].values()) + sum(item["count"] for item in card["dropped"])
    splits_of_device, splits_of_question = defaultdict(set), defaultdict(set)
    for example in read_examples(home.file(dataset["data"])):
        splits_of_device[example.user].add(example.split)
        splits_of_question[" ".join(example.messages[-1].content.casefold().split())].add(example.split)
    for pair in read_preferences(home.file(dataset["preferences"])):
        splits_of_device[pair.user].add(pair.split)
        splits_of_question[" ".join(pair.prompt[-1].content.casefold().split())].add(pair.split)
    for flag in read_desirabilities(home.file(dataset["desirabilities"])):
        splits_of_device[flag.user].add(flag.split)
        splits_of_question[" ".join(flag.prompt[-1].content.casefold().split())].add(flag.split)
    assert {len(splits) for splits in (*splits_of_device.values(), *splits_of_question.values())} == {1}
    assert home.feedback("curate")["dataset"] == dataset  # the same input, the same version

    opened = Database(f"sqlite:///{home.folder / 'everswarm.sqlite'}")
    pseudonym = opened.seal.pseudonym(DEVICE)
    opened.close()
    assert pseudonym in splits_of_device
    erased = home.feedback("erase", "--device", DEVICE, "--yes")
    assert [seen["dataset"] for seen in erased["seen"]] == [dataset["data"]["sha256"]]
    without = home.feedback("curate")["dataset"]
    assert without["card"]["read"] == RECORDS - erased["erased"]["interactions"]
    assert pseudonym not in {example.user for example in read_examples(home.file(without["data"]))}
    again = [home.feedback("import", SHARED_DATA / name, code=1) for name in FILES]  # what was erased stays away
    assert sum(report["stored"] for report in again) == 0
    assert sum(report["error_count"] for report in again) == erased["erased"]["interactions"]
