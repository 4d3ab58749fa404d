"""Client of the Gemini API and of Vertex AI: the SDK sends the request, the reply is decoded here.

The SDK's models process every number in Python. Its own retries are off, and it uses the HTTP client of this library,
so that headers, proxy, certificates and body limits are those of the other providers.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embedkit_core.common.errors import AuthenticationError, BadReplyError, TimedOutError, UnavailableError
from embedkit_core.common.types import Batch, Reply
from embedkit_core.providers.google.addresses import GLOBAL, PROJECT_VARIABLE
from embedkit_core.providers.google.base import KEY_VARIABLE, GoogleProvider
from embedkit_core.providers.google.refusals import read_error, to_provider_error, with_retry_info
from embedkit_core.providers.google.wire import BatchEmbedContents, Predict, Wire
from embedkit_core.providers.http.decoding import NUMPY_FLOAT32, ReplyReader
from embedkit_core.providers.http.provider import cache_platform_names
from embedkit_core.providers.http.public_sdk import RawResponse, warn_of_public_sdk
from embedkit_core.providers.http.refusals import CHECK_ADDRESS, Refusal, connection_error, shorten_message
from embedkit_core.providers.secrets import PLACEHOLDER_KEY, Secret

if TYPE_CHECKING:
    from ssl import SSLContext

STATISTICS = {"truncated", "token_count"}
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
# The SDK sends the timeout as X-Server-Timeout, and the Gemini API refuses less than 10 seconds. Source:
# github.com/livekit/agents/issues/3723, read 2026-11-30.
MIN_SERVER_TIMEOUT = 10
NO_CREDENTIALS = (
    "There are no Google Cloud credentials. Run `gcloud auth application-default login`, set the environment variable "
    f"GOOGLE_APPLICATION_CREDENTIALS, or pass api_key=, or set {KEY_VARIABLE}."
)
NO_PROJECT = f"The Google Cloud credentials name no project. Set the environment variable {PROJECT_VARIABLE}."


class GoogleClient:
    """Client that uses the SDK's requests and reads replies as JSON, or else its public `embed_content`."""

    def __init__(self, provider: GoogleProvider) -> None:
        from embedkit_core.providers.http.bodies import limit_bodies

        self._genai: Any = import_module("google.genai")
        # The SDK depends on httpx until version 2, then on httpx2.
        self._httpx: Any = import_module("httpx" if self._genai.__version__.startswith("2.") else "httpx2")
        self._errors: Any = import_module("google.genai.errors")
        self._auth_errors: Any = import_module("google.auth.exceptions")
        cache_platform_names()
        self._limit_bodies = limit_bodies
        self._reader = ReplyReader()
        self._provider = provider
        self._timeout_error = self._httpx.TimeoutException
        self._connection_errors = (self._httpx.RequestError, OSError)
        self._credentials: Any = None
        self._project = provider.place.project
        if provider.uses_credentials:
            self._credentials, self._project = self._authorize()
        tls = provider.connection.ssl_context(self._httpx.create_ssl_context)
        tls = self._httpx.create_ssl_context() if tls is True else tls
        self._transport = self._open_transport(tls)
        self._sdk: Any = self._open_sdk(tls)
        self._send = self._send_private
        self._api: Any = getattr(self._sdk, "_api_client", None)
        if not hasattr(self._api, "async_request"):
            warn_of_public_sdk("google-genai", "client that replies with JSON")
            self._send = self._send_public

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        texts = batch.texts_with_prompt()
        key = self._provider.secret.constant()
        self._limit_bodies(batch)
        try:
            response = await self._send(batch, texts, key)
        except self._timeout_error:
            raise TimedOutError("Server did not respond in time. Increase timeout=.") from None
        except self._connection_errors as error:
            host, fix = urlsplit(self._provider.place.host).netloc, CHECK_ADDRESS if self._provider.endpoint else ""
            raise connection_error(host, error, fix) from None
        except self._auth_errors.GoogleAuthError as error:
            kind, retryable = type(error).__name__, bool(getattr(error, "retryable", False))
            retryable = retryable or isinstance(error, self._auth_errors.TransportError)
        else:
            if response.status != 200:
                raise self._refused(response, batch.body["model"], texts, key)
            return self._decode(response.body, self._provider.wire(batch.body["model"]), len(texts))
        if retryable:
            raise UnavailableError(f"Google Cloud credentials could not be refreshed ({kind}).")
        raise AuthenticationError(f"Google Cloud credentials were refused ({kind}). {self._provider.credentials_fix}")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    def _open_transport(self, tls: SSLContext) -> Any:
        """Return the HTTP client of the SDK."""
        from embedkit_core.providers.http.bodies import ACCEPT_ENCODING, limiting_hook

        connection, httpx = self._provider.connection, self._httpx

        async def add_headers(request: Any) -> None:  # here, because the SDK extends a User-Agent
            request.headers.update(connection.headers)

        return httpx.AsyncClient(
            headers={"accept-encoding": ACCEPT_ENCODING},
            event_hooks={"request": [add_headers], "response": [limiting_hook(httpx.AsyncByteStream)]},
            proxy=connection.proxy,
            follow_redirects=False,  # a redirect would send the user's headers to another host
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            verify=tls,
        )

    def _open_sdk(self, tls: SSLContext) -> Any:
        """Return the SDK's client. Each request has its own key."""
        place = self._provider.place
        options = self._genai.types.HttpOptions(
            base_url=place.host,
            api_version=place.version,
            httpx_async_client=self._transport,
            # Without them, the SDK loads the system's certificates for two other clients, which are never used.
            client_args={"verify": tls},
            async_client_args={"ssl": tls},
        )
        if self._credentials is None:
            return self._genai.Client(vertexai=self._provider.is_vertex, api_key=PLACEHOLDER_KEY, http_options=options)
        return self._genai.Client(
            vertexai=True,
            credentials=self._credentials,
            project=self._project,
            location=place.location or GLOBAL,
            http_options=options,
        )

    def _authorize(self) -> tuple[Any, str]:
        """Return Application Default Credentials and the project.

        This may ask Google's metadata server, so it runs before the first request, on a thread of its own. The SDK
        refreshes an expired token on another thread.
        """
        place, flaw = self._provider.place, ""
        credentials = project = None
        try:
            credentials, project = import_module("google.auth").default(scopes=[SCOPE])
        except self._auth_errors.GoogleAuthError:
            flaw = NO_CREDENTIALS
        project = place.project or project
        if flaw or not project:
            raise AuthenticationError(flaw or NO_PROJECT)
        return credentials, project

    def _path(self, model: str) -> str:
        """Return the path of a model; one that names a project keeps it."""
        path, location = self._provider.model_path(model), self._provider.place.location or GLOBAL
        is_complete = self._project is None or path.startswith("projects/")
        return path if is_complete else f"projects/{self._project}/locations/{location}/{path}"

    def _http_options(self, batch: Batch, key: Secret) -> dict[str, Any]:
        """Return the SDK's options of one request."""
        headers = {} if self._credentials is not None else {"x-goog-api-key": key.reveal()}
        if batch.timeout is not None:
            headers["X-Server-Timeout"] = str(max(ceil(batch.timeout), MIN_SERVER_TIMEOUT))
        timeout = None if batch.timeout is None else max(1, ceil(batch.timeout * 1000))
        return {"headers": headers, "timeout": timeout}

    async def _send_private(self, batch: Batch, texts: list[str], key: Secret) -> RawResponse:
        """Send a request through the SDK's internal client."""
        model, fields = _split(batch.body)
        wire = self._provider.wire(model)
        path, body = f"{self._path(model)}:{wire.method}", wire.body(model, fields, texts)
        try:
            response = await self._api.async_request("post", path, body, self._http_options(batch, key))
        except self._errors.APIError as error:
            return self._raw(error)
        return RawResponse(200, response.headers, response.body.encode())

    async def _send_public(self, batch: Batch, texts: list[str], key: Secret) -> RawResponse:
        """Send a request through the SDK's `embed_content`, and return the JSON from which it made its reply.

        With a list of strings, a multimodal model would return one vector for all of them.
        """
        types, (model, fields) = self._genai.types, _split(batch.body)
        try:
            reply = await self._sdk.aio.models.embed_content(
                model=self._path(model),
                contents=[types.Content(parts=[types.Part(text=text)]) for text in texts],
                config=types.EmbedContentConfig.model_validate(
                    {**fields, "httpOptions": self._http_options(batch, key)}
                ),
            )
        except self._errors.APIError as error:
            return self._raw(error)
        except ValueError:
            raise BadReplyError("Server response could not be read by the google-genai package") from None
        return RawResponse(200, {}, self._reader.dump(_as_reply(reply, self._provider.wire(model))))

    @staticmethod
    def _raw(error: Any) -> RawResponse:
        """Return the response of an SDK error."""
        response = error.response
        return RawResponse(response.status_code, response.headers, response.content)

    def _refused(self, response: RawResponse, model: str, texts: list[str], key: Secret) -> Exception:
        """Return the error of a response that is not a success."""
        provider = self._provider
        try:
            error = read_error(self._reader.load(response.body))
        except ValueError:
            error = {}
        message = shorten_message(str(error.get("message") or ""))
        headers = with_retry_info({name.lower(): value for name, value in response.headers.items()}, error, message)
        secrets = provider.connection.secrets_with(key)
        if self._credentials is not None and self._credentials.token:
            secrets.append(self._credentials.token)
        return to_provider_error(
            Refusal(provider.name, model, response.status, message, headers, texts, secrets=secrets),
            error,
            variable=KEY_VARIABLE,
            credentials=provider.credentials_fix,
        )

    def _decode(self, body: bytes, wire: type[Wire], n_texts: int) -> Reply:
        try:
            vectors, tokens, truncated = wire.read(self._reader.load(body))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadReplyError("Server response has no embeddings") from None
        reply = self._reader.read_rows(vectors, n_texts, NUMPY_FLOAT32, tokens)
        return Reply(reply.vectors, tokens, truncated)


def _split(body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the model and the other fields of a provider's body; the prompt is in the texts."""
    return body["model"], {name: value for name, value in body.items() if name not in ("model", "prompt")}


def _as_reply(reply: Any, wire: type[Wire]) -> dict[str, Any]:
    """Return a reply of the SDK's public method in the shape of the provider's method."""
    usage = None
    if (metadata := getattr(reply, "usage_metadata", None)) is not None:
        usage = {"promptTokenCount": metadata.prompt_token_count}
    rows = []
    for embedding in reply.embeddings or []:
        statistics = embedding.statistics
        found = {} if statistics is None else statistics.model_dump(exclude_none=True, include=STATISTICS)
        rows.append({"values": embedding.values, "statistics": found})
    if wire is Predict:
        return {"predictions": [{"embeddings": row} for row in rows]}
    if wire is BatchEmbedContents or not rows:
        return {"embeddings": rows, "usageMetadata": usage}
    [row] = rows
    return {"embedding": row, "usageMetadata": usage, "truncated": row["statistics"].get("truncated")}
