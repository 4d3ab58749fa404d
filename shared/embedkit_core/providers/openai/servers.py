"""Servers with OpenAI's embeddings API: how their requests differ, and their defaults. No network I/O.

These are the defaults of each kind of server; the user overrides them with `base_url`, `api_key` and `max_batch_texts`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType, Limits
from embedkit_core.common.vectors import DType

DEFAULT_REQUEST_TEXTS = 256  # for servers that state no limit
BASE64, FLOATS = "base64", "float"  # values of the field for the encoding
VARIABLE = re.compile(r"\{(\w+)\}")


class Role(NamedTuple):
    """The request field for the input type.

    Attributes:
        field: Name of the field.
        values: Its value for each input type.
        is_for_unknown_models: True if models that are not in the catalogue have the field. Those in the catalogue have
            it if they are asymmetric or are used for a task.
    """

    field: str
    values: Mapping[InputType, str]
    is_for_unknown_models: bool = True


class Truncation(NamedTuple):
    """The request field that decides what happens to a text over the model's limit: its name and its two values."""

    field: str
    refuse: Any
    truncate: Any


class BatchRules(NamedTuple):
    """A server's batch endpoint and its limits; the defaults are OpenAI's.

    Source: developers.openai.com/api/docs/guides/batch, read 2026-11-30. A line may have 2048 texts, but one bad text
    fails its line.

    Attributes:
        endpoint: The endpoint as "module:class".
        window: Seconds in which the server completes a batch, or ends it.
        texts: Maximum texts of a batch.
        lines: Maximum lines of a batch.
        file_bytes: Maximum size of its file.
        line_texts: Maximum texts of a line, unless a request may have fewer.
    """

    endpoint: str = "embedkit_core.providers.openai.batch:OpenAIBatches"
    window: float = 24 * 3600
    texts: int = 50_000
    lines: int = 50_000
    file_bytes: int = 200 * 10**6
    line_texts: int = 256


@dataclass(frozen=True, slots=True)
class Server:
    """One kind of server.

    Attributes:
        title: Name of the server in messages.
        address: Default address, None if the user must pass one. {NAME} stands for an environment variable.
        path: Path of the API of servers that users run; that of a service is in its address.
        address_variables: Environment variables with the address, the first one set is used.
        key_variables: Environment variables with the API key, the first one set is used.
        needs_key: True if the server needs an API key at every address. A service needs one at its own.
        texts: Maximum texts of a request, None if the server states no limit.
        tokens: Maximum tokens of a request, None if the server states no limit.
        in_flight: Maximum requests in flight, None if the server states no limit.
        takes_openai_names: True if the server uses OpenAI's organizations and projects.
        completes: True if `path` is added to an address without a path.
        refuses_long_texts: True if the server refuses texts over the model's limit. False if it may truncate them
            without notice.
        base64: True if base64 is documented to be float32, at every address. False if base64 is never requested. None
            if it is requested once the width of the vectors is known, which shows the type.
        encoding_field: Request field for the encoding, None if the server has none; it then replies with numbers.
        dimensions_field: Request field for the dimensions, None if the server has none.
        role: Request field for the input type, None if the server has none.
        truncation: Request field for the truncation of texts, None if the server has none.
        always: Further fields of each request.
        refused_options: Fields that `provider_options` may not set: with them, a vector depends on the other texts of
            its request, or a reply has another shape.
        dtype_field: Request field for the type of the vectors, None if the server has none.
        dtypes: Values of `dtype_field` for types other than float32.
        has_float32: True if the server returns float32, without `dtype_field`.
        host_options: Example of the request fields that select the host of a model at a gateway. Different hosts may
            return different vectors, so a model that is not in the catalogue needs these fields in `provider_options`.
        rate_limit_codes: Codes of errors that mean a limit per minute, though with other servers they mean no credit.
        batch: Its batch endpoint, None if it has none for embeddings.
    """

    title: str
    address: str | None
    path: str = "/v1"
    address_variables: tuple[str, ...] = ()
    key_variables: tuple[str, ...] = ()
    needs_key: bool = False
    texts: int | None = None
    tokens: int | None = None
    in_flight: int | None = None
    takes_openai_names: bool = False
    completes: bool = True
    refuses_long_texts: bool = False
    base64: bool | None = None
    encoding_field: str | None = "encoding_format"
    dimensions_field: str | None = "dimensions"
    role: Role | None = None
    truncation: Truncation | None = None
    always: Mapping[str, Any] = field(default_factory=dict)
    refused_options: tuple[str, ...] = ()
    dtype_field: str | None = None
    dtypes: Mapping[DType, str] = field(default_factory=dict)
    has_float32: bool = True
    host_options: Mapping[str, Any] = field(default_factory=dict)
    rate_limit_codes: frozenset[str] = frozenset()
    batch: BatchRules | None = None

    @property
    def is_service(self) -> bool:
        """True if there is one such server for everybody. Its name identifies its models in cache keys.

        The models of other servers, which users run, are identified by the address.
        """
        return self.address is not None and self.address.startswith("https://")

    @property
    def offered_dtypes(self) -> tuple[DType, ...]:
        """Types of the vectors that can be requested."""
        return (*(("float32",) if self.has_float32 else ()), *self.dtypes)

    @property
    def own_fields(self) -> frozenset[str]:
        """Request fields that the user cannot set for this server."""
        names = [self.encoding_field, self.dimensions_field, self.dtype_field, *self.always, *self.refused_options]
        names += [part.field for part in (self.role, self.truncation) if part is not None]
        return frozenset(name for name in names if name is not None)

    @property
    def limits(self) -> Limits:
        """Limits of a request for models without own limits."""
        return Limits(self.texts or DEFAULT_REQUEST_TEXTS, self.tokens, in_flight=self.in_flight)

    @property
    def usual_path(self) -> str:
        """Path of the API."""
        return urlsplit(self.address).path if self.address and self.is_service else self.path

    def find(self, base_url: str | None) -> str:
        """Return the address: `base_url`, else the environment's, else the default.

        Raises:
            ConfigurationError: There is no address.
        """
        if base_url is not None:
            return self._with_path(base_url)
        for variable in self.address_variables:
            if address := os.environ.get(variable):
                return self._with_defaults(address.strip()) if self.completes else address
        if self.address is None:
            raise ConfigurationError(
                f"base_url: the address of {self.title} is missing. Pass base_url= or set the environment variable "
                f"{self.address_variables[0]}."
            )
        return self._filled(self.address)

    def is_at(self, address: str) -> bool:
        """Return True if a canonical address is the default one, with any values of its variables."""
        parts = VARIABLE.split(self.address or "")[::2]
        return re.fullmatch(r"[\w.-]+".join(map(re.escape, parts)), address) is not None

    def _filled(self, address: str) -> str:
        return VARIABLE.sub(lambda found: self._part(found[1]), address)

    def _part(self, variable: str) -> str:
        """Return the part of the address that is in an environment variable."""
        value = os.environ.get(variable, "").strip()
        if not value:
            raise ConfigurationError(
                f"base_url: the address of {self.title} needs the environment variable {variable}. Set it, or pass "
                "base_url= with the whole address."
            )
        if not re.fullmatch(r"[\w.-]+", value):
            raise ConfigurationError(f"The environment variable {variable} is not a part of an address. Correct it.")
        return value

    def _with_path(self, address: str) -> str:
        """Return an address with the server's path if it has no path."""
        if not self.completes or not isinstance(address, str) or _path(address):
            return address
        return address.strip().rstrip("/") + self._filled(self.usual_path)

    def _with_defaults(self, address: str) -> str:
        """Return the address of an environment variable with the default scheme, port and path if they are missing.

        0.0.0.0, at which a server listens, becomes 127.0.0.1, at which a client reaches it.
        """
        default = urlsplit(self.address or "https://")
        if "://" not in address:
            host, colon, port = address.rpartition(":") if not address.endswith("]") else (address, "", "")
            host, port = (host, port) if colon else (address, str(default.port or ""))
            address = f"{default.scheme}://{host or '127.0.0.1'}{f':{port}' if port else ''}"
        address = address.replace("://0.0.0.0", "://127.0.0.1", 1).rstrip("/")
        return address if address.endswith(self.path) else address + self.path


def _path(address: str) -> str:
    try:
        return urlsplit(address.strip()).path.strip("/")
    except ValueError:  # not an address; canonical_url raises the error
        return "/"


# Variables of SDK 3.52, LangChain and LlamaIndex. OPENAI_API_BASE is first, as in the frameworks, so that users who
# migrate keep their host.
OPENAI: Final = Server(
    "OpenAI",
    "https://api.openai.com/v1",
    address_variables=("OPENAI_API_BASE", "OPENAI_BASE_URL"),
    key_variables=("OPENAI_API_KEY",),
    takes_openai_names=True,
    completes=False,
    batch=BatchRules(),  # also at a user's address: gateways pass files and batches on
)
