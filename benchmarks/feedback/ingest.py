"""Durable ingest: what a record costs the server, beside what SQLite alone costs; and what `kill -9` does to it.

`rows(quick=…)` measures. The server and SQLite alone take turns on one core, the load generator has another; CPU time
is that of the server's processes. Linux only.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.feedback.ingest_kill import KillReport, kill_runs
from benchmarks.feedback.ingest_load import RECORDS_A_BATCH, Writer
from benchmarks.feedback.ingest_served import Served, served
from benchmarks.gateway.processes import cores, cpu_seconds, pinned
from benchmarks.report import Row

CONNECTIONS = 32
SETTLE_SECONDS = 0.3
WARM_BATCHES_EACH = 10
KILLS = 50


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int = 5
    batches_each: int = 100  # of each connection, in a round
    kills: int = KILLS


QUICK = Plan(rounds=2, batches_each=40, kills=3)


class Round(NamedTuple):
    """The server under load once, and SQLite alone with the same commit size."""

    per_cpu_second: float
    per_second: float
    p99_ms: float
    commit_records: float  # on average
    plain_per_cpu_second: float  # one table of an id, a user, a time and the record
    tables_per_cpu_second: float  # the server's own tables and indexes


def rows(*, quick: bool = False, tell: Callable[[str], None] = lambda _text: None) -> list[Row]:
    """Measure, and return the rows of the report.

    Args:
        quick: a short look.
        tell: is told what goes on.
    """
    plan = QUICK if quick else Plan()
    with tempfile.TemporaryDirectory(prefix="everswarm-bench-") as folder:
        measured = _measure(Path(folder), plan, tell)
        report = kill_runs(Path(folder) / "kill", plan.kills, tell=tell)
    return [*_rate_rows(measured, plan), *_kill_rows(report)]


def _measure(folder: Path, plan: Plan, tell: Callable[[str], None]) -> list[Round]:
    measured = []
    with served(folder / "served") as server:
        keys = [server.device_key(number) for number in range(CONNECTIONS)]
        _load(server, keys, WARM_BATCHES_EACH)
        for number in range(plan.rounds):
            tell(f"ingest: round {number + 1} of {plan.rounds}")
            measured.append(_round(server, keys, plan.batches_each, folder / f"raw-{number}"))
    return measured


def _round(server: Served, keys: Sequence[str], batches_each: int, folder: Path) -> Round:
    loaded, cpu, commits = _load(server, keys, batches_each)
    records = len(keys) * batches_each * RECORDS_A_BATCH
    if loaded["stored"] != records:
        raise SystemExit(f"{records} records were sent and {loaded['stored']} stored")
    commit_records = statistics.mean(commits)
    folder.mkdir()
    with pinned(cores()[1]):
        plain = _plain_seconds(folder / "plain.sqlite", records, round(commit_records))
        tables = _tables_seconds(server.database_file, folder / "tables.sqlite", records, round(commit_records))
    return Round(
        per_cpu_second=records / cpu,
        per_second=records / loaded["seconds"],
        p99_ms=loaded["p99_ms"],
        commit_records=commit_records,
        plain_per_cpu_second=records / plain,
        tables_per_cpu_second=records / tables,
    )


def _load(server: Served, keys: Sequence[str], batches_each: int) -> tuple[dict[str, Any], float, list[int]]:
    """Load the server once; return what came back, its CPU seconds, and the records of each commit."""
    command = [sys.executable, "-m", "benchmarks.feedback.ingest_load", str(server.port), str(batches_each), *keys]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}
    with (
        pinned(cores()[0]),
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as generator,
    ):
        assert generator.stdin is not None and generator.stdout is not None
        generator.stdout.readline()  # ready
        commits_before, cpu_before = len(server.commits()), cpu_seconds(server.pid)
        generator.stdin.write("go\n")
        generator.stdin.flush()
        told = generator.stdout.readline()
    if not told:
        raise SystemExit("the load generator failed; its words are above")
    time.sleep(SETTLE_SECONDS)
    return json.loads(told), cpu_seconds(server.pid) - cpu_before, server.commits()[commits_before:]


def _plain_seconds(file: Path, records: int, commit_records: int) -> float:
    """Return the CPU seconds of `executemany` into one table, with commits of that size."""
    writer = Writer(7)
    made = [writer.record() for _ in range(records)]
    values = [(one["id"], f"device-{n % 32}", one["timestamp"], json.dumps(one).encode()) for n, one in enumerate(made)]
    with _opened(file) as connection:
        connection.execute("CREATE TABLE t (id TEXT PRIMARY KEY, user TEXT, created_at TEXT, payload BLOB)")
        return _timed(connection, [("INSERT INTO t VALUES (?, ?, ?, ?)", values)], commit_records)


def _tables_seconds(source: Path, file: Path, records: int, commit_records: int) -> float:
    """Return the CPU seconds of `executemany` of the newest rows of the server into the same tables and indexes."""
    statements = []
    with _opened(file) as connection, _opened(source) as server:
        for kind in ("table", "index"):
            for (sql,) in server.execute(
                "SELECT sql FROM sqlite_master WHERE type = ? AND sql IS NOT NULL"
                " AND tbl_name IN ('interactions', 'feedback')",
                (kind,),
            ):
                connection.execute(sql)
        connection.execute("PRAGMA foreign_keys=ON")
        for table in ("interactions", "feedback"):
            found = server.execute(f"SELECT * FROM {table} ORDER BY 1 DESC LIMIT ?", (records,)).fetchall()
            marks = ", ".join("?" * len(found[0]))
            statements.append((f"INSERT INTO {table} VALUES ({marks})", found[::-1]))
        return _timed(connection, statements, commit_records)


def _timed(connection: sqlite3.Connection, statements: list[tuple[str, list[Any]]], commit_records: int) -> float:
    begun: float = time.process_time()
    for start in range(0, len(statements[0][1]), commit_records):
        connection.execute("BEGIN IMMEDIATE")
        for sql, values in statements:
            connection.executemany(sql, values[start : start + commit_records])
        connection.execute("COMMIT")
    return time.process_time() - begun


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        yield connection
    finally:
        connection.close()


def _rate_rows(measured: Sequence[Round], plan: Plan) -> list[Row]:
    def median(name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in measured))

    rates = [one.per_cpu_second for one in measured]
    to_tables = statistics.median(one.per_cpu_second / one.tables_per_cpu_second for one in measured)
    to_plain = statistics.median(one.per_cpu_second / one.plain_per_cpu_second for one in measured)
    how = (
        f"{RECORDS_A_BATCH} records of 1 KB a request, {CONNECTIONS} devices, one core, WAL and synchronous=FULL; "
        f"{median('commit_records'):.0f} records a commit, {median('per_second'):,.0f} records/s by the clock, "
        f"p99 {median('p99_ms'):.0f} ms; median of {plan.rounds}, {min(rates):,.0f} to {max(rates):,.0f}"
    )
    return [
        Row("durable ingest", round(median("per_cpu_second")), "records/CPU-s", 20_000, 27_000, "higher", how),
        Row(
            "durable ingest / sqlite3.executemany, the same tables",
            round(to_tables, 3),
            "x",
            0.35,
            0.6,
            "higher",
            f"the rows that the server had stored into its two tables with their indexes, the same commit size: "
            f"{median('tables_per_cpu_second'):,.0f} records/CPU-s",
        ),
        Row(
            "durable ingest / sqlite3.executemany, one plain table",
            round(to_plain, 3),
            "x",
            None,
            None,
            "higher",
            f"id, user, time and the record as one value; nothing parsed, sealed, indexed or compared: "
            f"{median('plain_per_cpu_second'):,.0f} records/CPU-s",
        ),
    ]


def _kill_rows(report: KillReport) -> list[Row]:
    how = (
        f"{report.kills} kills under load, clients that send again; {report.acknowledged:,} records acknowledged, "
        f"{report.sent_again:,} sent again"
    )
    bad = float(report.lost + report.doubled)
    return [Row("records lost or doubled by kill -9", bad, "records", 0, 0, "lower", how)]
