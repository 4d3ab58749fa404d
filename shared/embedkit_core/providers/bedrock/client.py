"""Client of Amazon Bedrock: `invoke_model` of AWS's SDK on threads, as many as there are requests in flight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    EmbedKitError,
    ProviderError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.common.threads import WorkerPool, off_loop
from embedkit_core.common.types import Batch, Reply
from embedkit_core.common.vectors import NUMPY_DTYPES, DType
from embedkit_core.providers.bedrock.addresses import own_region
from embedkit_core.providers.bedrock.credentials import Chain
from embedkit_core.providers.bedrock.refusals import CREDENTIALS, error_code, to_provider_error
from embedkit_core.providers.bedrock.transport import MAX_CONNECTIONS, Transport
from embedkit_core.providers.bedrock.wires import Wire
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.http.decoding import ReplyReader, read_tokens
from embedkit_core.providers.http.public_sdk import RawResponse
from embedkit_core.providers.http.refusals import CHECK_ADDRESS, Refusal, connection_error, shorten_message
from embedkit_core.providers.secrets import PLACEHOLDER_KEY, Hidden, Secret, reveal

SERVICE = "bedrock-runtime"
TOKEN_HEADER = "x-amzn-bedrock-input-token-count"  # noqa: S105
CUSTOM_REGION = "us-east-1"  # for signatures at an address that is not one of AWS, if no region is set
JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Target:
    """Model to which a client sends, and how it gets there.

    Attributes:
        model: ID or ARN of the model.
        wire: Its requests and replies.
        address: Address of the user or the environment, None for that of the region.
        region: Region, None for that of the AWS profile.
        token: Bearer token, None to sign requests with credentials of the chain.
        chain: Where credentials are looked for.
        connection: Headers, proxy and certificates of the user.
    """

    model: str
    wire: Wire
    address: str | None
    region: str | None
    token: Secret | None
    chain: Chain
    connection: Connection


class BedrockClient:
    """Client that runs the SDK on threads of its own, and reads replies as bytes."""

    def __init__(self, target: Target) -> None:
        """Open the SDK's client.

        Raises:
            AuthenticationError: The AWS configuration is invalid.
            BadRequestError: There is no region, or the configuration has another address.
        """
        from botocore.exceptions import BotoCoreError

        self._target = target
        self._reader = ReplyReader()
        self._threads = WorkerPool("embedkit-bedrock", MAX_CONNECTIONS)
        flaw = ""
        try:
            self._open_sdk()
        except BotoCoreError as error:
            flaw = type(error).__name__
        if flaw:
            raise AuthenticationError(f"The AWS configuration cannot be used ({flaw}). {CREDENTIALS}")

    def _open_sdk(self) -> None:
        import botocore
        import botocore.config

        target = self._target
        self._session = session = target.chain.open_session()
        region = target.region or session.get_config_variable("region")
        address = target.address
        region = region or (CUSTOM_REGION if address is not None else None)
        if region is None:
            raise BadRequestError(
                f"No AWS region for {target.model}. Set the environment variable AWS_REGION, a region in the AWS "
                "profile, or base_url='https://bedrock-runtime.REGION.amazonaws.com'."
            )
        signs = target.token is None and target.connection.authorization_header is None
        config = botocore.config.Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            signature_version=None if signs else botocore.UNSIGNED,  # without a search for credentials
            parameter_validation=False,
        )
        self._sdk: Any = session.create_client(SERVICE, region_name=region, endpoint_url=address, config=config)
        self._host = urlsplit(self._sdk.meta.endpoint_url).netloc
        if address is None and own_region(self._sdk.meta.endpoint_url) is None:
            raise BadRequestError(
                f"The AWS configuration sends requests to {self._host}. Pass that address as base_url=, so that its "
                "vectors have cache keys of their own."
            )
        ca_bundle = session.get_config_variable("ca_bundle")
        self._transport = Transport(self._sdk.meta.endpoint_url, target.connection, ca_bundle)
        events = self._sdk.meta.events
        events.register(f"before-call.{SERVICE}.InvokeModel", self._transport.add_headers)
        events.register(f"before-send.{SERVICE}.InvokeModel", self._transport.send)

    async def embed(self, batch: Batch) -> Reply:
        """Send one request on a thread and decode its reply there."""
        token = None if self._target.token is None else self._target.token.constant()
        return await off_loop(partial(self._embed, batch, token), self._threads)

    async def aclose(self) -> None:
        """Close idle connections, and end the threads after their requests."""
        self._threads.stop(timeout=0)
        self._transport.close()

    def _embed(self, batch: Batch, token: Secret | None) -> Reply:
        response = self._invoke(batch, token)
        if isinstance(response, ProviderError):
            raise response
        if not 200 <= response.status < 300:
            raise self._refusal(response, batch, token)
        return self._decode(response, batch)

    def _invoke(self, batch: Batch, token: Secret | None) -> RawResponse | ProviderError:
        """Send a request. Return the response, or the error if there is none.

        The exceptions of the SDK hold the request with its key, so none is the context of another error.
        """
        wire, transport = self._target.wire, self._transport
        fields = {name: value for name, value in batch.body.items() if name not in ("model", "prompt")}
        failure: ProviderError | None = None
        transport.begin(batch, self._authorization(token))
        try:
            self._sdk.invoke_model(
                modelId=self._target.model,
                body=self._reader.dump(wire.encode(fields, batch.texts_with_prompt())),
                contentType=JSON_TYPE,
                accept=JSON_TYPE,
            )
        except ProviderError as error:
            failure = error.with_traceback(None)
        except Exception as error:
            if transport.response is None:
                failure = self._to_error(error)
        return failure or transport.response or ProviderError(f"{self._target.model} sent no response")

    def _authorization(self, token: Secret | None) -> Hidden:
        header = Hidden(self._target.connection.authorization_header)
        if reveal(header) is not None:
            return Hidden(reveal(header)["Authorization"])
        return Hidden(None if token is None else f"Bearer {token.reveal()}")

    def _to_error(self, error: Exception) -> ProviderError:
        """Return the error for a request without a response."""
        import urllib3.exceptions
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        name = type(error).__name__
        if isinstance(error, EmbedKitError):
            return ProviderError(str(error))
        if isinstance(error, ClientError):  # of the service that issues credentials
            return AuthenticationError(f"AWS issued no credentials ({error.operation_name} failed). {CREDENTIALS}")
        if isinstance(error, HTTPClientError):
            return UnavailableError(f"AWS credentials could not be loaded ({name})")
        if name == "NoCredentialsError":
            return AuthenticationError(
                "No AWS credentials were found. Pass a Bedrock API key as api_key=, or set AWS_BEARER_TOKEN_BEDROCK, "
                "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        if isinstance(error, BotoCoreError):
            return AuthenticationError(f"AWS credentials could not be loaded ({name}). {CREDENTIALS}")
        unconnected = isinstance(error, urllib3.exceptions.NewConnectionError)  # a TimeoutError before urllib3 2
        if isinstance(error, urllib3.exceptions.TimeoutError) and not unconnected:
            return TimedOutError("Server did not respond in time. Increase timeout=.")
        if isinstance(error, (urllib3.exceptions.HTTPError, OSError)):
            fix = CHECK_ADDRESS if self._target.address else "Check AWS_REGION and the network."
            return connection_error(self._host, error, fix)
        return ProviderError(f"The request to {self._target.model} failed with {name}")

    def _refusal(self, response: RawResponse, batch: Batch, token: Secret | None) -> ProviderError:
        try:
            loaded = self._reader.load(response.body)
        except ValueError:
            loaded = None
        reply = loaded if isinstance(loaded, dict) else {}
        message = reply.get("message") or reply.get("Message") or ""
        refusal = Refusal(
            *("bedrock", self._target.model, response.status, shorten_message(str(message)), response.headers),
            texts=batch.texts_with_prompt(),
            secrets=[
                *self._target.connection.secrets_with(token or Secret(PLACEHOLDER_KEY)),
                *self._chain_secrets(),
            ],
            request_id=response.headers.get("x-amzn-requestid"),
        )
        return to_provider_error(refusal, error_code(response.headers, reply))

    def _chain_secrets(self) -> list[str]:
        """Return the keys of the session, which a refused signature may repeat."""
        if self._target.token is not None or (credentials := self._session.get_credentials()) is None:
            return []
        try:
            return [part for part in credentials.get_frozen_credentials() if isinstance(part, str)]
        except Exception:
            return []

    def _decode(self, response: RawResponse, batch: Batch) -> Reply:
        wire, kind = self._target.wire, "float"
        if wire.type_field is not None:
            [kind] = batch.body[wire.type_field]
        try:
            reply = self._reader.load(response.body)
            rows = wire.rows(reply, kind)
            if not isinstance(rows, list):
                raise TypeError("no list of rows")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadReplyError(f"Server response has no embeddings of type {kind}") from None
        dtype: DType = next(name for name, value in wire.types.items() if value == kind)
        counted = response.headers.get(TOKEN_HEADER, "")
        tokens = int(counted) if counted.isdecimal() else read_tokens(reply, *filter(None, [wire.count_field]))
        return self._reader.read_rows(rows, len(batch.texts), NUMPY_DTYPES[dtype], tokens)
