"""From the formats of others to ours. The Open WebUI records have the form of its own export."""

from __future__ import annotations

import copy
import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.errors import BadRequestError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.feedback.files import records
from everswarm.server.feedback.files.conversations import Defaults
from everswarm.server.feedback.files.formats import Format, format_of, read_record
from everswarm.server.feedback.files.records import numbered_records
from everswarm.server.feedback.files.strict_json import read_object

DEFAULTS = Defaults("import", datetime(2026, 5, 6, tzinfo=UTC))
OURS = {
    "id": "i-1",
    "device_id": "phone",
    "timestamp": "2026-01-02T03:04:05Z",
    "messages": [{"role": "user", "content": "2 + 2?"}],
    "response": "4",
    "rating": 5,
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you."},
    ]
}
SHAREGPT = {
    "id": "identity_0",
    "conversations": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Who are you?"},
        {"from": "gpt", "value": "A model."},
        {"from": "human", "value": "Which?"},
        {"from": "gpt", "value": "A small one."},
    ],
}


def webui(**changes: Any) -> dict[str, Any]:
    """One feedback: two models answered in the arena, and the first one was liked."""
    messages = {
        "q": {"id": "q", "parentId": None, "childrenIds": ["a", "b"], "role": "user", "content": "Capital of Peru?"},
        "a": {"id": "a", "parentId": "q", "childrenIds": [], "role": "assistant", "content": "Lima.", "model": "m-a"},
        "b": {"id": "b", "parentId": "q", "childrenIds": [], "role": "assistant", "content": "Quito.", "model": "m-b"},
    }
    record: dict[str, Any] = {
        "id": "0b5c9ff2-5ea8-4c63-a0c0-2f6c7c2a8e11",
        "user_id": "5d3c-user",
        "version": 0,
        "type": "rating",
        "data": {
            "rating": 1,
            "model_id": "m-a",
            "sibling_model_ids": ["m-b"],
            "reason": "accurate_information",
            "comment": "right",
            "tags": ["geography"],
            "details": {"rating": 9},
        },
        "meta": {"arena": True, "chat_id": "c", "message_id": "a", "message_index": 2, "tags": []},
        "snapshot": {"chat": {"id": "c", "title": "Peru", "chat": {"history": {"messages": messages}, "models": []}}},
        "created_at": 1760000000,
        "updated_at": 1760000001,
    }
    return copy.deepcopy(record) | changes


def nodes(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["snapshot"]["chat"]["chat"]["history"]["messages"]
    return found


def read(item: dict[str, Any], form: Format | None = None) -> list[JudgedInteraction]:
    shown = form or format_of(item)
    assert shown is not None
    return read_record(item, shown, DEFAULTS)


def test_each_format_is_known_by_its_records():
    assert [format_of(item) for item in (OURS, OPENAI, SHAREGPT, webui(), {"stars": 5})] == [
        "everswarm",
        "openai",
        "sharegpt",
        "open-webui",
        None,
    ]
    assert format_of({"prompt": "a", "completion": "b"}) == "openai"
    without_device = {name: value for name, value in OURS.items() if name != "device_id"}
    assert format_of(without_device) == "everswarm"  # a field of ours would be lost otherwise


def test_last_answer_of_openai_messages_is_judged_and_the_rest_is_its_question():
    (found,) = read(OPENAI)
    assert found.response == "See you."
    assert [(turn.role, turn.content) for turn in found.messages] == [
        ("system", "Be short."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "Bye"),
    ]
    assert (found.device_id, found.timestamp, found.consent) == ("import", DEFAULTS.timestamp, False)


def test_answer_with_weight_0_is_not_judged():
    item = copy.deepcopy(OPENAI)
    item["messages"][-1]["weight"] = 0
    assert read(item)[0].response == "Hello."
    with pytest.raises(BadRequestError, match="holds no answer to judge"):
        read({"prompt": "a", "completion": "b", "weight": 0})


def test_prompt_and_completion_may_be_text_or_messages():
    (text,) = read({"prompt": "2+2?", "completion": "4", "weight": 1})
    (messages,) = read(
        {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]}
    )
    assert text == messages
    assert (text.messages[0].content, text.response) == ("2+2?", "4")


def test_answer_that_rests_on_a_tool_is_refused():
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]},
        {"role": "tool", "content": "12 degrees"},
        {"role": "assistant", "content": "12 degrees."},
    ]
    with pytest.raises(BadRequestError, match="holds no answer to judge"):
        read({"messages": messages})


def test_sharegpt_gives_one_interaction_an_answer_with_what_was_said_before():
    first, second = read(SHAREGPT)
    assert (first.response, second.response) == ("A model.", "A small one.")
    assert [len(one.messages) for one in (first, second)] == [2, 4]
    assert first.id != second.id
    assert all(one.id.startswith("identity_0/") for one in (first, second))


def test_other_spellings_of_sharegpt_are_read_the_same():
    spelt = [
        {"role": "user" if turn["from"] == "human" else "assistant", "content": turn["value"]}
        for turn in SHAREGPT["conversations"][1:]
    ]
    found = read({"id": "identity_0", "system": "Be kind.", "conversation": spelt})
    assert found == read(SHAREGPT)


def test_ids_come_from_the_content_so_a_longer_conversation_adds_only_its_new_answers():
    shorter = {"id": "identity_0", "conversations": SHAREGPT["conversations"][:3]}
    assert read(shorter) == read(SHAREGPT)[:1]
    other = {"id": "identity_0", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert read(other)[0].id not in {one.id for one in read(SHAREGPT)}


def test_open_webui_thumb_stars_comment_and_arena_vote_are_kept():
    (found,) = read(webui())
    assert found.id == "0b5c9ff2-5ea8-4c63-a0c0-2f6c7c2a8e11"
    assert (found.device_id, found.model) == ("5d3c-user", "m-a")
    assert (found.response, found.better_than) == ("Lima.", ["Quito."])
    assert (found.liked, found.rating, found.comment) == (True, 5, "accurate_information; right")
    assert found.timestamp == datetime.fromtimestamp(1760000000, tz=UTC)
    assert [turn.content for turn in found.messages] == ["Capital of Peru?"]


@pytest.mark.parametrize(("stars", "rating"), [(1, 1), (2, 1), (3, 2), (5, 3), (8, 4), (10, 5)])
def test_ten_stars_become_five(stars: int, rating: int):
    record = webui()
    record["data"]["details"]["rating"] = stars
    assert read(record)[0].rating == rating


def test_answer_that_was_disliked_won_no_vote():
    record = webui()
    record["data"]["rating"] = "-1"
    (found,) = read(record)
    assert (found.liked, found.better_than) == (False, [])


def test_answers_that_were_not_compared_or_liked_too_did_not_lose():
    record = webui(meta={"message_id": "a"})
    record["data"]["sibling_model_ids"] = None
    assert read(record)[0].better_than == []
    record = webui()
    nodes(record)["b"]["annotation"] = {"rating": 1}
    assert read(record)[0].better_than == []


def test_answer_that_its_user_rewrote_becomes_a_correction():
    record = webui()
    nodes(record)["a"] |= {"originalContent": "Lima, I think.", "content": "Lima."}
    (found,) = read(record)
    assert (found.response, found.correction) == ("Lima, I think.", "Lima.")


def test_thoughts_before_an_answer_are_left_out():
    record = webui()
    nodes(record)["a"]["content"] = '<details type="reasoning" done="true">\n> hm\n</details>\nLima.'
    assert read(record)[0].response == "Lima."


def test_chat_as_a_plain_list_is_read_up_to_the_rated_message():
    chat = {
        "messages": [{"role": "user", "content": "Hi", "id": "q"}, {"role": "assistant", "content": "Yo", "id": "a"}]
    }
    (found,) = read(webui(snapshot={"chat": chat}))
    assert (found.messages[0].content, found.response) == ("Hi", "Yo")


def test_parents_in_a_circle_come_to_an_end():
    record = webui()
    nodes(record)["q"]["parentId"] = "q"
    assert len(read(record)[0].messages) == 1


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"messages": "hi"}, "messages: should be a list of messages"),
        ({"messages": ["hi"]}, r"messages\[0\]: should be an object with 'role' and 'content'"),
        ({"messages": [{"role": "alien", "content": "x"}]}, r"messages\[0\]\.role: is no role that is known: 'alien'"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\]\.content: should be text"),
        ({"conversations": [{"from": "human", "value": "x"}] * 1001}, "has 1001 turns, at most 1000 are read"),
        ({"conversations": {}}, "conversations: should be a list"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "a text from gpt that follows one from human"),
        (webui(snapshot=None), r"snapshot\.chat: holds no messages; export the feedback with its chats"),
        (webui(meta={"message_id": "q"}), r"meta\.message_id: names no answer"),
        (webui(data={"rating": 7}), r"data\.rating: should be 1 or -1, not '7'"),
        (webui(data={"rating": 1, "details": {"rating": 11}}), r"data\.details\.rating: should be 1 to 10"),
        ({"id": "c", "title": "t", "chat": {}}, "is a chat without feedback"),
    ],
)
def test_what_is_wrong_is_named(item: dict[str, Any], message: str):
    with pytest.raises(BadRequestError, match=message):
        read(item)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(item=st.dictionaries(st.sampled_from(["data", "meta", "snapshot", "messages", "conversations", "id"]), JSON))
def test_anything_that_is_json_is_read_or_refused_in_words(item: dict[str, Any]):
    for form in ("openai", "sharegpt", "open-webui", "everswarm"):
        try:
            assert read(item, form)
        except BadRequestError as error:
            assert str(error)


@given(
    items=st.lists(JSON.filter(lambda item: item != ""), max_size=6),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    buffer=st.integers(min_value=4, max_value=40),
)
def test_list_is_cut_into_its_items_wherever_reading_pauses(
    items: list[Any], indent: int, ascii_only: bool, buffer: int
):
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only) + '\n{"more": 1}\n'
    file = io.BufferedReader(io.BytesIO(text.encode("utf-8", "surrogatepass")), buffer)  # type: ignore[arg-type]
    found = list(numbered_records(file))
    decoded = [json.loads(one.data.decode("utf-8", "surrogatepass")) for one in found]
    assert decoded == [*items, {"more": 1}]
    assert [one.item for one in found] == [*range(1, len(items) + 1), None]
    assert found[-1].line == text.count("\n")


def test_item_that_is_too_long_is_cut_and_the_next_one_is_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "ITEM_BYTES", 10)
    file = io.BufferedReader(io.BytesIO(b'["' + b"x" * 1000 + b'", 2]'), 16)  # type: ignore[arg-type]
    found = list(numbered_records(file))
    assert [len(one.data) for one in found] == [11, 1]


def test_list_that_does_not_end_is_told_after_its_items():
    file = io.BufferedReader(io.BytesIO(b'[{"a": 1}, {"b"'))  # type: ignore[arg-type]
    found = numbered_records(file)
    assert next(found).data == b'{"a": 1}'
    with pytest.raises(BadRequestError, match="the list does not end"):
        next(found)


def test_control_characters_are_taken_out_of_texts_and_not_of_ids():
    found = read_object(rb'{"id": "a\u0000b", "text": ["x\u0000\u001b[31my\b\tz\n\u00e4"]}')
    assert found == ({"id": "a\x00b", "text": ["x[31my\tz\nä"]}, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"rating": 5, "rating": 1}', "the key 'rating' comes twice"),
        (b'{"rating": NaN}', "NaN is no number"),
        (b'{"text": "a\x00b"}', "not JSON: Invalid control character at column 12"),
        (b'{"text": "\xe9"}', "not UTF-8 text at byte 11"),
    ],
)
def test_json_that_could_be_read_in_two_ways_is_refused(data: bytes, message: str):
    with pytest.raises(BadRequestError, match=message):
        read_object(data)
