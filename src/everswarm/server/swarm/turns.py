"""From a chat that was checked to a run: who answers, how, with which tools, and what was said before."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi.concurrency import run_in_threadpool

from everswarm.errors import BadRequestError, EverswarmError, NotFoundError
from everswarm.llm.protocol import Payload
from everswarm.server.database import Database
from everswarm.server.documents import has_documents
from everswarm.server.gateway import Call, Gateway, most_answer_tokens
from everswarm.server.gateway.prompt_size import estimate_prompt_tokens
from everswarm.server.swarm.budget import OverBudgetError
from everswarm.server.swarm.classifier import Classifier
from everswarm.server.swarm.decision import decide
from everswarm.server.swarm.kinds import Kind, StrategyName
from everswarm.server.swarm.recording import Recording
from everswarm.server.swarm.requests import Wishes
from everswarm.server.swarm.routing import PRIMARY, SWARM, Route, route
from everswarm.server.swarm.run import Ask, Run, text_of
from everswarm.server.swarm.signals import Signals, question_of, read_signals
from everswarm.server.swarm.strategies.tools import RESULT_TOKENS, STEP_TOKENS
from everswarm.server.swarm.tools.tool import Tool
from everswarm.server.swarm.tools.toolbox import Toolbox
from everswarm.server.swarm.trace import Traced
from everswarm.server.threads import NEW, History, compact, keep_summary, open_thread, summary_request, summary_tokens
from everswarm.server.threads.service import create_thread
from everswarm.settings import RoleSettings, SwarmSettings

HALF_OF_THE_QUOTA = 0.5  # must be left before the coordinator is asked
SHORT_ANSWER_TOKENS = 16  # into which a sum and its result fit


@dataclass(slots=True)
class Turn:
    """One chat on its way: its run, and what becomes of it."""

    run: Run
    recording: Recording | None  # None for a request of a batch, which is no interaction
    wants_usage: bool = False
    thread: History | None = None
    begins_thread: bool = False  # one that is stored already, because its id is told before the answer is there

    @property
    def call(self) -> Call:
        """The call to the gateway that runs now."""
        return self.run.current or self.run.call


class Planner:
    """Decides, for one server, how a chat is answered."""

    def __init__(
        self,
        gateway: Gateway,
        database: Database,
        *,
        roles: Mapping[str, RoleSettings],
        settings: SwarmSettings,
        toolbox: Toolbox,
        tool_servers: Collection[str] = (),
        classifier: Classifier | None = None,
    ) -> None:
        """Plan with what the settings say of roles and strategies."""
        self.classifier = classifier
        self._gateway, self._database, self._toolbox = gateway, database, toolbox
        self._roles, self._settings = dict(roles), settings
        self._good_at = {name: role.good_at for name, role in roles.items()}
        self._has_tool_servers = bool(tool_servers)

    def plan(self, call: Call, wishes: Wishes, *, streams: bool) -> Run:
        """Return the run of `call`, whose targets are set here, by rules and without a token. Nothing is sent yet.

        Raises:
            BadRequestError: the strategy that was asked for cannot give what the request asks for.
            NotFoundError: the role that was asked for has no endpoint.
        """
        payload = call.payload
        model = payload.get("model", SWARM)
        self._check_served(model)
        signals = _signals_of(payload) if model == SWARM else None
        chosen = self._named(model, payload, wishes) if signals is None else self._route(signals, payload)
        if wishes.strategy is not None:
            chosen = self._wished(chosen, wishes.strategy, payload)
        call.targets = [model] if signals is None else self._targets(chosen.role)
        run = Run(
            gateway=self._gateway,
            call=call,
            route=chosen,
            trace=Traced(chosen.kind, chosen.strategy, chosen.reason),
            roles=self._roles,
            question=question_of(payload["messages"]),
            answer_tokens=most_answer_tokens(payload) or self._settings.answer_tokens,
            streams=streams,
            is_named=signals is None,
            is_wished=wishes.strategy is not None,
            role_for=self._role_for if signals is not None else lambda _text: str(model),
            toolbox=self._toolbox,
            tool_steps=self._settings.tool_steps,
        )
        if self._has_tool_servers and signals is not None and not _is_one_call(payload):
            self._choose_tools(run, signals)
        return run

    def _named(self, model: str, payload: Payload, wishes: Wishes) -> Route:
        """Return the route to who was asked for by name; what it is about matters to a strategy alone."""
        kind: Kind = "other"
        if wishes.strategy is not None:
            self._gateway.check_target(model)  # before a stream says that several calls are on their way
            kind = self._route(_signals_of(payload), payload).kind
        return Route(kind, model, "single", f"asked for as '{model}'", True)

    def may_decide(self, run: Run) -> bool:
        """Say whether the coordinator is to be asked: the rules are unsure, it can matter, and the quota allows it."""
        if run.route.is_sure or not self._settings.ask_coordinator or _is_one_call(run.call.payload):
            return False
        models = {self._gateway.models_of(role) for role in self._gateway.roles}
        return len(models) > 1 and self._gateway.left_share(self._gateway.roles) >= HALF_OF_THE_QUOTA

    async def decide(self, run: Run) -> None:
        """Ask the coordinator who answers."""
        self._change_route(run, await decide(run))

    async def find_documents(self, run: Run) -> None:
        """Have it be about something else where the user has no documents."""
        if await run_in_threadpool(has_documents, self._database, run.call.user):
            return
        payload, ruled = run.call.payload, run.route
        found = self._route(_signals_of(payload), payload, has_documents=False)
        if run.is_wished:
            found = found._replace(strategy=ruled.strategy, reason=ruled.reason)
        self._change_route(run, found)
        run.trace.note("there are no documents of yours to search")

    def _change_route(self, run: Run, route: Route) -> None:
        """Send the run elsewhere, with the tools of who answers now."""
        ruled, run.route = run.route, route
        run.trace.kind, run.trace.reason = route.kind, route.reason
        run.call = replace(run.call, targets=self._targets(route.role))
        if run.tools and route.role != ruled.role:
            run.tools = self._wanted_tools(run)

    async def open_thread(self, turn: Turn, thread_id: str) -> None:
        """Give the turn what was said before in a thread.

        A new one of a stream is stored at once: whoever reads its id and stops the answer goes on with it.

        Raises:
            NotFoundError: there is no such thread of this user.
            TooLargeError: it takes no more turns, or this user no more threads.
        """
        user, turn.begins_thread = turn.run.call.user, thread_id == NEW and turn.run.streams
        if turn.begins_thread:
            thread_id = (await run_in_threadpool(create_thread, self._database, user=user, title=None)).id
        turn.thread = await run_in_threadpool(open_thread, self._database, user=user, thread_id=thread_id)

    async def go_on(self, run: Run, history: History) -> None:
        """Put what was said before in front of the request, made short where it is too long for the model.

        Raises:
            BadRequestError: the new message alone is too long.
        """
        payload = run.call.payload
        role = self._roles.get(run.route.role)
        context_tokens = role.context_tokens if role else RoleSettings().context_tokens
        budget_tokens = context_tokens - min(run.answer_tokens, context_tokens // 2)
        budget_tokens = max(256, budget_tokens - min(_added_tokens(run, role), budget_tokens // 2))
        length = summary_tokens(budget_tokens)

        async def summarise(turns: Sequence[dict[str, Any]], summary: str | None) -> str | None:
            run.tell("the conversation is made short")
            messages = summary_request(turns, summary)
            ask = Ask(run.route.role, "compact", "it is too long", messages=messages, answer_tokens=length)
            run.trace.declare(estimate_prompt_tokens({"messages": messages}) + length)
            try:
                async with asyncio.timeout(self._settings.deadline_seconds):
                    return text_of(await run.ask(ask)) or None
            except (EverswarmError, OverBudgetError) as error:
                run.trace.note(f"earlier turns could not be summed up: {error}")
            except TimeoutError:
                run.trace.note(f"earlier turns were not summed up within {self._settings.deadline_seconds:.0f} s")
            return None

        compacted = await compact(
            payload["messages"],
            history,
            budget_tokens=budget_tokens,
            estimate=estimate_prompt_tokens,
            summarise=summarise,
        )
        if compacted.note:
            run.trace.note(compacted.note)
        if compacted.summary is not None and compacted.upto > history.summary_upto:
            await run_in_threadpool(
                keep_summary,
                self._database,
                thread_id=history.thread_id,
                summary=compacted.summary,
                upto=compacted.upto,
            )
        run.call = replace(run.call, payload={**payload, "messages": compacted.messages})

    def _route(
        self, signals: Signals, payload: Payload, *, tools_wanted: bool = False, has_documents: bool = True
    ) -> Route:
        """Return the route by the rules; `find_documents` looks later, for those few who ask for theirs."""
        return route(
            signals,
            good_at=self._good_at,
            served=self._gateway.roles,
            strategies=self._settings.strategies,
            tools_wanted=tools_wanted,
            has_documents=has_documents,
            only_single=_is_one_call(payload),
            is_shaped=signals.sum is not None and _is_shaped(payload),
            classifier=self.classifier,
        )

    def _choose_tools(self, run: Run, signals: Signals) -> None:
        """Give the run those tools of servers that its question seems to want, from its role's allow-list."""
        wanted = self._wanted_tools(run)
        if wanted and run.route.kind == "other":
            found = self._route(signals, run.call.payload, tools_wanted=True)._replace(role=run.route.role)
            if run.is_wished:
                found = found._replace(strategy=run.route.strategy, reason=run.route.reason)
            run.route = found
            run.trace.kind, run.trace.reason = found.kind, found.reason
        if wanted and run.route.strategy != "single":
            run.trace.note(f"no tools were offered: {run.route.strategy} uses none")
            return
        run.tools = wanted

    def _wanted_tools(self, run: Run) -> dict[str, Tool]:
        role = self._roles.get(run.route.role)
        allowed = self._toolbox.allowed(role.tools if role else ())
        return {tool.name: tool for tool in self._toolbox.wanted(run.question, allowed)}

    def _check_served(self, model: str) -> None:
        """Raise where `model` is a role of the settings that nothing serves."""
        if model in self._roles and model not in self._gateway.roles and self._gateway.models():
            names = ", ".join(self._gateway.roles) or "none"
            raise NotFoundError(
                f"The role '{model}' has no endpoint. Add it to `roles` of one of the [[endpoints]], or set `endpoint` "
                f"in [roles.{model}], and start the server again. Roles that have one: {names}."
            )

    def _wished(self, chosen: Route, strategy: StrategyName, payload: Payload) -> Route:
        if strategy != "single" and _is_one_call(payload):
            raise BadRequestError(
                f"X-Everswarm-Strategy: {strategy} cannot be used with tools, functions, logprobs or n > 1, which one "
                "call has to answer. Leave out one of the two."
            )
        return chosen._replace(strategy=strategy, reason=f"{chosen.reason}; {strategy} was asked for")

    def _targets(self, role: str) -> list[str]:
        """Return who may answer: the role, and any other where that one cannot."""
        served = self._gateway.roles
        return [name for name in dict.fromkeys([role, PRIMARY, *served]) if name in served] or [role]

    def _role_for(self, text: str) -> str:
        return self._route(read_signals([{"role": "user", "content": text}]), {}).role


def _signals_of(payload: Payload) -> Signals:
    form = payload.get("response_format")
    return read_signals(payload["messages"], wants_tools=bool(payload.get("tools")), wants_json=bool(form))


def _added_tokens(run: Run, role: RoleSettings | None) -> int:
    """Return how many tokens come into the prompt later: what the role says, what is found in documents."""
    said = [{"role": "system", "content": role.system_prompt}] if role and role.system_prompt else []
    found_tokens = RESULT_TOKENS + STEP_TOKENS if "documents" in run.route.lookups else 0
    return found_tokens + (estimate_prompt_tokens({"messages": said}) if said else 0)


def _is_one_call(payload: Payload) -> bool:
    """Say whether only one call can give what a request asks for."""
    return bool(
        (payload.get("n") or 1) > 1 or payload.get("tools") or payload.get("functions") or payload.get("logprobs")
    )


def _is_shaped(payload: Payload) -> bool:
    """Say whether the answer should have a form that only a model can give it."""
    form = payload.get("response_format")
    return (
        bool(payload.get("stop"))
        or (isinstance(form, Mapping) and form.get("type", "text") != "text")
        or (most_answer_tokens(payload) or SHORT_ANSWER_TOKENS) < SHORT_ANSWER_TOKENS
        or any(message.get("role") in ("system", "developer") for message in payload.get("messages", ()))
    )
