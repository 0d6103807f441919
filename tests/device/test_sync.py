from __future__ import annotations

import shutil
import stat
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.device_server import KEY, DeviceServer

from everswarm.device import outbox
from everswarm.device.journal import only_one
from everswarm.device.state import DeviceHome
from everswarm.device.sync import enroll, sync
from everswarm.errors import (
    ConfigurationError,
    ConflictError,
    DigestMismatchError,
    ForbiddenError,
    NoSpaceError,
    UnauthorizedError,
    UnavailableError,
)

BASE = bytes(range(256)) * 12_000  # 3 MB
MEBIBYTE = 1 << 20
ADAPTERS = [f"adapter {number} ".encode() * 1000 for number in range(4)]


def files(home: Path) -> set[bytes]:
    return {path.read_bytes() for path in DeviceHome(home).models_dir.iterdir()}


def test_enrolling_writes_a_home_for_its_owner_only(server: DeviceServer, home: Path) -> None:
    place = DeviceHome(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.key_path.stat().st_mode) == 0o600
    assert KEY not in place.state_path.read_text()
    assert server.devices[place.load().device_id].name == "phone"


def test_enrolling_again_keeps_the_device(server: DeviceServer, home: Path) -> None:
    server.publish("v1.0", base=BASE, adapter=None)
    sync(home)
    before = DeviceHome(home).load()
    again = enroll(home, server.url, key=KEY, name="tablet")
    assert (again.device_id, again.current, again.name) == (before.device_id, before.current, "tablet")


def test_a_key_that_is_refused_enrols_nothing(server: DeviceServer, tmp_path: Path) -> None:
    with pytest.raises(UnauthorizedError):
        enroll(tmp_path / "other", server.url, key="esw_wrong", name="phone")
    assert not (tmp_path / "other").exists()


def test_first_sync_fetches_base_and_adapter_later_ones_the_adapter_only(server: DeviceServer, home: Path) -> None:
    server.publish("v1.0", base=BASE, adapter=ADAPTERS[0])
    first = sync(home)
    assert first.downloaded_bytes == len(BASE) + len(ADAPTERS[0])
    assert (first.base_bytes, first.adapter_bytes) == (len(BASE), len(ADAPTERS[0]))
    assert (first.release, first.changed) == ("release-v1.0", True)
    second = sync(home)
    assert (second.downloaded_bytes, second.changed) == (0, False)
    server.publish("v1.1", base=BASE, adapter=ADAPTERS[1])
    third = sync(home)
    assert (third.base_downloaded_bytes, third.adapter_downloaded_bytes) == (0, len(ADAPTERS[1]))
    assert files(home) == {BASE, ADAPTERS[0], ADAPTERS[1]}


def test_only_the_current_and_the_previous_adapter_stay(server: DeviceServer, home: Path) -> None:
    for number, adapter in enumerate(ADAPTERS):
        server.publish(f"v1.{number}", base=BASE, adapter=adapter)
        sync(home)
    assert files(home) == {BASE, ADAPTERS[2], ADAPTERS[3]}


def test_a_release_that_is_taken_back_costs_no_download(server: DeviceServer, home: Path) -> None:
    for number in (0, 1, 0):
        server.publish(f"v1.{number}", base=BASE, adapter=ADAPTERS[number])
        report = sync(home)
    assert (report.version, report.downloaded_bytes) == ("v1.0", 0)
    previous = DeviceHome(home).load().previous
    assert previous
    assert previous.version == "v1.1"


def test_a_download_cut_half_way_goes_on_where_it_stopped(server: DeviceServer, home: Path) -> None:
    server.publish("v1.0", base=BASE, adapter=None)
    server.cuts = [2 * MEBIBYTE]
    assert sync(home).downloaded_bytes == len(BASE)
    assert server.ranges == [None, f"bytes={2 * MEBIBYTE}-"]


def test_a_line_that_keeps_breaking_leaves_a_part_for_the_next_sync(server: DeviceServer, home: Path) -> None:
    server.publish("v1.0", base=BASE, adapter=None)
    server.cuts = [MEBIBYTE] + [0] * 50
    with pytest.raises(UnavailableError, match=r"This device is unchanged. It has no model yet"):
        sync(home)
    server.cuts = []
    assert sync(home).downloaded_bytes == len(BASE) - MEBIBYTE


def test_a_tampered_adapter_is_not_used_and_judgements_go_out(
    server: DeviceServer, home: Path, answered: Callable[..., str]
) -> None:
    server.publish("v1.0", base=BASE, adapter=ADAPTERS[0])
    sync(home)
    server.tampered = {server.publish("v1.1", base=BASE, adapter=ADAPTERS[1]).adapter.sha256}  # type: ignore[union-attr]
    answered()
    outbox.judge(DeviceHome(home).journal_path, DeviceHome(home).load().device_id, rating=5)
    with pytest.raises(DigestMismatchError, match="The file was not used"):
        sync(home)
    current = DeviceHome(home).load().current
    assert current
    assert current.version == "v1.0"
    assert files(home) == {BASE, ADAPTERS[0]}
    assert len(server.feedback) == 1
    server.tampered = set()
    assert sync(home).version == "v1.1"


def test_a_damaged_file_is_fetched_again(server: DeviceServer, home: Path) -> None:
    model = server.publish("v1.0", base=BASE, adapter=None)
    sync(home)
    DeviceHome(home).model_path(model.base).write_bytes(BASE[:-1] + b"!")
    assert sync(home).downloaded_bytes == len(BASE)
    assert files(home) == {BASE}


def test_a_server_that_is_gone_is_said_and_changes_nothing(server: DeviceServer, home: Path) -> None:
    server.publish("v1.0", base=BASE, adapter=None)
    sync(home)
    before = DeviceHome(home).load()
    server.stop()
    with pytest.raises(UnavailableError, match=r"does not answer.*can still answer; 0 judgements wait"):
        sync(home)
    assert DeviceHome(home).load() == before


def test_a_full_disk_is_said_before_the_download(
    server: DeviceServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish("v1.0", base=BASE, adapter=None)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(NoSpaceError, match=r"needs 3\.1 MB and 67 MB to spare; .* has 0\.0 MB free"):
        sync(home)
    assert server.ranges == []


@pytest.mark.parametrize(
    "address",
    ["http://example.org", "https://192.168.1.7:8000", "http://127.0.0.1@example.org/", "http://localhost.example.org"],
)
def test_another_machine_is_refused_while_updates_are_not_signed(address: str, tmp_path: Path) -> None:
    with pytest.raises(ForbiddenError, match="Updates are not signed yet"):
        enroll(tmp_path / "device", address, key=KEY, name="phone")
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "phone"])
def test_what_is_no_address_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no address of a server"):
        enroll(tmp_path / "device", address, key=KEY, name="phone")


def test_an_edited_server_address_is_refused_too(home: Path) -> None:
    place = DeviceHome(home)
    place.save(place.load().model_copy(update={"server": "http://example.org"}))
    with pytest.raises(ForbiddenError):
        sync(home)


def test_a_server_without_a_release_for_the_role_is_no_failure(server: DeviceServer, home: Path) -> None:
    assert "roles offered: none" in sync(home).note
    server.publish("v1.0", base=BASE, adapter=None, role="fast")
    report = sync(home)
    assert (report.release, report.downloaded_bytes) == (None, 0)
    assert "nothing for the role 'ultralight' yet (roles offered: fast)" in report.note


def test_a_device_that_never_enrolled_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="everswarm device enroll"):
        sync(tmp_path)


def test_two_syncs_of_one_device_do_not_mix(server: DeviceServer, home: Path) -> None:
    with only_one(home / "sync.lock", "sync"), pytest.raises(ConflictError, match="Another sync of this device"):
        sync(home)
    assert sync(home).seconds >= 0
