"""The model serving layer: which endpoint answers, what happens when it does not, and what it cost.

Takes chat payloads and the name of a role or model; gives answers in OpenAI's shape and usage rows.
Does not know who asks, nor how several models work on one request.
"""

from everswarm.server.gateway.routing import ServedModel
from everswarm.server.gateway.service import Answered, AnsweredStream, Gateway, GatewayDep
from everswarm.server.gateway.usage import Usage, record_usage

__all__ = ["Answered", "AnsweredStream", "Gateway", "GatewayDep", "ServedModel", "Usage", "record_usage"]
