"""`everswarm feedback import | export | stats` through its own door."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Result

from everswarm.cli import main as cli
from everswarm.cli.feedback_picture import picture_lines
from everswarm.server.feedback.repository import FeedbackStats
from everswarm.server.feedback.statistics import FeedbackPicture, Shares

Run = Callable[..., Result]
EMAIL = "ann.miller@example.com"
NUMBERS = FeedbackStats(
    interactions=7,
    judged=6,
    usable=4,
    people=2,
    ratings=5,
    corrections=1,
    comments=0,
    votes=0,
    users=2,
    mean_rating=3.5,
)
PICTURE = FeedbackPicture(
    ratings={1: 1, 2: 0, 3: 2, 4: 0, 5: 100},
    weeks={"2026-01-05": 0, "2026-01-12": 3},
    shares=Shares(corrected=0.25, liked=1.0, disliked=0.0, consented=0.001),
    sources={"import": 7},
    languages={"de": 5, "not said": 2},
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], home: Path) -> Run:
    """Return how to type a feedback command on an empty home."""
    monkeypatch.chdir(home.parent)
    monkeypatch.delenv("EVERSWARM_SERVER", raising=False)

    def type_command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["everswarm", "feedback", *map(str, arguments), "--home", str(home)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Result(ended.value.code if isinstance(ended.value.code, int) else 0, out, " ".join(err.split()))

    return type_command


def write(path: Path, *items: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def judged(number: int, **changes: Any) -> dict[str, Any]:
    item = {
        "id": f"i{number}",
        "device_id": "phone",
        "timestamp": "2026-01-02T03:04:05Z",
        "messages": [{"role": "user", "content": f"question {number} of {EMAIL}"}],
        "response": "no",
        "correction": "yes",
        "consent": True,
    }
    return item | changes


SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


def test_file_of_another_format_says_why_it_is_not_learnt_from_and_how_to_mend_that(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "share.jsonl", SHAREGPT)
    first = run("import", file)
    assert first.code == 0
    assert "1 records read: 1 stored, 0 were there already, 0 could not be used" in first.out
    out = " ".join(first.out.split())
    assert "1 will not be learnt from: the format sharegpt does not tell whether people agreed." in out
    assert "import the file again with --consent" in out
    assert "1 carry no judgement, so there is nothing to learn from them; if all" in out
    assert run("stats", "--json").data["usable"] == 0

    again = run("import", file, "--consent", "--liked")
    assert "1 of those that were there now have the consent" in " ".join(again.out.split())
    assert run("export", tmp_path / "sft.jsonl", "--format", "sft", "--json").data["written"] == 1


def test_numbers_of_an_import_are_json_for_programs(run: Run, tmp_path: Path) -> None:
    found = run("import", write(tmp_path / "share.jsonl", SHAREGPT), "--consent", "--json").data
    assert (found["stored"], found["format"], found["without_consent"], found["unjudged"]) == (1, "sharegpt", 0, 1)


def test_wrong_options_are_named(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "judged.jsonl", judged(1))
    assert "There is no format 'xml'. Choose one of: auto, everswarm," in run("import", file, "--format", "xml").err
    assert "--device 'two words': use letters" in run("import", file, "--device", "two words").err
    assert "There is no format 'xml'. Choose one of: jsonl," in run("export", tmp_path / "x", "--format", "xml").err
    assert "is too short" in run("export", tmp_path / "x", "--dataset", "3f").err
    assert (
        "There is no dataset abcdef12, or its files were erased"
        in run("export", tmp_path / "x", "--dataset", "abcdef12").err
    )


def test_export_masks_and_leaves_out_who_did_not_consent(run: Run, tmp_path: Path) -> None:
    run("import", write(tmp_path / "judged.jsonl", judged(1), judged(2, consent=False)))
    target = tmp_path / "out.jsonl"
    done = run("export", target)
    assert done.code == 0
    assert "1 records written to" in done.out
    assert "1 without consent were left out" in done.out
    assert "masked: 1 × email" in done.out
    assert EMAIL not in target.read_text(encoding="utf-8")
    assert run("export", target).code == 2  # it is there already

    everyone = run("export", target, "--all", "--force")
    assert everyone.err.startswith("Warning: --all exports what people said who did not agree")
    assert len(target.read_text(encoding="utf-8").splitlines()) == 2


def test_raw_export_is_written_only_when_it_is_confirmed(run: Run, tmp_path: Path) -> None:
    run("import", write(tmp_path / "judged.jsonl", judged(1)))
    refused = run("export", tmp_path / "out.jsonl", "--raw")
    assert (refused.code, "There is no terminal to ask at: say --yes" in refused.err) == (2, True)
    assert not (tmp_path / "out.jsonl").exists()
    assert run("export", tmp_path / "out.jsonl", "--raw", "--yes").code == 0
    assert EMAIL in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_picture_in_a_pipe_is_ascii(run: Run, tmp_path: Path) -> None:
    run("import", write(tmp_path / "judged.jsonl", judged(1, rating=5, language="de"), judged(2, rating=1)))
    shown = run("stats")
    assert shown.code == 0
    assert shown.out.startswith("Feedback\n")
    assert shown.out.isascii()
    assert "Ratings (mean 3.00)" in shown.out and "5 stars" in shown.out and "#" in shown.out
    numbers = run("stats", "--json").data
    assert (numbers["interactions"], numbers["ratings"]["5"], numbers["languages"]) == (2, 1, {"de": 1, "not said": 1})


def test_picture_of_an_empty_home_says_what_to_do(run: Run) -> None:
    assert "Nothing was judged yet. Bring judgements in with: everswarm feedback import FILE" in run("stats").out


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_of_the_picture_is_wider_than_the_terminal(width: int, ascii_only: bool) -> None:
    lines = picture_lines(NUMBERS, PICTURE, width=width, ascii_only=ascii_only)
    assert max(map(len, lines)) <= width
    assert "\n".join(lines).isascii() == ascii_only


def test_bars_show_shares_and_what_is_there_is_never_nothing() -> None:
    lines = {
        line.split("  ")[1]: line for line in picture_lines(NUMBERS, PICTURE, width=92, ascii_only=True) if "%" in line
    }
    assert lines["5 stars"].count("#") == 60
    assert lines["1 star"].count("#") == 1
    assert lines["2 stars"].count("#") == 0
    assert lines["corrected"].count("#") == 15
    assert lines["consented"].count("#") == 1
    assert "2026-01-05" not in lines  # before the first judgement
