"""The page of a real server, in a real browser, with a fake model behind it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.browser.conftest import MARKUP, ServedPage
from tests.fakes.local_server import LocalServer
from tests.fakes.upstream import Behaviour, FakeUpstream

from everswarm.errors import NotEnoughFeedbackError
from everswarm.schemas.job import Stage
from everswarm.server.cycles.stages import check_enough_feedback
from everswarm.server.feedback import judged_interactions

pytestmark = pytest.mark.browser


@pytest.fixture
def inside(page: Page, server: ServedPage) -> Page:
    """The page, signed in, with everything on it."""
    page.goto(server.sign_in)
    expect(page.locator("#cycle table").first).to_be_visible()
    expect(page.locator("#model option").first).to_be_attached()
    return page


def ask(page: Page, question: str) -> Locator:
    """Ask with the keyboard; return the place of the answer."""
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    return page.locator(".turn.model").last


def test_sign_in_link_opens_the_page_and_leaves_no_key_in_the_address(page: Page, server: ServedPage) -> None:
    page.goto(server.sign_in)
    expect(page.get_by_role("heading", name="What to do next")).to_be_visible()
    assert page.url == f"{server.url}/"
    page.reload()
    expect(page.get_by_role("heading", name="Chat")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.reload()
    expect(page.get_by_label("Key or sign-in link")).to_be_focused()
    expect(page.get_by_role("heading", name="Chat")).to_be_hidden()


def test_key_form_says_why_a_key_is_refused_and_takes_a_pasted_link(page: Page, server: ServedPage) -> None:
    page.goto(server.url)
    page.get_by_label("Key or sign-in link").fill("esw_admin_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text("The key is not known here.")
    page.get_by_label("Key or sign-in link").fill(server.sign_in)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Chat")).to_be_visible()


def test_page_says_what_runs_and_what_is_down(inside: Page) -> None:
    expect(inside.locator("#status")).to_have_text("Degraded")
    parts = inside.locator(".parts li")
    expect(parts.filter(has_text="good")).to_contain_text("operational")
    expect(parts.filter(has_text="gone")).not_to_contain_text("operational")
    expect(inside.locator("#next-text")).to_contain_text("a cycle needs 24 examples")


def test_answer_comes_in_pieces_and_can_be_stopped(inside: Page, upstream: FakeUpstream) -> None:
    upstream.behaviour = Behaviour(answer="word", delay_seconds=0.02, repeat_forever=True)
    answer = ask(inside, "Say word for ever.")
    expect(answer.locator(".text")).to_contain_text("wordword")  # though the stream never ends
    inside.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("Stopped.")
    assert upstream.reader_left.wait(10)
    upstream.behaviour = Behaviour(answer="And on we go.")
    expect(ask(inside, "Go on.")).to_contain_text("And on we go.")
    expect(inside.get_by_label("Your question")).to_be_focused()


def test_rating_and_correction_reach_the_database_with_consent(
    inside: Page, upstream: FakeUpstream, server: ServedPage
) -> None:
    upstream.behaviour = Behaviour(answer="2 km are 200 m.")
    answer = ask(inside, "How many metres are 2 km?")
    expect(answer.locator("h3")).to_have_text("everswarm · good-model")
    answer.get_by_role("radio", name="1 of 5, bad").focus()
    inside.keyboard.press("ArrowRight")
    answer.get_by_role("button", name="Correct it").click()
    inside.keyboard.press("ControlOrMeta+A")
    inside.keyboard.type("2 km = 2000 m.")
    answer.get_by_label("May be used for training").check()
    answer.get_by_role("button", name="Send feedback").click()
    expect(answer.get_by_text("Thank you. The next cycle can learn from it.")).to_be_in_viewport()
    with server.database.read() as connection:
        stored = [found for found in judged_interactions(connection) if found.response == "2 km are 200 m."]
    assert [(found.messages[-1].content, found.rating, found.correction, found.consent) for found in stored] == [
        ("How many metres are 2 km?", 2, "2 km = 2000 m.", True)
    ]
    expect(inside.locator("#numbers")).to_contain_text("1 of 24 needed")


def test_feedback_without_a_judgement_is_not_sent(inside: Page) -> None:
    answer = ask(inside, "What is the capital of France?")
    answer.get_by_role("button", name="Send feedback").click()
    expect(answer).to_contain_text("Choose a rating, or write a better answer first.")


def test_markup_of_people_and_models_is_shown_as_text(inside: Page, upstream: FakeUpstream) -> None:
    upstream.behaviour = Behaviour(answer=MARKUP)
    answer = ask(inside, MARKUP)
    expect(answer.get_by_role("button", name="Send feedback")).to_be_visible()
    expect(answer.locator(".text")).to_have_text(MARKUP)
    expect(inside.locator(".turn.you .text")).to_have_text(MARKUP)
    assert inside.locator(".turn .text *").count() == 0
    inside.get_by_text("What it said to 1 held-out questions").click()
    expect(inside.locator(".answers dd").first).to_have_text(MARKUP)
    assert inside.locator("#cycle img, #cycle script, #cycle b").count() == 0


def test_endpoint_that_is_down_is_named_and_the_question_is_kept(inside: Page) -> None:
    inside.get_by_label("Model").select_option("specialist")
    answer = ask(inside, "Are you there?")
    expect(answer.get_by_role("alert")).to_contain_text("No endpoint can answer for 'specialist' now.")
    expect(answer.get_by_role("alert")).to_have_text(re.compile(r"'gone'.*Try again in \d+ s\.$"))
    expect(inside.get_by_label("Your question")).to_have_value("Are you there?")


def test_answer_that_breaks_off_says_so(inside: Page, upstream: FakeUpstream) -> None:
    upstream.behaviour = Behaviour(answer="The beginning of an answer", cut_after_pieces=3)
    answer = ask(inside, "Begin.")
    expect(answer.get_by_role("alert")).to_be_visible()
    expect(answer.locator(".text")).to_contain_text("The beginning")
    expect(answer.get_by_role("button", name="Send feedback")).to_have_count(0)


def test_cycle_table_shows_stages_scores_with_intervals_and_the_gate(inside: Page) -> None:
    cycle = inside.locator("#cycle")
    expect(cycle.locator(".summary")).to_contain_text("tiny/student, recipe seed.")
    rows = cycle.locator(".stages tbody tr")
    expect(rows).to_have_count(len(Stage))
    expect(rows.nth(1)).to_have_text(re.compile(r"curate.*done.*8 to learn from, 1 to watch, 1 held out.*1 min 01 s"))
    expect(rows.last).to_contain_text("release v1.0")
    scores = cycle.locator(".scores").first.locator("tbody tr").nth(1)
    expect(scores).to_contain_text("bits per byte")
    for text in ("1.000[0.900, 1.100]", "0.800[0.700, 0.900]", "−0.200[−0.300, −0.100]", "better"):
        expect(scores).to_contain_text(text)
    expect(cycle.locator(".checks .passed")).to_have_count(4)
    expect(cycle.get_by_text("said in full precision")).to_have_count(0)


def test_cycle_with_too_little_feedback_shows_the_sentence_of_the_server(inside: Page, server: ServedPage) -> None:
    inside.get_by_role("button", name="Start a cycle").click()
    with pytest.raises(NotEnoughFeedbackError) as refused:
        check_enough_feedback(server.database, minimum=24)
    expect(inside.locator("#cycle-error")).to_have_text(str(refused.value))


def test_keyboard_reaches_the_chat_first(inside: Page) -> None:
    inside.keyboard.press("Tab")
    expect(inside.get_by_role("link", name="Skip to the chat")).to_be_focused()
    inside.keyboard.press("Enter")
    expect(inside.get_by_label("Your question")).to_be_focused()
    expect(inside.get_by_role("heading", name="Chat")).to_be_in_viewport()


def test_nothing_sticks_out_on_a_phone(inside: Page, upstream: FakeUpstream) -> None:
    inside.set_viewport_size({"width": 360, "height": 740})
    upstream.behaviour = Behaviour(answer="x" * 500)
    expect(ask(inside, "y" * 300).get_by_role("button", name="Send feedback")).to_be_visible()
    assert inside.evaluate("document.documentElement.scrollWidth") <= 360


def test_documentation_of_the_api_needs_no_other_server(page: Page, server: ServedPage) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/docs")
    expect(page.locator(".opblock").first).to_be_visible()
    assert all(url.startswith((server.url, "data:")) for url in asked)


def test_page_notices_that_the_server_is_gone_and_goes_on_when_it_is_back(page: Page, tmp_path: Path) -> None:
    server = LocalServer(tmp_path / "home")
    server.start()
    try:
        page.goto(f"{server.url}/#key={server.key}")
        expect(page.locator("#cycle")).to_contain_text("None yet.")
        server.stop()
        answer = ask(page, "Is anybody there?")
        expect(answer.get_by_role("alert")).to_have_text("The server does not answer. Is it still running?")
        expect(page.locator("#status")).to_have_text("Server away")
        expect(page.locator("#page-error")).to_contain_text("goes on by itself")
        server.start()
        expect(page.locator("#page-error")).to_be_hidden()
        expect(page.locator("#status")).not_to_have_text("Server away")
        expect(page.get_by_label("Your question")).to_have_value("Is anybody there?")
    finally:
        server.close()
