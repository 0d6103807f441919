"""`kill -9` of a real server while devices upload: what was acknowledged is there, once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks.feedback.ingest_kill import kill_runs

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="the processes are started as the benchmarks start them"),
]


def test_no_acknowledged_record_is_lost_or_doubled_by_kill_9(tmp_path: Path) -> None:
    report = kill_runs(tmp_path, 2)
    assert report.kills == 2
    assert report.acknowledged > 0
    assert report.sent_again > 0  # the kills did interrupt
    assert (report.lost, report.doubled) == (0, 0)
