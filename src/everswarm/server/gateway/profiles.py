"""The endpoint table: what the settings say, with the gaps filled from ready profiles. Pure.

A profile knows an address and the models of the three web roles there. Whatever an entry says itself wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from everswarm.errors import ConfigurationError
from everswarm.settings import EndpointSettings, EngineSettings, Settings

EMBEDDED = "embedded"
SWARM = "everswarm"  # the model name that leaves the choice to the swarm
EMBEDDED_ANSWER_SECONDS = 600.0  # a whole answer on a slow processor, with others in front


@dataclass(frozen=True)
class Profile:
    """A kind of server."""

    base_url: str
    models: Mapping[str, str] = field(default_factory=dict)  # by role; none: it serves one, and says which
    api_key_env: str | None = None
    hint: str = ""  # what to do where a model is not served, besides setting another


REMOTE_PROFILES = {
    "hf": Profile(
        "https://router.huggingface.co/v1",
        models={
            "primary": "mistralai/Mistral-7B-Instruct-v0.3",
            "coordinator": "Qwen/Qwen2.5-7B-Instruct",
            "specialist": "meta-llama/Llama-3.1-8B-Instruct",
        },
        api_key_env="HF_TOKEN",
        hint="look for another at https://huggingface.co/models?inference_provider=all",
    ),
    "ollama": Profile(
        "http://127.0.0.1:11434/v1",
        models={
            "primary": "mistral:7b-instruct",
            "coordinator": "qwen2.5:7b-instruct",
            "specialist": "llama3.1:8b",
        },
        hint="`ollama pull {model}`",
    ),
    "vllm": Profile("http://127.0.0.1:8001/v1", hint="`vllm serve {model} --port 8001`"),  # 8000, its own, is ours
}


def expand(settings: Settings) -> list[EndpointSettings]:
    """Return the endpoint table, every entry complete; the earlier is preferred.

    An entry of the embedded engine has no address. An entry without a model takes what its server serves.

    Raises:
        ConfigurationError: two entries have one name, or an entry cannot be; names it and says what to change.
    """
    unbound = [name for name, role in settings.roles.items() if role.endpoint is None]
    written = settings.endpoints or ([EndpointSettings(profile=EMBEDDED)] if settings.engine.enabled else [])
    table = [entry for written_entry in written for entry in _fill(written_entry, settings.engine, unbound)]
    _check_names(table)
    _check_engine(table, settings.engine)
    bound = _bind_roles(table, settings)
    _check_models(bound, settings)
    return bound


def embedded_entry(engine: EngineSettings, written: EndpointSettings | None = None) -> EndpointSettings:
    """Return the complete entry of the embedded engine; what is not `written` comes from the engine's settings."""
    entry = written or EndpointSettings(profile=EMBEDDED)
    defaults = {"timeout_seconds": EMBEDDED_ANSWER_SECONDS, "answer_tokens": engine.answer_tokens}
    return _with(entry, defaults, name=entry.name or EMBEDDED, model=entry.model or engine.model)


def _fill(entry: EndpointSettings, engine: EngineSettings, unbound: list[str]) -> list[EndpointSettings]:
    says_roles = "roles" in entry.model_fields_set
    if not says_roles:  # it serves all roles that name no other endpoint
        entry = entry.model_copy(update={"roles": unbound})
    if entry.profile is None:
        return [entry]
    if entry.profile == EMBEDDED:
        return [embedded_entry(engine, entry)]
    name = entry.name or entry.profile
    profile = REMOTE_PROFILES[entry.profile]
    defaults = {"base_url": profile.base_url, "api_key_env": profile.api_key_env}
    if entry.model or not profile.models:
        return [_with(entry, defaults, name=name)]
    if not entry.roles:
        raise ConfigurationError(
            f"The endpoint '{name}' has no roles, so its profile '{entry.profile}' gives it no model. "
            "Set roles, or model."
        )
    own_name = bool(entry.name) and len(entry.roles) == 1
    unknown = [role for role in entry.roles if role not in profile.models]
    if unknown and says_roles:
        raise ConfigurationError(
            f"The endpoint '{name}' should serve '{unknown[0]}', for which '{entry.profile}' knows no model. "
            f"Write an [[endpoints]] for it with a model, or set endpoint in [roles.{unknown[0]}]."
        )
    return [
        _with(
            entry,
            defaults,
            name=name if own_name else f"{name}-{role}",
            model=profile.models[role],
            roles=[role],
        )
        for role in entry.roles
        if role in profile.models
    ]


def _with(entry: EndpointSettings, defaults: Mapping[str, Any], **fixed: Any) -> EndpointSettings:
    """Return `entry` with `fixed`, and with those of `defaults` that it does not say itself."""
    said = {name for name in entry.model_fields_set if getattr(entry, name) != ""}
    return entry.model_copy(update={**{name: defaults[name] for name in defaults if name not in said}, **fixed})


def _bind_roles(table: list[EndpointSettings], settings: Settings) -> list[EndpointSettings]:
    """Give each role that names its endpoint to that endpoint."""
    bound = {name: list(entry.roles) for entry in table if (name := entry.name)}
    for role, wanted in settings.roles.items():
        if wanted.endpoint is None:
            continue
        if wanted.endpoint not in bound:
            raise ConfigurationError(
                f"The role '{role}' names the endpoint '{wanted.endpoint}', and there is none. "
                f"There are: {', '.join(bound) or 'none'}."
            )
        bound[wanted.endpoint].append(role)
    return [entry.model_copy(update={"roles": list(dict.fromkeys(bound[entry.name]))}) for entry in table]


def _check_names(table: list[EndpointSettings]) -> None:
    names = [entry.name for entry in table]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise ConfigurationError(f"Two endpoints have the name '{double}'. Give each [[endpoints]] a name of its own.")


def _check_models(table: list[EndpointSettings], settings: Settings) -> None:
    """Refuse a model that is named like something else that a chat may ask for."""
    for entry in table:
        if entry.model == SWARM:
            raise ConfigurationError(
                f"The model of the endpoint '{entry.name}' is named '{SWARM}', and a chat for '{SWARM}' leaves the "
                "choice to the swarm. Rename the model on its server."
            )
        if entry.model in settings.roles and entry.model not in entry.roles:
            raise ConfigurationError(
                f"The model of the endpoint '{entry.name}' is named '{entry.model}' like a role that the endpoint "
                f"does not serve, and a chat for that role would go there. Rename the model on its server, or add "
                f"'{entry.model}' to the endpoint's roles."
            )


def _check_engine(table: list[EndpointSettings], engine: EngineSettings) -> None:
    embedded = [entry.name for entry in table if entry.profile == EMBEDDED]
    if embedded and not engine.enabled:
        raise ConfigurationError(
            f"The endpoint '{embedded[0]}' is the embedded engine, and `enabled = false` in [engine] forbids it. "
            "Remove one of the two."
        )
    if len(embedded) > 1:
        raise ConfigurationError(
            f"The endpoints '{embedded[0]}' and '{embedded[1]}' are both the embedded engine, which runs once. "
            "Remove one; for a second model run a server of its own, such as llama-server."
        )
