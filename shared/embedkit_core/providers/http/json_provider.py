"""Base class of HTTP providers without an SDK, and its client, which sends JSON with httpx."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

from embedkit_core.common.errors import BadReplyError, ProviderError, TimedOutError
from embedkit_core.common.types import Batch, Reply
from embedkit_core.providers.base import Client
from embedkit_core.providers.http.decoding import ReplyReader
from embedkit_core.providers.http.provider import HTTPProvider
from embedkit_core.providers.http.refusals import CHECK_ADDRESS, Refusal, connection_error, shorten_message
from embedkit_core.providers.http.transport import open_transport
from embedkit_core.providers.secrets import Secret


class JSONProvider(HTTPProvider):
    """A model behind an API with a bearer key. A subclass builds the requests and reads replies and error responses.

    Attributes:
        oversized_hint: What else a reply may be that is larger than vectors of texts.
    """

    oversized_hint: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("httpx", "pydantic_core", "pybase64")

    address: str  # pyright: ignore[reportIncompatibleVariableOverride]  # set once, by the constructor

    @abstractmethod
    def request(self, fields: Mapping[str, Any], texts: list[str]) -> tuple[str, dict[str, Any]]:
        """Return the address and the body of a request.

        Args:
            fields: The fields of `request_body`, without the prompt.
            texts: The texts with their prompt.
        """

    @abstractmethod
    def read_reply(self, reader: ReplyReader, reply: Any, n_texts: int) -> Reply:
        """Return the vectors of a reply with HTTP 200.

        Args:
            reader: Decodes rows.
            reply: The JSON value, None if the body is not JSON.
            n_texts: Number of texts in the request.

        Raises:
            BadReplyError: The reply has another shape.
        """

    @abstractmethod
    def read_message(self, body: Any) -> str:
        """Return the message of an error response, "" if it has none; `body` is its JSON value."""

    @abstractmethod
    def to_error(self, refusal: Refusal, body: Any) -> ProviderError:
        """Return the error for an error response; `body` is its JSON value."""

    def connect(self) -> Client:
        """Open a client."""
        self.connection.check_not_lost()
        self.secret.reveal()
        return JSONClient(self)


class JSONClient:
    """Client with one httpx client for all requests."""

    def __init__(self, provider: JSONProvider) -> None:
        import httpx

        from embedkit_core.providers.http.bodies import limit_bodies

        self._limit_bodies = limit_bodies
        self._reader = ReplyReader()
        self._provider = provider
        self._timeout_error = httpx.TimeoutException
        self._connection_errors = (httpx.RequestError, OSError)  # httpcore passes errors of TLS while reading on
        self._transport = open_transport(provider.connection)

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        provider, fields, texts = self._provider, dict(batch.body), batch.texts_with_prompt()
        fields.pop("prompt", None)
        key = provider.secret.constant()
        url, body = provider.request(fields, texts)
        response = await self._post(batch, url, body, key)
        try:
            reply = self._reader.load(response.content)
        except ValueError:
            reply = None
        if response.status_code == 200:
            return provider.read_reply(self._reader, reply, len(texts))
        headers = {name.lower(): value for name, value in response.headers.items()}
        message = shorten_message(provider.read_message(reply))
        refusal = Refusal(
            *(provider.name, str(fields.get("model")), response.status_code, message, headers, texts),
            secrets=provider.connection.secrets_with(key),
            request_id=headers.get("x-request-id"),
        )
        raise provider.to_error(refusal, reply)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def _post(self, batch: Batch, url: str, body: dict[str, Any], key: Secret) -> Any:
        """Return the response to a request, read as a whole."""
        provider = self._provider
        self._limit_bodies(batch)
        try:
            return await self._transport.post(
                url,
                content=self._reader.dump(body),
                headers={
                    "content-type": "application/json",
                    "Authorization": f"Bearer {key.reveal()}",
                    **(provider.connection.authorization_header or {}),
                },
                timeout=batch.timeout,
            )
        except BadReplyError as error:
            if not (error.lasts and provider.oversized_hint):
                raise
            hinted = BadReplyError(f"{error}. {provider.oversized_hint}")
            hinted.lasts = True
            raise hinted from None
        except self._timeout_error:
            raise TimedOutError("Server did not respond in time. Increase timeout=.") from None
        except self._connection_errors as error:
            host, fix = urlsplit(provider.address).netloc, CHECK_ADDRESS if provider.endpoint else ""
            raise connection_error(host, error, fix) from None
