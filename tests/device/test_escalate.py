"""A device asks its server again. The server here speaks the protocol; the whole server has tests of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fakes.device_server import DeviceServer, _DeviceHandler
from tests.fakes.local_server import LocalServer
from tests.fakes.upstream import FakeUpstream
from typer.testing import CliRunner

from everswarm.cli.device import app
from everswarm.device import outbox
from everswarm.device.escalation import escalate
from everswarm.device.journal import KEPT_INTERACTIONS, Interaction, now, open_journal, remember
from everswarm.device.state import DeviceHome
from everswarm.device.sync import enroll, sync
from everswarm.errors import NotFoundError, QuotaSpentError, UnavailableError
from everswarm.identifiers import new_id
from everswarm.schemas.escalation import Escalated, Escalation
from everswarm.schemas.interaction import Message
from everswarm.schemas.server import Scope
from everswarm.server.auth import create_key
from everswarm.server.feedback import judged_interactions
from everswarm.settings import EndpointSettings

Answered = Callable[..., str]


class EscalatingServer(DeviceServer):
    """Answers escalations too; `refusals` come first, as (status, seconds to wait)."""

    escalations: list[Escalation]
    refusals: list[tuple[int, int]]

    def __enter__(self) -> EscalatingServer:
        self.escalations, self.refusals = [], []
        super().__enter__()
        server, http = self, self.http
        assert http

        class Handler(_DeviceHandler):
            state = server

            def do_POST(self) -> None:  # noqa: N802
                if self.path != "/api/escalations":
                    super().do_POST()
                    return
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if server.refusals:
                    self._refuse(*server.refusals.pop(0))
                    return
                asked = Escalation.model_validate_json(body)
                server.escalations.append(asked)
                answer = Escalated(
                    id=asked.id,
                    interaction_id="swarm-1",
                    response="3 km are 3000 m.",
                    role="specialist",
                    strategy="cascade",
                    model="org/large",
                )
                self._json(200, answer.model_dump(mode="json"))

            def _refuse(self, status: int, seconds: int) -> None:
                body = json.dumps({"detail": "No tokens are left."}).encode()
                self.send_response(status)
                self.send_header("Retry-After", str(seconds))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        http.RequestHandlerClass = Handler
        return self


@pytest.fixture
def server() -> Iterator[EscalatingServer]:
    with EscalatingServer() as running:
        yield running


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("EVERSWARM_DEVICE_HOME", str(home))

    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    return invoke


def journal(home: Path) -> Path:
    return DeviceHome(home).journal_path


def judge(home: Path, **said: object) -> None:
    outbox.judge(journal(home), DeviceHome(home).load().device_id, **said)  # type: ignore[arg-type]


def test_the_last_answer_is_asked_again_and_both_are_shown(server: EscalatingServer, answered: Answered, run) -> None:
    answered("What is 1 + 1?", "11")
    id_ = answered(response="300 m.")
    text = run("escalate", "--consent", "--max-tokens", "90")
    assert "This device (org/tiny@v1.0): 300 m. The swarm (specialist, cascade, org/large): 3 km are 3000 m." in text
    assert "Kept: may be used for training." in text
    (asked,) = server.escalations
    assert (asked.id, asked.attempt, asked.model) == (id_, "300 m.", "org/tiny@v1.0")
    assert (asked.consent, asked.max_tokens, asked.messages[0].content) == (True, 90, "How many metres are 3 km?")


def test_an_answer_is_asked_for_once(server: EscalatingServer, answered: Answered, run) -> None:
    id_ = answered()
    first = json.loads(run("escalate", id_, "--json"))
    server.stop()
    again = json.loads(run("escalate", id_, "--json"))
    assert again == {**first, "asked_before": True}
    assert (again["response"], again["consent"], again["interaction_id"]) == ("3 km are 3000 m.", False, "swarm-1")
    assert f"everswarm device rate --id {id_} --consent" in run("escalate", "--consent")


def test_an_empty_answer_is_no_attempt(server: EscalatingServer, home: Path, answered: Answered) -> None:
    answered(response="")
    escalate(home)
    assert server.escalations[0].attempt is None


def test_without_a_line_it_can_be_tried_again_later(server: EscalatingServer, home: Path, answered: Answered) -> None:
    id_ = answered()
    server.stop()
    with pytest.raises(UnavailableError, match=f"Try again later: everswarm device escalate {id_}") as offline:
        escalate(home)
    assert offline.value.exit_code == 1


def test_a_spent_quota_says_when_to_ask_again(server: EscalatingServer, home: Path, answered: Answered) -> None:
    answered()
    server.refusals = [(429, 60), (503, 7)]
    with pytest.raises(QuotaSpentError, match=r"No tokens are left\. Nothing was changed") as spent:
        escalate(home)
    assert spent.value.retry_after_seconds == 60
    with pytest.raises(UnavailableError) as down:
        escalate(home)
    assert down.value.retry_after_seconds == 7
    assert escalate(home).asked_before is False


def test_what_was_never_asked_here_cannot_be_escalated(home: Path) -> None:
    with pytest.raises(NotFoundError, match="everswarm device chat"):
        escalate(home)
    with pytest.raises(NotFoundError, match="nowhere"):
        escalate(home, "nowhere")


def test_consent_is_what_was_said_when_it_was_rated(server: EscalatingServer, home: Path, answered: Answered) -> None:
    answered()
    judge(home, rating=2, consent=True)
    assert escalate(home).consent is True
    assert server.escalations[0].consent is True


@pytest.mark.parametrize("consent", [True, False])
def test_what_is_said_now_goes_into_the_judgement_that_waits(
    server: EscalatingServer, home: Path, answered: Answered, consent: bool
) -> None:
    id_ = answered()
    judge(home, rating=2, consent=not consent)
    escalate(home, consent=consent)
    sync(home)
    assert (server.feedback[id_]["consent"], server.feedback[id_]["rating"]) == (consent, 2)


def test_a_rating_after_it_keeps_the_consent_unless_it_says_otherwise(
    server: EscalatingServer, home: Path, answered: Answered
) -> None:
    kept, withdrawn = answered(), answered()
    for id_ in (kept, withdrawn):
        escalate(home, id_, consent=True)
    judge(home, interaction_id=kept, rating=2)
    judge(home, interaction_id=withdrawn, rating=2, consent=False)
    sync(home)
    assert {id_: server.feedback[id_]["consent"] for id_ in (kept, withdrawn)} == {kept: True, withdrawn: False}


def test_better_answers_are_forgotten_with_their_questions(
    home: Path, answered: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KEPT_INTERACTIONS > 1
    monkeypatch.setattr("everswarm.device.journal.KEPT_INTERACTIONS", 1)
    answered()
    escalate(home)
    answered()
    with open_journal(journal(home)) as connection:
        assert connection.execute("SELECT count(*) FROM escalations").fetchone() == (0,)


def test_on_the_whole_server_attempt_better_answer_and_rating_become_one_example(tmp_path: Path) -> None:
    with FakeUpstream(answer="3 km are 3000 m.") as upstream:
        server = LocalServer(tmp_path / "server")
        endpoint = EndpointSettings(name="up", base_url=upstream.base_url, model="org/model")
        server.settings = server.settings.model_copy(update={"endpoints": [endpoint]})
        server.start()
        try:
            home = tmp_path / "phone"
            key = create_key(server.database, scope=Scope.DEVICE, label="phone").key
            state = enroll(home, server.url, key=key, name="phone")
            messages = [Message(role="user", content="How many metres are 3 km?")]
            interaction = Interaction(id=new_id(), created_at=now(), model="tiny", messages=messages, response="300 m.")
            with open_journal(journal(home)) as connection:
                remember(connection, interaction)
            assert escalate(home, consent=True).response == "3 km are 3000 m."
            judge(home, rating=2)
            assert sync(home).feedback_sent == 1
            with server.database.read() as rows:
                (example,) = judged_interactions(rows)
        finally:
            server.close()
    assert (example.id, example.device_id) == (interaction.id, state.device_id)
    assert (example.response, example.correction) == ("300 m.", "3 km are 3000 m.")
    assert (example.rating, example.consent) == (2, True)


def test_help_has_an_example(run) -> None:
    assert "everswarm device escalate --consent" in run("escalate", "--help")
