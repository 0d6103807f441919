"""The model serving layer: which endpoint answers, when, what happens when it does not, and what it cost.

Takes chat payloads and the name of a role or model; gives answers in OpenAI's shape. Never crosses a quota, and lets
requests wait for one. Does not know how several models work on one request, nor what becomes of the answers.
"""

from everswarm.server.gateway.calls import Answered, AnsweredStream, CacheUse, Call, most_answer_tokens
from everswarm.server.gateway.routing import ServedModel
from everswarm.server.gateway.service import Gateway, GatewayDep
from everswarm.server.gateway.usage import Usage, record_usage

__all__ = [
    "Answered",
    "AnsweredStream",
    "CacheUse",
    "Call",
    "Gateway",
    "GatewayDep",
    "ServedModel",
    "Usage",
    "most_answer_tokens",
    "record_usage",
]
