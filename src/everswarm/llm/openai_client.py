"""A chat model behind any address that speaks the OpenAI protocol: the HF router, vLLM, Ollama, llama-server.

Bound to one event loop: that of its first call.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from everswarm.errors import UnavailableError
from everswarm.llm import wire
from everswarm.llm.protocol import Chunk, Payload
from everswarm.llm.upstream_errors import refusal

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 5.0
CONNECTIONS = 256  # to one endpoint
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError)  # the last: JSON that does not parse
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class OpenAIClient:
    """Chats with one endpoint over HTTP."""

    def __init__(
        self,
        base_url: str | Callable[[], str],
        *,
        name: str = "the endpoint",
        api_key: str | None = None,
        timeout_seconds: float = 120.0,
        connect_seconds: float = CONNECT_SECONDS,
        sends_again: bool = False,
    ) -> None:
        """Prepare a client; nothing is opened yet.

        Args:
            base_url: address that ends in /v1; a function where it may change, as when an engine starts again.
            name: what errors call it.
            api_key: credential, sent as a bearer token.
            timeout_seconds: of a whole answer; of the silence between two pieces when streaming.
            connect_seconds: until a connection stands.
            sends_again: whether a request is sent once more where a connection that was kept open turns out to be
                closed; only for who does not charge for work that nobody saw.
        """
        self._base_url = base_url
        self.name = name
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._sends_again = sends_again
        self._timeout_seconds = timeout_seconds
        self._whole = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=connect_seconds)
        self._pieces = aiohttp.ClientTimeout(sock_read=timeout_seconds, sock_connect=connect_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._known_base_url = ""
        self._known_chat_url = URL()

    async def chat(self, payload: Payload, *, heard: dict[str, str] | None = None) -> dict[str, Any]:
        """Return the whole answer; see `ChatModel.chat`."""
        try:
            async with await self._post({**payload, "stream": False}, self._whole) as response:
                body = await response.read()
                self._check(response, body, heard)
            answer = wire.loads(body)
        except _FAILURES as error:
            raise self._explained(error) from error
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            raise UnavailableError(f"{self.name} answered with something that is no chat completion.")
        return answer

    async def stream(
        self, payload: Payload, *, heard: dict[str, str] | None = None
    ) -> AsyncGenerator[list[Chunk], None]:
        """Yield the answer piece by piece; see `ChatModel.stream`."""
        events = Events(self.name)
        try:
            async with await self._post({**payload, "stream": True}, self._pieces) as response:
                self._check(response, b"" if response.status < 400 else await response.read(), heard)
                async for data in response.content.iter_any():
                    chunks = events.take(data)
                    if chunks:
                        yield chunks
                    if events.problem is not None:
                        raise events.problem
                    if events.are_over:
                        return
        except _FAILURES as error:
            raise self._explained(error) from error
        events.take(b"\n")  # a last line that has no end
        if not events.are_over:
            raise UnavailableError(f"{self.name} stopped in the middle of its answer.")

    async def probe(self) -> list[str]:
        """Return the ids of the models that the endpoint serves; costs no tokens.

        Empty where it has no list that can be read: not every server has one.

        Raises:
            UnavailableError: it does not answer, or refuses the credential.
        """
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        try:
            async with self._open().get(f"{self._url()}/models", timeout=timeout) as response:
                body = await response.read()
        except TimeoutError as error:
            raise UnavailableError(f"{self.name} did not answer within {PROBE_SECONDS:.0f} s.") from error
        except _FAILURES as error:
            raise self._explained(error) from error
        if response.status in {401, 403} or response.status >= 500:
            raise refusal(response.status, body, response.headers, endpoint=self.name)
        return _model_ids(body) if response.status == 200 else []

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _check(self, response: aiohttp.ClientResponse, body: bytes, heard: dict[str, str] | None) -> None:
        if heard is not None:
            heard.update([(name.lower(), value) for name, value in response.headers.items()])
        if response.status >= 400:
            raise refusal(response.status, body, response.headers, endpoint=self.name)

    async def _post(self, payload: Payload, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        """Send the request; once more, if allowed, where the connection turns out to be closed (llama.cpp's are)."""
        body = aiohttp.BytesPayload(wire.dumps(payload), content_type="application/json")
        url = self._chat_url()
        session = self._open()
        try:
            return await session.post(url, data=body, timeout=timeout)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            if not self._sends_again:
                raise
            return await session.post(url, data=body, timeout=timeout)

    def _chat_url(self) -> URL:
        """Return the address to post to, read once for each that there is."""
        base_url = self._url()
        if base_url != self._known_base_url:
            self._known_base_url, self._known_chat_url = base_url, URL(f"{base_url}/chat/completions")
        return self._known_chat_url

    def _url(self) -> str:
        return (self._base_url if isinstance(self._base_url, str) else self._base_url()).rstrip("/")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                headers={"Content-Type": "application/json", **self._headers},
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
                trust_env=urlsplit(self._url()).hostname not in LOOPBACK,  # no proxy on the way to ourselves
            )
        return self._session

    def _explained(self, error: Exception) -> UnavailableError:
        """Say in our words what went wrong on the wire."""
        match error:
            case TimeoutError():
                text = f"{self.name} did not answer within {self._timeout_seconds:.0f} s."
            case aiohttp.InvalidURL():
                text = f"{self.name} has an address that is no URL: {error}."
            case aiohttp.ClientConnectorError():
                number = error.errno or 0  # negative where the name was not found
                reason = os.strerror(number) if number > 0 else error.os_error.strerror or error.os_error
                text = f"{self.name} does not answer: {reason}."
            case aiohttp.ClientError() | OSError():
                text = f"{self.name} broke off: {str(error) or type(error).__name__}."
            case _:
                text = f"{self.name} answered with something that is no JSON."
        return UnavailableError(text)


class Events:
    """Reads server-sent events as they come off the wire, however they are cut."""

    def __init__(self, name: str) -> None:
        """`name` is what errors call the endpoint."""
        self.are_over = False
        self.problem: UnavailableError | None = None  # behind the chunks that were read before it
        self._name = name
        self._rest = b""

    def take(self, data: bytes) -> list[Chunk]:
        """Return the chunks that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")  # aiohttp's own `readline` refuses long ones
        chunks: list[Chunk] = []
        for line in lines:
            if line.startswith(b"data:"):
                text = line[5:].strip()
                if text == b"[DONE]":
                    self.are_over = True
                    break
                chunk = self._parse(text)
                if chunk is None:
                    break
                chunks.append(chunk)
        return chunks

    def _parse(self, text: bytes) -> Chunk | None:
        try:
            chunk = wire.loads(text)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            self.problem = UnavailableError(f"{self._name} answered with something that is no JSON object.")
        elif "error" in chunk:
            self.problem = UnavailableError(f"{self._name} failed while answering: {_message(chunk['error'])}")
        else:
            return chunk
        return None


def _message(error: object) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]


def _model_ids(body: bytes) -> list[str]:
    try:
        listed = wire.loads(body)["data"]
        return [str(model["id"]) for model in listed]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
