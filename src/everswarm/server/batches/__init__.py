"""OpenAI's `/v1/files` and `/v1/batches`: work that nobody waits for, which parks until a quota refills.

Takes JSON lines of chat requests; gives JSON lines of answers within 24 hours, over restarts of the server. Knows
nothing of quotas: `swarm` answers each request as soon as the gateway lets it through.
"""

from everswarm.server.batches.files import UPLOAD_BODY_BYTES, UPLOAD_PATH
from everswarm.server.batches.runner import BatchRunner

__all__ = ["UPLOAD_BODY_BYTES", "UPLOAD_PATH", "BatchRunner"]
