"""A chat model behind any address that speaks the OpenAI protocol: the HF router, vLLM, Ollama, llama-server.

Bound to one event loop: that of its first call.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from everswarm.errors import UnavailableError
from everswarm.llm.protocol import Chunk, Payload
from everswarm.llm.upstream_errors import refusal

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 5.0
CONNECTIONS = 256  # to one endpoint
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
    ) -> None:
        """Prepare a client; nothing is opened yet.

        Args:
            base_url: address that ends in /v1; a function where it may change, as when an engine starts again.
            name: what errors call it.
            api_key: credential, sent as a bearer token.
            timeout_seconds: of a whole answer; of the silence between two pieces when streaming.
        """
        self._base_url = base_url
        self.name = name
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def chat(self, payload: Payload) -> dict[str, Any]:
        """Return the whole answer; see `ChatModel.chat`."""
        timeout = aiohttp.ClientTimeout(total=self._timeout_seconds, sock_connect=CONNECT_SECONDS)
        async with self._answer({**payload, "stream": False}, timeout) as response:
            body = await response.read()
        with self._failures_explained():
            answer = json.loads(body)
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            raise UnavailableError(f"{self.name} answered with something that is no chat completion.")
        return answer

    async def stream(self, payload: Payload) -> AsyncGenerator[Chunk, None]:
        """Yield the answer piece by piece; see `ChatModel.stream`."""
        timeout = aiohttp.ClientTimeout(sock_read=self._timeout_seconds, sock_connect=CONNECT_SECONDS)
        async with self._answer({**payload, "stream": True}, timeout) as response:
            async for line in _lines(response.content):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                with self._failures_explained():
                    chunk = json.loads(data)
                if "error" in chunk:
                    raise UnavailableError(f"{self.name} failed while answering: {_message(chunk['error'])}")
                yield chunk
        raise UnavailableError(f"{self.name} stopped in the middle of its answer.")

    async def probe(self) -> None:
        """Return if the endpoint is there and takes our credential; costs no tokens.

        Raises:
            UnavailableError: it does not answer, or refuses the credential.
        """
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        with self._failures_explained():
            async with self._open().get(f"{self._url()}/models", timeout=timeout) as response:
                body = await response.read()
                if response.status in {401, 403} or response.status >= 500:
                    raise refusal(response.status, body, response.headers, endpoint=self.name)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @contextlib.asynccontextmanager
    async def _answer(self, payload: Payload, timeout: aiohttp.ClientTimeout) -> AsyncIterator[aiohttp.ClientResponse]:
        with self._failures_explained():
            async with await self._post(_encode(payload), timeout) as response:
                if response.status >= 400:
                    raise refusal(response.status, await response.read(), response.headers, endpoint=self.name)
                yield response

    async def _post(self, body: bytes, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        """Send the request; once more if the connection that was kept open turns out to be closed (llama.cpp's are)."""
        url = f"{self._url()}/chat/completions"
        try:
            return await self._open().post(url, data=body, timeout=timeout)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            return await self._open().post(url, data=body, timeout=timeout)

    def _url(self) -> str:
        return (self._base_url if isinstance(self._base_url, str) else self._base_url()).rstrip("/")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                headers={"Content-Type": "application/json", **self._headers},
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                auto_decompress=True,
                trust_env=urlsplit(self._url()).hostname not in LOOPBACK,  # no proxy on the way to ourselves
            )
        return self._session

    @contextlib.contextmanager
    def _failures_explained(self) -> Iterator[None]:
        """Say in our words what went wrong on the wire."""
        try:
            yield
        except TimeoutError as error:
            raise UnavailableError(f"{self.name} did not answer within {self._timeout_seconds:.0f} s.") from error
        except aiohttp.InvalidURL as error:
            raise UnavailableError(f"{self.name} has an address that is no URL: {error}.") from error
        except aiohttp.ClientConnectorError as error:
            number = error.errno or 0  # negative where the name was not found
            reason = os.strerror(number) if number > 0 else error.os_error.strerror or error.os_error
            raise UnavailableError(f"{self.name} does not answer: {reason}.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(f"{self.name} broke off: {str(error) or type(error).__name__}.") from error
        except ValueError as error:  # JSON that does not parse
            raise UnavailableError(f"{self.name} answered with something that is no JSON.") from error


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines of any length; the reader's own `readline` refuses long ones."""
    rest = b""
    async for data in content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


def _encode(payload: Payload) -> bytes:
    return json.dumps(dict(payload), ensure_ascii=False, separators=(",", ":")).encode()


def _message(error: object) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
