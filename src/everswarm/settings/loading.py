"""Puts the sections together, and reads them from file and environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import platformdirs
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from everswarm.errors import ConfigurationError
from everswarm.settings.feedback import CurationRules, CurationSettings, FeedbackSettings
from everswarm.settings.machine import (
    CREDENTIAL_FIELDS,
    CacheSettings,
    CycleSettings,
    EndpointSettings,
    EngineSettings,
    GatewaySettings,
    QuotaSettings,
    WorkerSettings,
)
from everswarm.settings.section import SECRET_INSIDE, Section, broken_rule, closest, meant
from everswarm.settings.swarm import (
    BUILT_IN_TOOLS,
    WEB_ROLE_DEFAULTS,
    WEB_ROLES,
    RoleSettings,
    SwarmSettings,
    ToolServerSettings,
)
from everswarm.settings.teacher import TeacherSettings


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
    roles: dict[str, RoleSettings] = Field(
        default_factory=dict, validate_default=True
    )  # the web roles are always there
    tools: dict[str, ToolServerSettings] = {}  # by a name of yours
    swarm: SwarmSettings = SwarmSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    curation: CurationSettings = CurationSettings()
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

    @field_validator("roles")
    @classmethod
    def _complete_roles(cls, roles: dict[str, RoleSettings]) -> dict[str, RoleSettings]:
        for name in roles:
            rule = "it is the model name that leaves the choice to the swarm" if name == "everswarm" else ""
            if rule := rule or broken_rule(name):
                raise ValueError(f"'{name}' cannot name a role: {rule}. Choose another name")
        written = {name: role.model_dump(exclude_unset=True) for name, role in roles.items()}
        names = list(dict.fromkeys([*WEB_ROLES, *roles]))
        complete = {
            name: RoleSettings(**{**WEB_ROLE_DEFAULTS.get(name, {}), **written.get(name, {})}) for name in names
        }
        for name, role in complete.items():
            if role.escalates_to == name:
                raise ValueError(f"'{name}' escalates to itself; name another role in escalates_to, or remove it")
            if role.escalates_to is not None and role.escalates_to not in complete:
                raise ValueError(
                    f"'{name}' escalates to '{role.escalates_to}', which is no role{meant(role.escalates_to, names)}"
                )
        return complete

    @field_validator("tools")
    @classmethod
    def _check_tool_names(cls, tools: dict[str, ToolServerSettings]) -> dict[str, ToolServerSettings]:
        for name in tools:
            rule = "a built-in tool has that name" if name in BUILT_IN_TOOLS else broken_rule(name)
            if rule:
                raise ValueError(f"'{name}' cannot name a tool server: {rule}. Choose another name")
        return tools

    @model_validator(mode="after")
    def _check_allowed_tools(self) -> Self:
        known = [*BUILT_IN_TOOLS, *self.tools]
        for name, role in self.roles.items():
            for allowed in role.tools:
                server, dot, tool = allowed.partition(".")
                if allowed in known or (server in self.tools and tool):
                    continue
                close = closest(server, self.tools if tool else known)
                hint = f" (did you mean '{close}{dot if tool else ''}{tool}'?)" if close else ""
                raise ValueError(
                    f"roles.{name}.tools: '{allowed}' is no tool; there are {', '.join(known)}{hint}. "
                    "One of your own needs a [tools.NAME], and is allowed as NAME or NAME.tool"
                )
        return self

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        for position, endpoint in enumerate(self.endpoints):
            unknown = next((role for role in endpoint.roles if role not in self.roles), None)
            if unknown is not None:
                place = (
                    f"endpoints.'{name}'" if (name := endpoint.name or endpoint.profile) else f"endpoints.{position}"
                )
                names = list(self.roles)
                raise ValueError(
                    f"{place}.roles: '{unknown}' is no role; there are {', '.join(names)}{meant(unknown, names)}. "
                    f"A new one needs a [roles.{unknown}]"
                )
        return self

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
    def text_key_file(self) -> Path | None:
        """Where the key of sealed text is; None: beside the SQLite file."""
        return None if self.sqlalchemy_url.startswith("sqlite") else self.home / "text.key"

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
    "roles": RoleSettings,
    "tools": ToolServerSettings,
    "swarm": SwarmSettings,
    "feedback": FeedbackSettings,
    "curation": CurationSettings,
    "rules": CurationRules,
    "cycle": CycleSettings,
    "teachers": TeacherSettings,
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
        close = closest(unknown[0], names)
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
        lines = [f"{_place(item['loc'])}: {_complaint(item)}".removeprefix(": ") for item in error.errors()]
        raise ConfigurationError(
            "The settings cannot be used. "
            + "; ".join(lines)
            + ". Set them in everswarm.toml or as EVERSWARM_* variables."
        ) from error
    except ValueError as error:  # a variable that should hold JSON and does not
        raise ConfigurationError(
            f"The settings cannot be used: {error}. Lists, such as EVERSWARM_ENDPOINTS, are written as JSON."
        ) from error


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
