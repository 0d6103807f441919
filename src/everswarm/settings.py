"""Settings of one machine: `everswarm.toml`, then `EVERSWARM_*` variables, which win. Never secrets in TOML.

Nested names take two underscores: `EVERSWARM_ENGINE__THREADS=2`.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Self

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from everswarm.errors import ConfigurationError

EMBEDDED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WEB_ROLES = ("primary", "coordinator", "specialist")


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


class EndpointSettings(Section):
    """An address that speaks the OpenAI chat protocol."""

    name: str
    base_url: str  # such as http://127.0.0.1:11434/v1
    model: str
    roles: list[str] = list(WEB_ROLES)
    api_key_env: str | None = None  # name of the variable that holds the credential
    timeout_seconds: float = Field(default=120.0, gt=0)


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
    endpoints: list[EndpointSettings] = []  # when empty, the embedded engine serves all roles
    cycle: CycleSettings = CycleSettings()
    worker: WorkerSettings = WorkerSettings()

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


def _read_toml(settings_cls: type[BaseSettings]) -> TomlConfigSettingsSource:
    """Read the file; other names may stand in the environment, but not here.

    Raises:
        ConfigurationError: it is not TOML, cannot be opened, or has a name that is not a setting.
    """
    named = os.environ.get("EVERSWARM_CONFIG")
    path = Path(named or "everswarm.toml")
    if named and not path.exists():
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
        close = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"Did you mean '{close[0]}'? " if close else ""
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
        lines = [f"{'.'.join(str(part) for part in item['loc'])}: {_complaint(item)}" for item in error.errors()]
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


def _complaint(item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden":
        return "is not a setting"
    text = item["msg"].removeprefix("Value error, ")
    return f"{text}, not {item['input']!r}" if isinstance(item["input"], str | int | float) else text
