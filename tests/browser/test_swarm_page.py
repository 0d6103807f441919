"""What the page shows of the swarm: what goes on, how an answer came about, the conversations that are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Request, Route, expect
from tests.browser.conftest import MARKUP
from tests.fakes.local_server import LocalServer
from tests.fakes.upstream import Behaviour, FakeUpstream

from everswarm.settings import EndpointSettings, SwarmSettings

pytestmark = pytest.mark.browser

SUM = "What is 37*48+5?"
NOBODYS = "00000000-0000-7000-8000-000000000000"
STRATEGIES = {"other": "cascade", "parts": "split"}

NOTE_WHAT_IS_SAID_ALOUD = """
    window.aloud = [];
    new MutationObserver((changes) => {
      for (const { addedNodes } of changes) for (const node of addedNodes) window.aloud.push(node.textContent);
    }).observe(document.getElementById("chat-said"), { childList: true });
"""


@pytest.fixture(scope="module")
def swarm(upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server with a primary and a specialist of two models, which the swarm asks one after the other."""
    server = LocalServer(tmp_path_factory.mktemp("swarm-home"))
    endpoints = [
        EndpointSettings(name=role, base_url=upstream.base_url, model=model, roles=[role])
        for role, model in (("primary", "org/one"), ("specialist", "org/two"))
    ]
    wanted = {"endpoints": endpoints, "swarm": SwarmSettings(strategies=STRATEGIES)}
    server.settings = server.settings.model_copy(update=wanted)
    server.start()
    yield server
    server.close()


@pytest.fixture
def inside(page: Page, swarm: LocalServer) -> Page:
    """The page, signed in, with models that answer."""
    page.goto(f"{swarm.url}/#key={swarm.key}")
    expect(page.locator("#parts li").filter(has_text="specialist")).to_contain_text("operational")
    expect(page.get_by_role("button", name="Conversations")).to_be_visible()
    return page


@pytest.fixture
def sent(inside: Page) -> list[dict[str, Any]]:
    """The chats that the page sends."""
    bodies: list[dict[str, Any]] = []

    def keep(asked: Request) -> None:
        if asked.url.endswith("/v1/chat/completions"):
            bodies.append(json.loads(asked.post_data or ""))

    inside.on("request", keep)
    return bodies


def ask(page: Page, question: str) -> Locator:
    """Ask; return the place of the answer."""
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    return page.locator(".turn.model").last


def ask_and_wait(page: Page, question: str) -> Locator:
    answer = ask(page, question)
    expect(answer.get_by_role("button", name="Send feedback")).to_be_visible()
    return answer


def open_list(page: Page) -> Locator:
    """Open the list of conversations; return its items."""
    page.get_by_role("button", name="Conversations").click()
    return page.get_by_role("dialog", name="Conversations").locator("#thread-list > li")


def said(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages]


def test_status_changes_while_the_swarm_works_and_is_gone_when_text_comes(inside: Page, upstream: FakeUpstream) -> None:
    upstream.script.extend(
        [
            Behaviour(answer="The capital of Australia is Sydney.", first_byte_seconds=1.5),
            Behaviour(answer="It is Canberra.", first_byte_seconds=2.5),
        ]
    )
    inside.evaluate(NOTE_WHAT_IS_SAID_ALOUD)
    answer = ask(inside, "Which city is the capital of Australia?")
    expect(answer.locator(".doing")).to_contain_text("the specialist answers: ")
    expect(answer.locator(".text")).to_have_text("It is Canberra.")
    expect(answer.locator(".doing")).to_be_hidden()
    expect(inside.locator("#chat-said")).to_have_text("")
    first, second = inside.evaluate("window.aloud")[:2]
    assert first == "waiting for the model …"
    assert second.startswith("the specialist answers: ")


def test_trace_is_asked_for_when_opened_and_names_the_calculator(inside: Page) -> None:
    asked: list[str] = []
    inside.on("request", lambda request: asked.append(request.url) if request.url.endswith("/trace") else None)
    answer = ask_and_wait(inside, SUM)
    assert not asked
    how = answer.get_by_text("How this was answered")
    how.focus()
    inside.keyboard.press("Enter")
    expect(answer.locator(".how")).to_contain_text("a sum · calculator · 0 tokens · ")
    expect(answer.locator(".steps li")).to_have_count(1)
    expect(answer.locator(".steps li")).to_contain_text("calculator(expression: 37*48+5)")
    expect(answer.locator(".steps li .found")).to_contain_text("1781")
    how.click()
    how.click()
    assert len(asked) == 1


def test_trace_shows_when_the_parts_of_an_answer_ran(inside: Page, upstream: FakeUpstream) -> None:
    upstream.behaviour = Behaviour(answer="A fine part.", first_byte_seconds=0.3)
    answer = ask_and_wait(inside, "Why is the sky blue?\nWho wrote Faust?\nWhat is the tallest mountain?")
    answer.get_by_text("How this was answered").click()
    expect(answer.locator(".how")).to_contain_text("· split · primary · 4 calls · ")
    parts = answer.locator(".steps li").filter(has=inside.get_by_text("part", exact=True))
    expect(parts).to_have_count(3)
    expect(parts.first).to_contain_text("primary · org/one · primary")
    expect(parts.first.get_by_role("img")).to_have_accessible_name(re.compile(r"Began after \d+\.\d s, took \d+\.\d s"))
    bars = [bar.bounding_box() for bar in parts.locator(".when span").all()]
    assert bars[0] and bars[2]
    assert bars[2]["x"] < bars[0]["x"] + bars[0]["width"]  # the last began before the first was over


def test_trace_that_cannot_be_read_says_why_and_is_asked_for_again(inside: Page) -> None:
    problem = json.dumps({"status": 503, "detail": "The disk is full."})
    inside.route("**/trace", lambda route: route.fulfill(status=503, body=problem), times=1)
    answer = ask_and_wait(inside, SUM)
    how = answer.get_by_text("How this was answered")
    how.click()
    expect(answer.get_by_role("alert")).to_have_text("The disk is full.")
    how.click()
    how.click()
    expect(answer.locator(".how")).to_contain_text("calculator")


def test_conversation_goes_on_after_a_reload_from_the_list(
    inside: Page, sent: list[dict[str, Any]], swarm: LocalServer, upstream: FakeUpstream
) -> None:
    upstream.behaviour = Behaviour(answer="Hello Ada.")
    ask_and_wait(inside, "Hello, my name is Ada.")
    ask_and_wait(inside, "And thanks a lot.")
    inside.goto(f"{swarm.url}/docs")
    inside.goto(swarm.url)
    expect(inside.get_by_text("Ask something.", exact=True)).to_be_visible()
    open_list(inside).get_by_role("button", name="Hello, my name is Ada.", exact=False).first.click()
    expect(inside.get_by_role("dialog")).to_be_hidden()
    expect(inside.locator(".turn .text")).to_have_text(
        ["Hello, my name is Ada.", "Hello Ada.", "And thanks a lot.", "Hello Ada."]
    )
    expect(inside.get_by_role("button", name="Send feedback")).to_have_count(2)
    ask_and_wait(inside, "Goodbye.")
    assert [said(body["messages"]) for body in sent] == [
        ["Hello, my name is Ada."],
        ["And thanks a lot."],
        ["Goodbye."],
    ]
    assert said(upstream.requests[-1]["messages"])[-5:] == [
        "Hello, my name is Ada.",
        "Hello Ada.",
        "And thanks a lot.",
        "Hello Ada.",
        "Goodbye.",
    ]


def test_address_of_a_conversation_opens_it_again(inside: Page, swarm: LocalServer) -> None:
    ask_and_wait(inside, SUM)
    assert "#thread=" in inside.url
    inside.reload()
    expect(inside.locator(".turn.model .text")).to_have_text("37*48+5 = 1781")
    inside.locator(".turn.model").get_by_text("How this was answered").click()
    expect(inside.locator(".how")).to_contain_text("calculator")
    inside.get_by_role("button", name="New chat").click()
    expect(inside.locator(".turn")).to_have_count(0)
    assert inside.url == f"{swarm.url}/"
    inside.goto(f"{swarm.url}/#thread={NOBODYS}")
    expect(inside.locator("#chat-error")).to_contain_text(f"There is no thread '{NOBODYS}' of yours.")


def test_conversation_is_renamed_exported_and_deleted_after_a_question(inside: Page) -> None:
    ask_and_wait(inside, SUM)
    items = open_list(inside)
    items.first.get_by_role("button", name="Rename").click()
    expect(inside.get_by_label("Title")).to_be_focused()
    inside.get_by_label("Title").fill(MARKUP)
    inside.keyboard.press("Enter")
    expect(items.first.locator(".open span")).to_have_text(MARKUP)
    assert items.first.locator("img, script, b").count() == 0
    with inside.expect_download() as download:
        items.first.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename.endswith(".md")
    assert "37*48+5 = 1781" in Path(download.value.path()).read_text(encoding="utf-8")
    before = items.count()
    items.first.get_by_role("button", name="Delete").click()
    inside.get_by_role("button", name="Keep it").click()
    expect(items).to_have_count(before)
    items.first.get_by_role("button", name="Delete").click()
    inside.get_by_role("button", name="Delete it").click()
    expect(items).to_have_count(before - 1)
    inside.get_by_role("button", name="Close").click()
    expect(inside.locator(".turn")).to_have_count(0)  # it was the one that was shown
    assert "#thread=" not in inside.url


def test_rename_that_is_refused_says_why(inside: Page) -> None:
    ask_and_wait(inside, SUM)
    items = open_list(inside)
    items.first.get_by_role("button", name="Rename").click()
    inside.get_by_label("Title").fill("   ")
    inside.keyboard.press("Enter")
    expect(inside.locator("#threads-error")).to_contain_text("title")
    inside.get_by_role("button", name="Leave it").click()
    expect(items.first.locator(".open span")).to_have_text(SUM)


def test_question_that_nobody_answers_leaves_no_conversation_in_the_list(inside: Page, upstream: FakeUpstream) -> None:
    upstream.behaviour = Behaviour(status=400, body=b'{"error": {"message": "no such thing"}}')
    expect(ask(inside, "Hello?").get_by_role("alert")).to_be_visible()
    open_list(inside)
    expect(inside.locator("#thread-list").get_by_text("Hello?")).to_have_count(0)


def test_stopped_answer_is_sent_with_the_next_question(
    inside: Page, sent: list[dict[str, Any]], upstream: FakeUpstream
) -> None:
    upstream.behaviour = Behaviour(answer="word", delay_seconds=0.02, repeat_forever=True)
    inside.get_by_label("Model").select_option("primary")
    answer = ask(inside, "Say word for ever.")
    expect(answer.locator(".text")).to_contain_text("wordword")
    inside.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("Stopped. What is stopped is not kept.")
    upstream.behaviour = Behaviour(answer="And on we go.")
    ask_and_wait(inside, "Go on.")
    ask_and_wait(inside, "Thanks.")
    assert [len(body["messages"]) for body in sent] == [1, 3, 1]


def test_conversation_deleted_elsewhere_goes_on_as_a_new_one(
    inside: Page, sent: list[dict[str, Any]], swarm: LocalServer
) -> None:
    ask_and_wait(inside, SUM)
    gone = inside.url.partition("#thread=")[2]
    status = inside.evaluate(
        "([id, key]) => fetch(`/api/threads/${id}`, {method: 'DELETE', headers: {Authorization: `Bearer ${key}`}})"
        ".then((response) => response.status)",
        [gone, swarm.key],
    )
    assert status == 204
    answer = ask(inside, "What is 2+3?")
    expect(answer.get_by_role("alert")).to_contain_text(f"There is no thread '{gone}' of yours.")
    expect(inside.get_by_label("Your question")).to_have_value("What is 2+3?")
    expect(ask_and_wait(inside, "What is 2+3?").locator(".text")).to_contain_text("5")
    assert said(sent[-1]["messages"]) == [SUM, "37*48+5 = 1781", "What is 2+3?"]
    assert gone not in inside.url


def test_server_without_threads_is_sent_the_whole_conversation(
    page: Page, swarm: LocalServer, upstream: FakeUpstream
) -> None:
    def without_thread(route: Route) -> None:
        route.continue_(headers={k: v for k, v in route.request.headers.items() if k != "x-everswarm-thread"})

    page.route("**/api/threads*", lambda route: route.fulfill(status=404, body='{"detail": "Not Found"}'))
    page.route("**/v1/chat/completions", without_thread)
    page.goto(f"{swarm.url}/#key={swarm.key}")
    expect(page.locator("#model option").first).to_be_attached()
    upstream.behaviour = Behaviour(answer="Hello Ada.")
    ask_and_wait(page, "Hello, my name is Ada.")
    ask_and_wait(page, "And thanks a lot.")
    expect(page.get_by_role("button", name="Conversations")).to_be_hidden()
    expect(page.locator("#page-error")).to_be_hidden()
    assert said(upstream.requests[-1]["messages"])[-3:] == ["Hello, my name is Ada.", "Hello Ada.", "And thanks a lot."]


def test_trace_and_list_fit_a_phone(inside: Page, upstream: FakeUpstream) -> None:
    inside.set_viewport_size({"width": 360, "height": 740})
    upstream.behaviour = Behaviour(answer="x" * 500)
    answer = ask_and_wait(inside, "y" * 300)
    answer.get_by_text("How this was answered").click()
    expect(answer.locator(".how")).to_be_visible()
    assert inside.evaluate("document.documentElement.scrollWidth") <= 360
    assert inside.locator("#log").evaluate("(log) => log.scrollWidth - log.clientWidth") <= 0
    items = open_list(inside)
    expect(items.first.locator(".open")).to_contain_text("yyy")
    assert inside.locator("#threads").evaluate("(list) => list.scrollWidth - list.clientWidth") <= 0
