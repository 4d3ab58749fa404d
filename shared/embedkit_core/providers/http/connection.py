"""Connection settings of the user: headers, proxy and certificates. They are not part of cache keys."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast
from urllib.parse import urlsplit

from embedkit_core.common.errors import AuthenticationError, ConfigurationError
from embedkit_core.providers.secrets import PLACEHOLDER_KEY, SALT, Hidden, Secret, reveal

if TYPE_CHECKING:
    import ssl

MIN_SECRET_CHARACTERS = 4  # shorter parts of a header are not treated as secrets
# A file with certificate and key, or (certificate, key), or (certificate, key, password).
ClientCert: TypeAlias = str | PathLike[str] | tuple[str | PathLike[str], ...]
RESERVED_HEADERS = frozenset({"content-length", "content-type", "transfer-encoding", "connection", "host"})


@dataclass(frozen=True, slots=True)
class Connection:
    """Headers, proxy and certificates for requests to a provider. All except `ca_bundle` may contain secrets.

    Attributes:
        headers: Additional headers of each request.
        proxy: Address of the proxy, None to use the environment's.
        ca_bundle: Path of a PEM file with trusted certificates.
        client_cert: Paths of the client's certificate and key, and the key's password, as far as they are given.
        lost: True if headers, proxy or client certificate were dropped when the embedder was pickled.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = field(default=None, repr=False)
    ca_bundle: str | None = None
    client_cert: tuple[str, ...] | None = field(default=None, repr=False)
    lost: bool = False

    @property
    def fingerprint(self) -> str:
        """Salted digest that distinguishes connections within this process."""
        parts = repr((sorted(self.headers.items()), self.proxy, self.ca_bundle, self.client_cert, self.lost))
        return hashlib.sha256(SALT + parts.encode()).hexdigest()

    @property
    def authorization_header(self) -> dict[str, str] | None:
        """The user's Authorization header, which replaces the one with the API key, as a mapping."""
        values = (value for name, value in self.headers.items() if name.lower() == "authorization")
        return next(({"Authorization": value} for value in values), None)

    def with_defaults(self, headers: Mapping[str, str]) -> Connection:
        """Return a connection that also sends `headers`, except those that the user has set."""
        own_names = {name.lower() for name in self.headers}
        added = {name: value for name, value in headers.items() if name.lower() not in own_names}
        return replace(self, headers={**added, **self.headers}) if added else self

    def secrets_with(self, key: Secret) -> list[str]:
        """Return the key, unless it is the placeholder, and the values of headers and proxy and their parts.

        No message may contain any of them.
        """
        values = [*self.headers.values(), *([self.proxy] if self.proxy else []), *(self.client_cert or ())[2:]]
        parts = [part for value in values for part in re.split(r"[\s:/@,;=]+", value)]
        keys = [] if key.reveal() == PLACEHOLDER_KEY else [key.reveal()]
        return [*keys, *values, *(part for part in parts if len(part) >= MIN_SECRET_CHARACTERS)]

    def __bool__(self) -> bool:
        return bool(self.headers or self.proxy or self.ca_bundle or self.client_cert or self.lost)

    def check_not_lost(self) -> None:
        """Raise AuthenticationError if headers, proxy or client certificate were not pickled."""
        if self.lost:
            raise AuthenticationError(
                "The headers and proxy were not pickled, nor the client_cert, because they may contain secrets. Pass "
                "pickle_api_key=True to the pickled embedder, or create the embedder in this process."
            )

    def proxy_for(self, url: str) -> str | None:
        """Return the proxy for an address: the user's, else the environment's (HTTPS_PROXY, NO_PROXY), else None."""
        if self.proxy is not None:
            return self.proxy
        from urllib.request import getproxies, proxy_bypass

        parts = urlsplit(url)
        proxies = Hidden(getproxies())
        proxy = Hidden(reveal(proxies).get(parts.scheme) or reveal(proxies).get("all"))
        if not reveal(proxy) or proxy_bypass(parts.netloc):
            return None
        address = Hidden(reveal(proxy) if "://" in reveal(proxy) else f"http://{reveal(proxy)}")
        if not _is_proxy(reveal(address)):  # an error, because a silent direct connection would bypass the proxy
            raise ConfigurationError(
                f"The environment variable {parts.scheme.upper()}_PROXY is not a proxy address such as "
                "http://proxy.example:3128. Correct it, pass proxy=, or list hosts without a proxy in NO_PROXY."
            )
        return str(reveal(address))

    def ssl_context(self, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext | Literal[True]:
        """Return a TLS context with `ca_bundle` and `client_cert`, True for the client's default.

        Args:
            default: Function that returns a context like the client's default.

        Raises:
            ConfigurationError: A file is not what it should be.
        """
        if self.ca_bundle is None and self.client_cert is None:
            return True
        import ssl

        name, expected = "ca_bundle", "the file has no readable certificates"
        fix, context = f"(got {self.ca_bundle!r}). Pass a PEM file.", None
        try:
            context = default() if self.ca_bundle is None else ssl.create_default_context(cafile=self.ca_bundle)
            if self.client_cert is None:
                return context
            name, expected = "client_cert", "the certificate and the key cannot be read or do not match"
            fix = f"(got {self.client_cert[:2]!r}). Pass PEM files, and the password of an encrypted key."
            context.load_cert_chain(**self._cert_chain())
            return context
        except (OSError, ValueError) as error:  # SSLError is an OSError
            flaw = type(error).__name__
        raise ConfigurationError(f"{name}: {expected}: {flaw} {fix}")

    def _cert_chain(self) -> dict[str, str]:
        """Return the arguments of `SSLContext.load_cert_chain`; without a password it would ask for one."""
        return {"password": "", **dict(zip(("certfile", "keyfile", "password"), self.client_cert or (), strict=False))}


def make_connection(
    headers: Hidden | None,
    proxy: Hidden | None,
    ca_bundle: str | PathLike[str] | None,
    client_cert: Hidden | None = None,
) -> Connection:
    """Check the user's connection arguments and return them as a Connection.

    Raises:
        ConfigurationError: An argument is invalid. The message has its name and no secret value.
    """
    if isinstance(reveal(headers), Connection):
        return cast(Connection, reveal(headers))
    if flaw := header_flaw(reveal(headers)):
        raise ConfigurationError(f"headers: {flaw}")
    if proxy is not None and not (isinstance(reveal(proxy), str) and _is_proxy(reveal(proxy))):
        raise ConfigurationError("proxy: not a valid address. Pass an address such as http://proxy.example:3128.")
    if ca_bundle is not None and not _is_file(ca_bundle):
        raise ConfigurationError(f"ca_bundle: not a file (got {str(ca_bundle)!r:.200}). Pass the path of a PEM file.")
    if flaw := client_cert_flaw(reveal(client_cert)):
        raise ConfigurationError(f"client_cert: {flaw}")
    return Connection(
        dict(reveal(headers) or {}),
        reveal(proxy),
        None if ca_bundle is None else _absolute(ca_bundle),
        _client_cert(reveal(client_cert)),
    )


def client_cert_flaw(given: object) -> str:
    """Return what is wrong with a client certificate and what to do, "" if nothing is. A password is not in it."""
    if given is None:
        return ""
    parts = given if isinstance(given, tuple) else (given,)
    if not 1 <= len(parts) <= 3 or not (len(parts) < 3 or isinstance(parts[2], str)):
        return "must be a path, (certificate, key) or (certificate, key, password). Pass one of them."
    for path in parts[:2]:
        if not _is_file(path):
            return f"not a file (got {str(path)!r:.200}). Pass the path of a PEM file, or (certificate, key)."
    return ""


def _client_cert(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    parts = given if isinstance(given, tuple) else (given,)
    return (*map(_absolute, parts[:2]), *parts[2:])


def _is_file(path: object) -> bool:
    return isinstance(path, (str, PathLike)) and Path(path).expanduser().is_file()


def _absolute(path: str | PathLike[str]) -> str:
    return str(Path(path).expanduser().absolute())


def header_flaw(headers: object) -> str:
    """Return what is wrong with a mapping of HTTP headers and what to do, "" if nothing is. No value is in it."""
    if headers is None:
        return ""
    if not isinstance(headers, Mapping):
        return f"must be a mapping from names to values (got {type(headers).__name__}). Pass {{name: value}}."
    names = [name.lower() for name in headers if isinstance(name, str)]
    for name, value in headers.items():
        if not isinstance(name, str) or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            return "contains a name that HTTP does not allow. Pass {name: value}."
        if name.lower() in RESERVED_HEADERS or names.count(name.lower()) > 1:
            return f"{name!r} is set by the client or appears twice. Remove it."
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            return f"the value of {name!r} must be a printable ASCII string. Correct it."
    return ""


def _is_proxy(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
