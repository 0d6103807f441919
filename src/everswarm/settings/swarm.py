"""Sections about the swarm: what each role is for, how it decides, which tools it may use."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from everswarm.settings.section import Section, checked_base_url, meant

WEB_ROLES = ("primary", "coordinator", "specialist")
KINDS = (  # what a request is about; see `server/swarm/kinds.py`
    "arithmetic",
    "mathematics",
    "code",
    "planning",
    "parts",
    "time",
    "documents",
    "tools",
    "conversation",
    "other",
)
STRATEGIES = ("calculate", "single", "cascade", "vote", "split", "synthesise")
BUILT_IN_TOOLS = ("calculator", "clock", "documents")


class RoleSettings(Section):
    """What a model is for, and how it is asked. What is not said of a web role comes from `WEB_ROLE_DEFAULTS`."""

    good_at: list[str] = Field(default_factory=list)  # kinds of requests that go to it first
    system_prompt: str = Field(default="", max_length=20_000)  # goes before that of the request
    temperature: float | None = Field(default=None, ge=0, le=2)  # where the request sets none
    top_p: float | None = Field(default=None, gt=0, le=1)
    endpoint: str | None = None  # name of the one that serves it; default: those that list it in `roles`
    escalates_to: str | None = None  # who is asked when a check of its answer fails; once, so two may name each other
    tools: list[str] = Field(
        default_factory=lambda: list(BUILT_IN_TOOLS)
    )  # allow-list: built in, `server` for all of a [tools.server], `server.tool`
    context_tokens: int = Field(default=4096, ge=512)  # that its models read: the conversation and the answer

    @field_validator("good_at")
    @classmethod
    def _check_kinds(cls, kinds: list[str]) -> list[str]:
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"'{kind}' is no kind of request; there are {', '.join(KINDS)}{meant(kind, KINDS)}")
        return kinds


WEB_ROLE_DEFAULTS: dict[str, dict[str, Any]] = {
    "primary": {"escalates_to": "specialist"},  # good at all that nobody else is
    "coordinator": {"good_at": ["planning", "parts"], "escalates_to": "specialist"},
    "specialist": {"good_at": ["code", "mathematics"], "escalates_to": "coordinator"},
}


class ToolServerSettings(Section):
    """A server of tools that speaks the Model Context Protocol: a command that is started, or an address."""

    command: list[str] = Field(default_factory=list)  # program and arguments; it speaks over stdin and stdout
    env: list[str] = Field(
        default_factory=list
    )  # names of the variables that the command gets, besides PATH, HOME and the like
    url: str = ""  # streamable HTTP, such as http://127.0.0.1:9000/mcp
    token_env: str | None = None  # name of the variable with the bearer token for `url`
    timeout_seconds: float = Field(default=20.0, gt=0, le=600, allow_inf_nan=False)  # of one call
    result_characters: int = Field(default=8000, ge=100, le=1_000_000)  # of one result; the rest is cut off

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        return checked_base_url(url) if url else url

    @model_validator(mode="after")
    def _check_one_way(self) -> Self:
        if self.command and self.url:
            raise ValueError("has both command and url; keep the one by which the server is reached")
        if not self.command and not self.url:
            raise ValueError('has neither command, such as ["npx", "some-server"], nor url; set one of the two')
        return self


class SwarmSettings(Section):
    """How the swarm decides and works."""

    strategies: dict[str, str] = Field(
        default_factory=dict
    )  # by kind of request, such as mathematics = "vote"; see `everswarm swarm eval`
    ask_coordinator: bool = True  # when the rules are unsure, the models differ and at least half of the quota is left
    deadline_seconds: float = Field(default=120.0, gt=0, le=3600, allow_inf_nan=False)  # of several calls
    answer_tokens: int = Field(default=1024, ge=16)  # of one answer where the request sets no limit
    tool_steps: int = Field(default=4, ge=1, le=20)  # calls of tools in one answer

    @field_validator("strategies")
    @classmethod
    def _check_strategies(cls, strategies: dict[str, str]) -> dict[str, str]:
        for kind, strategy in strategies.items():
            if kind not in KINDS:
                raise ValueError(f"'{kind}' is no kind of request; there are {', '.join(KINDS)}{meant(kind, KINDS)}")
            if strategy not in STRATEGIES:
                raise ValueError(f"'{strategy}' is no strategy; there are {', '.join(STRATEGIES)}")
        return strategies
