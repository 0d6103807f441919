"""What every model is to its callers: something that takes a chat payload in OpenAI's shape and answers in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

Payload = Mapping[str, Any]  # the body of POST /v1/chat/completions
Chunk = dict[str, Any]  # a `chat.completion.chunk`


class ChatModel(Protocol):
    """A model that answers chats."""

    async def chat(self, payload: Payload, *, heard: dict[str, str] | None = None) -> dict[str, Any]:
        """Return the whole answer, a `chat.completion`.

        `heard` is filled with the HTTP headers of the answer, also of a refusal; their names in lower case.

        Raises:
            BadRequestError: the model refuses the payload; its words are in the text.
            QuotaSpentError: no more requests until later.
            UnavailableError: it does not answer.
        """

    def stream(self, payload: Payload, *, heard: dict[str, str] | None = None) -> AsyncGenerator[list[Chunk], None]:
        """Yield the answer piece by piece, each time what came together.

        Closing the generator ends the work upstream. Raises as `chat` does.
        """

    async def close(self) -> None:
        """Give back connections."""
