"""Sections about the machine: its engine, endpoints, gateway, cycles and worker."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from everswarm.settings.section import SECRET_INSIDE, Section, checked_base_url, meant
from everswarm.settings.swarm import WEB_ROLES
from everswarm.settings.teacher import TeacherSettings

EMBEDDED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROFILES = ("hf", "ollama", "vllm", "embedded")
CREDENTIAL_STARTS = ("hf_", "sk-", "sk_", "gsk_", "esw_")  # no variable begins so, and many credentials do
CREDENTIAL_FIELDS = ("api_key", "apikey", "api-key", "api_token", "key", "token")  # what people write for api_key_env


class EngineSettings(Section):
    """The embedded llama.cpp."""

    enabled: bool = True
    model: str = EMBEDDED_MODEL
    threads: int = Field(default=1, ge=1)  # 2 spinning threads on 2 busy cores are slower than 1
    context_tokens: int = Field(default=4096, ge=512)  # shared by the parallel slots
    answer_tokens: int = Field(default=1024, ge=1)  # where a request sets no max_tokens: small models may never stop
    parallel: int = Field(default=2, ge=1)  # requests answered side by side


class QuotaSettings(Section):
    """Limits of an endpoint, all of which hold. What is not named is not limited."""

    tokens_per_second: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_hour: int | None = Field(default=None, ge=1)
    tokens_per_day: int | None = Field(default=None, ge=1)
    requests_per_second: int | None = Field(default=None, ge=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    requests_per_hour: int | None = Field(default=None, ge=1)
    requests_per_day: int | None = Field(default=None, ge=1)
    shared: str | None = Field(default=None, min_length=1)  # endpoints that name the same word draw on one quota


class EndpointSettings(Section):
    """An address that speaks the OpenAI chat protocol. With a profile, all that is not said comes from it.

    `everswarm.server.gateway.profiles.expand` fills the gaps; an empty text is one.
    """

    profile: str | None = None  # hf, ollama, vllm or embedded
    name: str = ""
    base_url: str = ""  # such as http://127.0.0.1:11434/v1
    model: str = ""
    roles: list[str] = Field(
        default_factory=lambda: list(WEB_ROLES)
    )  # with none it answers only who asks for its model by name
    api_key_env: str | None = None  # name of the variable that holds the credential
    quota: QuotaSettings | None = None  # default: what the dated table says of this address, if anything
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)  # share of the requests; 0: only when others fail
    timeout_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)  # of an answer; of silence in a stream
    connect_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    answer_tokens: int = Field(default=1024, ge=1)  # reserved where a request sets no max_tokens, and then its limit
    price_per_million_prompt_tokens: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    price_per_million_answer_tokens: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @field_validator("profile")
    @classmethod
    def _check_profile(cls, profile: str | None) -> str | None:
        if profile is not None and profile not in PROFILES:
            raise ValueError(f"should be one of {', '.join(PROFILES)}{meant(profile, PROFILES)}")
        return profile

    @field_validator("roles")
    @classmethod
    def _check_roles(cls, roles: list[str]) -> list[str]:
        return list(dict.fromkeys(roles))  # whether there are such roles the whole of the settings knows

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, base_url: str) -> str:
        return checked_base_url(base_url) if base_url else base_url

    @field_validator("api_key_env")
    @classmethod
    def _check_api_key_env(cls, name: str | None) -> str | None:
        if name is None:
            return None
        if name.startswith(CREDENTIAL_STARTS) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise PydanticCustomError(
                SECRET_INSIDE,
                "should be the name of the variable that holds the credential, such as HF_TOKEN, not the credential",
            )
        return name

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        if self.profile is None:
            missing = [field for field in ("name", "base_url", "model") if not getattr(self, field)]
            if missing:
                raise ValueError(
                    f"{' and '.join(missing)} should be set, or a profile that knows them: {', '.join(PROFILES)}"
                )
        if self.profile == "embedded":
            foreign = [
                field for field in ("base_url", "api_key_env", "connect_seconds") if field in self.model_fields_set
            ]
            if foreign:
                raise ValueError(f"{foreign[0]} is not for the embedded engine, which has no address; remove it")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _name_in_errors(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Put the endpoint's name into the place of each error: a table has many."""
        try:
            return handler(value)
        except ValidationError as error:
            named = value if isinstance(value, dict) else {}
            name = str(named.get("name") or named.get("profile") or "")
            if not name:
                raise
            raise ValidationError.from_exception_data(error.title, [_within(name, item) for item in error.errors()]) \
                from error  # fmt: skip


class CacheSettings(Section):
    """Answers to requests that are asked again, word for word, at temperature 0."""

    enabled: bool = True
    ttl_seconds: int = Field(default=86_400, ge=1)
    size_mb: int = Field(default=64, ge=1)
    across_users: bool = False  # one person's answer may be another's; only where all may see all


class GatewaySettings(Section):
    """How requests are queued, retried and remembered."""

    queue_length: int = Field(default=256, ge=0)  # requests that wait for a quota; more are refused
    wait_seconds: float = Field(
        default=75.0, ge=0, allow_inf_nan=False
    )  # the longest that one waits, unless it sets a deadline
    interactive_share: float = Field(default=0.2, ge=0, lt=1)  # of each quota, that devices and batches leave alone
    retries: int = Field(default=2, ge=0)  # after every endpoint of a role has failed
    cache: CacheSettings = CacheSettings()


class CycleSettings(Section):
    """Defaults of a cycle."""

    student: str = EMBEDDED_MODEL
    role: str = "ultralight"
    recipe: str = "seed"
    teachers: list[TeacherSettings] = Field(default_factory=lambda: [TeacherSettings()], min_length=1)  # their mean
    minimum_examples: int = Field(default=24, ge=8)
    schedule: str | None = None  # cron, five fields, UTC; such as "0 3 * * 1" for Mondays at 03:00
    margin: float = Field(default=0.01, ge=0)  # how much worse, as a share of the baseline, still counts as not worse

    @field_validator("teachers", mode="before")
    @classmethod
    def _check_list(cls, teachers: Any) -> Any:
        if isinstance(teachers, dict):
            raise ValueError(
                "should be a list. Write [[cycle.teachers]], with two brackets, above each teacher in everswarm.toml; "
                "in EVERSWARM_CYCLE__TEACHERS put [ ] around them"
            )
        return teachers

    @field_validator("schedule")
    @classmethod
    def _check_cron(cls, schedule: str | None) -> str | None:
        if schedule is None:
            return None
        if len(schedule.split()) not in (5, 6) or not _is_cron(schedule):
            raise ValueError('should be a cron of five or six fields, UTC, such as "0 3 * * 1" for Mondays at 03:00')
        return schedule


class WorkerSettings(Section):
    """The training worker on this machine."""

    local: bool = True  # `serve` starts one when the training extra is installed
    threads: int = Field(default=1, ge=1)
    lease_seconds: int = Field(default=120, ge=2)
    beat_seconds: int = Field(default=30, ge=1)
    attempts: int = Field(
        default=3, ge=1
    )  # leases that may expire or fail, with no new checkpoint, before the stage fails

    @model_validator(mode="after")
    def _check_beat(self) -> Self:
        if self.beat_seconds >= self.lease_seconds:
            raise ValueError(
                f"beat_seconds ({self.beat_seconds}) should be less than lease_seconds ({self.lease_seconds}), "
                "or every lease expires between two beats"
            )
        return self


def _is_cron(schedule: str) -> bool:
    try:
        from croniter import croniter  # type: ignore[import-untyped]  # comes with the workflow engine, which a device does not need
    except ImportError:
        return True
    return bool(croniter.is_valid(schedule))


def _within(name: str, item: ErrorDetails) -> InitErrorDetails:
    """Return `item` one level down, under the name of its endpoint."""
    kind = PydanticCustomError(SECRET_INSIDE, item["msg"]) if item["type"] == SECRET_INSIDE else item["type"]
    return {"type": kind, "loc": (f"'{name}'", *item["loc"]), "input": item["input"], "ctx": item.get("ctx", {})}
