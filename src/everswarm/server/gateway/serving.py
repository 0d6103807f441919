"""Whether an endpoint serves the model that it is configured for, told from its list of models. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from everswarm.server.gateway.profiles import REMOTE_PROFILES
from everswarm.settings import EndpointSettings

NAMED_MODELS = 3  # of those that are served, in a message
OLLAMA_PORT = 11434


class Serving(NamedTuple):
    """What the list of models says."""

    model: str  # to ask for; empty where it is not known
    problem: str = ""  # empty: it can be asked

    @property
    def is_served(self) -> bool:
        """Whether the model may be asked for."""
        return not self.problem


def serving(endpoint: EndpointSettings, served: Sequence[str]) -> Serving:
    """Return whether `endpoint` can be asked for its model.

    Args:
        endpoint: a complete entry of the table; without a model it takes the first that is served.
        served: ids from `GET /models`; none where no list can be read, and then the model counts as served.
    """
    model = endpoint.model
    if not model:
        if served:
            return Serving(served[0])
        return Serving("", "does not say which model it serves. Set model to its name")
    if _is_among(model, served) or (not served and not _is_ollama(endpoint)):  # Ollama always has a list
        return Serving(model)
    return Serving(model, f"does not serve '{model}'; {_offer(model, served)}. {_hint(endpoint)}")


def unreadable(status: int, body: bytes) -> str:
    """Return what is wrong with an answer to `GET /models` that lists no model; empty where it is an empty list.

    Such an endpoint may serve all the same, or be something else: only a request can tell.
    """
    if status != 200:
        return f"/models answers with {status}; does base_url end in /v1?"
    try:
        listed = json.loads(body)["data"]
    except (ValueError, TypeError, KeyError, RecursionError):
        listed = body
    if listed in ([], None):  # Ollama's empty list is null
        return ""
    return "/models answers with something that is no list of models; does base_url end in /v1?"


def _is_among(model: str, served: Sequence[str]) -> bool:
    """Say whether `model` is served. Ollama adds a tag; the Hugging Face router takes a provider behind a colon."""
    return model in served or f"{model}:latest" in served or model.rpartition(":")[0] in served


def _offer(model: str, served: Sequence[str]) -> str:
    if not served:
        return "it serves none yet"
    close = difflib.get_close_matches(model, served, n=NAMED_MODELS, cutoff=0.5)
    named = list(dict.fromkeys([*close, *served]))[:NAMED_MODELS]
    more = len(served) - len(named)
    return f"it serves {', '.join(named)}" + (f" (and {more} more)" if more > 0 else "")


def _hint(endpoint: EndpointSettings) -> str:
    profile = "ollama" if _is_ollama(endpoint) else endpoint.profile
    known = REMOTE_PROFILES.get(profile or "")
    alternative = f", or {known.hint.format(model=endpoint.model)}" if known and known.hint else ""
    return f"Set model to one that it serves{alternative}"


def _is_ollama(endpoint: EndpointSettings) -> bool:
    return endpoint.profile == "ollama" or urlsplit(endpoint.base_url).port == OLLAMA_PORT
