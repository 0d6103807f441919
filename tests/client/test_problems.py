"""What stands between us and the server may answer for it, or spoil its answer."""

from __future__ import annotations

import json

import httpx
import pytest

from everswarm.client import EverswarmClient
from everswarm.client.problems import raise_for_problem
from everswarm.errors import EverswarmError, NotFoundError, UnavailableError


@pytest.mark.parametrize("status", [502, 503, 504])
def test_proxy_over_a_server_that_starts_again_is_a_server_that_is_away(status: int) -> None:
    with pytest.raises(UnavailableError, match="Bad Gateway") as caught:
        raise_for_problem(httpx.Response(status, text="<h1>Bad Gateway</h1>", headers={"Retry-After": "7"}))
    assert caught.value.retry_after_seconds == 7


def test_other_statuses_are_what_the_server_meant() -> None:
    with pytest.raises(NotFoundError, match="no such cycle"):
        raise_for_problem(httpx.Response(404, text=json.dumps({"detail": "no such cycle"})))
    with pytest.raises(EverswarmError) as caught:
        raise_for_problem(httpx.Response(500, text="oh", headers=[(b"Retry-After", b"\xb2")]))
    assert not isinstance(caught.value, UnavailableError)


def test_answer_that_cannot_be_unpacked_is_told_by_the_name_of_the_server() -> None:
    broken = httpx.MockTransport(
        lambda _: httpx.Response(200, stream=httpx.ByteStream(b"no gzip"), headers={"Content-Encoding": "gzip"})
    )
    with EverswarmClient("http://127.0.0.1:9", "key") as client:
        client.http = httpx.Client(base_url=client.base_url, transport=broken)
        with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9 does not answer"):
            client.health()
