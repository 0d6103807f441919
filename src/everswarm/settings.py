"""Settings of one machine: `everswarm.toml`, then `EVERSWARM_*` variables, which win. Never secrets in TOML.

Nested names take two underscores: `EVERSWARM_ENGINE__THREADS=2`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from everswarm.errors import ConfigurationError

EMBEDDED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WEB_ROLES = ("primary", "coordinator", "specialist")
PROFILES = ("hf", "ollama", "vllm", "embedded")
CREDENTIAL_STARTS = ("hf_", "sk-", "sk_", "gsk_", "esw_")  # no variable begins so, and many credentials do
CREDENTIAL_FIELDS = ("api_key", "apikey", "api-key", "api_token", "key", "token")  # what people write for api_key_env
SECRET_INSIDE = "secret_inside"  # kind of an error whose input is never shown


class Section(BaseModel):
    """A part of the settings; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid")


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
    roles: list[str] = list(WEB_ROLES)  # with none it answers only who asks for its model by name
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
        for role in roles:
            if role not in WEB_ROLES:
                raise ValueError(f"'{role}' is no role; there are {', '.join(WEB_ROLES)}{meant(role, WEB_ROLES)}")
        return list(dict.fromkeys(roles))

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, base_url: str) -> str:
        return _checked_base_url(base_url) if base_url else base_url

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
    minimum_examples: int = Field(default=24, ge=8)
    schedule: str | None = None  # cron, five fields, UTC; such as "0 3 * * 1" for Mondays at 03:00
    margin: float = Field(default=0.01, ge=0)  # how much worse, as a share of the baseline, still counts as not worse

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


class Settings(BaseSettings):
    """Everything that may differ between machines. With nothing set, the embedded profile runs."""

    model_config = SettingsConfigDict(
        env_prefix="EVERSWARM_", env_nested_delimiter="__", env_file=".env", extra="ignore", toml_file="everswarm.toml"
    )

    home: Path = Field(default_factory=lambda: Path.home() / ".everswarm")  # all state
    models_dir: Path = Field(default_factory=lambda: Path(platformdirs.user_cache_dir("everswarm")) / "models")
    database_url: str | None = None  # default: SQLite in home
    artifacts_url: str | None = None  # default: a folder in home
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)  # 0: any free one
    max_body_bytes: int = Field(default=2 * 1024 * 1024, ge=1024)  # of a JSON request
    engine: EngineSettings = EngineSettings()
    gateway: GatewaySettings = GatewaySettings()
    endpoints: list[EndpointSettings] = []  # earlier is preferred; when empty, the embedded engine serves all roles
    cycle: CycleSettings = CycleSettings()
    worker: WorkerSettings = WorkerSettings()

    @field_validator("endpoints")
    @classmethod
    def _check_names(cls, endpoints: list[EndpointSettings]) -> list[EndpointSettings]:
        names = [endpoint.name for endpoint in endpoints if endpoint.name]
        double = next((name for name in names if names.count(name) > 1), None)
        if double:
            raise ValueError(f"two have the name '{double}'; give each its own")
        return endpoints

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order: arguments, environment, .env, TOML."""
        return init_settings, env_settings, dotenv_settings, _read_toml(settings_cls)

    @property
    def sqlalchemy_url(self) -> str:
        """Where the state is."""
        return self.database_url or f"sqlite:///{self.home / 'everswarm.sqlite'}"

    @property
    def artifacts_root(self) -> str:
        """Where the artifacts are; any URL that fsspec reads."""
        return self.artifacts_url or str(self.home / "artifacts")


SECTIONS: dict[int | str, type[Section]] = {  # by the name of the setting that holds one
    "engine": EngineSettings,
    "gateway": GatewaySettings,
    "cache": CacheSettings,
    "endpoints": EndpointSettings,
    "quota": QuotaSettings,
    "cycle": CycleSettings,
    "worker": WorkerSettings,
}


def config_path() -> Path:
    """Where the TOML file is, or would be: what EVERSWARM_CONFIG names, or else `everswarm.toml` in this folder."""
    return Path(os.environ.get("EVERSWARM_CONFIG") or "everswarm.toml")


def _read_toml(settings_cls: type[BaseSettings]) -> TomlConfigSettingsSource:
    """Read the file; other names may stand in the environment, but not here.

    Raises:
        ConfigurationError: it is not TOML, cannot be opened, or has a name that is not a setting.
    """
    path = config_path()
    if os.environ.get("EVERSWARM_CONFIG") and not path.exists():
        raise ConfigurationError(
            f"EVERSWARM_CONFIG names {path}, and there is no such file. Mend the variable or unset it."
        )
    try:
        source = TomlConfigSettingsSource(settings_cls, path)
    except ValueError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}. Mend that line; it must be TOML.") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}. Check its rights.") from error
    names = sorted(settings_cls.model_fields)
    unknown = [name for name in source.toml_data if name not in names]
    if unknown:
        close = _closest(unknown[0], names)
        hint = f"Did you mean '{close}'? " if close else ""
        raise ConfigurationError(
            f"{path} has '{unknown[0]}', which is not a setting. {hint}The settings are: {', '.join(names)}."
        )
    return source


def load_settings(**overrides: object) -> Settings:
    """Read the settings of this machine.

    Raises:
        ConfigurationError: a value cannot be used; names it and says what it may be.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"{_place(item['loc'])}: {_complaint(item)}" for item in error.errors()]
        raise ConfigurationError(
            "The settings cannot be used. "
            + "; ".join(lines)
            + ". Set them in everswarm.toml or as EVERSWARM_* variables."
        ) from error
    except ValueError as error:  # a variable that should hold JSON and does not
        raise ConfigurationError(
            f"The settings cannot be used: {error}. Lists, such as EVERSWARM_ENDPOINTS, are written as JSON."
        ) from error


def _is_cron(schedule: str) -> bool:
    try:
        from croniter import croniter  # type: ignore[import-untyped]  # comes with the workflow engine, which a device does not need
    except ImportError:
        return True
    return bool(croniter.is_valid(schedule))


def _checked_base_url(base_url: str) -> str:
    """Return an address without the slash at its end.

    Raises:
        PydanticCustomError: it holds a credential; the text does not repeat it.
        ValueError: it is no http(s) address.
    """
    try:
        parts = urlsplit(base_url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if "@" in parts.netloc or parts.query or "@" in base_url:
        raise PydanticCustomError(
            SECRET_INSIDE,
            "should have no credential and no query in it; name the variable that holds the credential in api_key_env",
        )
    if parts.scheme not in {"http", "https"} or not host or re.search(r"\s", base_url):
        raise ValueError("should be an http:// or https:// address, such as http://127.0.0.1:11434/v1")
    return base_url.rstrip("/")


def meant(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'ollama'?)` for `word`, or nothing where none of the `known` is close."""
    close = _closest(word, known)
    return f" (did you mean '{close}'?)" if close else ""


def _closest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def _within(name: str, item: ErrorDetails) -> InitErrorDetails:
    """Return `item` one level down, under the name of its endpoint."""
    kind = PydanticCustomError(SECRET_INSIDE, item["msg"]) if item["type"] == SECRET_INSIDE else item["type"]
    return {"type": kind, "loc": (f"'{name}'", *item["loc"]), "input": item["input"], "ctx": item.get("ctx", {})}


def _place(location: tuple[int | str, ...]) -> str:
    """Return where a setting stands: `endpoints.'ollama'.model`, or `endpoints.0.model` while it has no name."""
    parts = [str(part) for part in location]
    if len(parts) > 2 and parts[0] == "endpoints" and parts[2].startswith("'"):
        del parts[1]
    return ".".join(parts)


def _complaint(item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden":
        return f"is not a setting{_instead(item['loc'])}"
    if item["type"] == "list_type" and item["loc"] == ("endpoints",):
        return (
            "should be a list. Write [[endpoints]], with two brackets, above each endpoint in everswarm.toml; in "
            "EVERSWARM_ENDPOINTS put [ ] around them"
        )
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == SECRET_INSIDE:
        return text
    return f"{text}, not {item['input']!r}" if isinstance(item["input"], str | int | float) else text


def _instead(location: tuple[int | str, ...]) -> str:
    """Say what to write instead of the last name in `location`, which is none of its section's."""
    *places, name = location
    section = next((SECTIONS[place] for place in reversed(places) if place in SECTIONS), Settings)
    if section is EndpointSettings and str(name).lower() in CREDENTIAL_FIELDS:
        return "; use api_key_env with the NAME of the variable that holds the credential, such as HF_TOKEN"
    fields = list(section.model_fields)
    return meant(str(name), fields) or f"; there are {', '.join(fields)}"
