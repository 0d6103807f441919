"""What is an input of a batch, and what is said of lines that are wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.batches import validation
from everswarm.server.batches.validation import Item, LineError, read_items, split_lines

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}


def one(line) -> Item | LineError:
    (found,) = read_items([line if isinstance(line, bytes) else json.dumps(line).encode()])
    return found


@given(st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\xef", b"e"))), st.data())
def test_lines_are_the_same_however_the_bytes_are_cut(lines, data):
    whole = b"\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert list(split_lines(pieces)) == expected


@given(st.lists(st.binary(min_size=1, max_size=30).map(lambda data: data.replace(b"\n", b"")), max_size=6), st.data())
def test_line_over_the_limit_is_none_and_spoils_no_other(lines, data):
    whole = b"".join(line + b"\n" for line in lines)
    size = data.draw(st.integers(1, 8))
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "MAX_LINE_BYTES", 10)
        patch.setattr(validation, "_BYTE_ORDER_MARK", b"\n")
        assert list(split_lines([b"\n", *pieces])) == [None if len(line) > 10 else line for line in lines]


def test_good_line_is_an_item_with_its_body_as_json():
    assert one(GOOD) == Item(1, "a", '{"messages":[]}')


def test_byte_order_mark_and_windows_line_ends_are_fine():
    text = b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps({**GOOD, "custom_id": "b"}).encode()
    assert [(item.number, item.custom_id) for item in read_items([text])] == [(1, "a"), (3, "b")]


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        ({**GOOD, "custom_id": 7}, "invalid_custom_id", "custom_id"),
        ({**GOOD, "custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({**GOOD, "custom_id": "a\0b"}, "invalid_custom_id", "custom_id"),
        ({**GOOD, "method": "GET"}, "invalid_method", "method"),
        ({**GOOD, "url": "/v1/embeddings"}, "mismatched_url", "url"),
        ({**GOOD, "body": []}, "invalid_body", "body"),
        ({"custom_id": "a"}, "missing_required_parameter", "method"),
    ],
)
def test_wrong_line_is_named_with_a_code(line, code, param):
    found = one(line)
    assert isinstance(found, LineError)
    assert (found.line, found.code, found.param) == (1, code, param)


def test_custom_id_that_comes_twice_names_both_lines():
    text = b"\n".join([json.dumps(GOOD).encode()] * 2)
    assert list(read_items([text]))[1] == LineError(
        2, "duplicate_custom_id", "The custom_id of this request is that of line 1; each is its own.", "custom_id"
    )


@pytest.mark.parametrize("text", [b"", b"\n \n\t"])
def test_file_without_requests_is_an_error(text):
    (found,) = read_items([text])
    assert (found.line, found.code) == (None, "empty_file")


def test_reading_ends_after_the_limits(monkeypatch):
    monkeypatch.setattr(validation, "MAX_REQUESTS", 2)
    lines = [json.dumps({**GOOD, "custom_id": str(number)}).encode() for number in range(5)]
    found = list(read_items([b"\n".join(lines)]))
    assert [type(line) for line in found] == [Item, Item, LineError]
    assert (found[2].line, found[2].code) == (3, "too_many_requests")
    assert len(list(read_items([b"x\n" * 1000]))) == validation.MAX_ERRORS
