"""Connection settings of the user: headers, proxy and certificates. They are not part of cache keys."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from embedkit_core.common.errors import AuthenticationError, ConfigurationError
from embedkit_core.providers.secrets import PLACEHOLDER_KEY, SALT, Hidden, Secret, reveal

if TYPE_CHECKING:
    import ssl

MIN_SECRET_CHARACTERS = 4  # shorter parts of a header are not treated as secrets
RESERVED_HEADERS = frozenset({"content-length", "content-type", "transfer-encoding", "connection", "host"})


@dataclass(frozen=True, slots=True)
class Connection:
    """Headers, proxy and certificates for requests to a provider. Headers and proxy may contain secrets.

    Attributes:
        headers: Additional headers of each request.
        proxy: Address of the proxy, None to use the environment's.
        ca_bundle: Path of a PEM file with trusted certificates.
        lost: True if headers or proxy were dropped when the embedder was pickled.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = field(default=None, repr=False)
    ca_bundle: str | None = None
    lost: bool = False

    @property
    def fingerprint(self) -> str:
        """Salted digest that distinguishes connections within this process."""
        parts = repr((sorted(self.headers.items()), self.proxy, self.ca_bundle))
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
        values = [*self.headers.values(), *([self.proxy] if self.proxy else [])]
        parts = [part for value in values for part in re.split(r"[\s:/@,;=]+", value)]
        keys = [] if key.reveal() == PLACEHOLDER_KEY else [key.reveal()]
        return [*keys, *values, *(part for part in parts if len(part) >= MIN_SECRET_CHARACTERS)]

    def __bool__(self) -> bool:
        return bool(self.headers or self.proxy or self.ca_bundle or self.lost)

    def check_not_lost(self) -> None:
        """Raise AuthenticationError if headers or proxy were not pickled."""
        if self.lost:
            raise AuthenticationError(
                "The headers and proxy were not pickled, because they may contain secrets. Pass pickle_api_key=True to "
                "the pickled embedder, or create the embedder in this process."
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

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return a context that trusts the certificates of `ca_bundle`, None for the client's default."""
        if self.ca_bundle is None:
            return None
        import ssl

        try:
            return ssl.create_default_context(cafile=self.ca_bundle)
        except (OSError, ssl.SSLError) as error:
            flaw = type(error).__name__
        raise ConfigurationError(
            f"ca_bundle: the file has no readable certificates: {flaw} (got {self.ca_bundle!r}). Pass a PEM file."
        )


def make_connection(headers: Hidden | None, proxy: Hidden | None, ca_bundle: str | PathLike[str] | None) -> Connection:
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
    if ca_bundle is not None:
        if not isinstance(ca_bundle, (str, PathLike)) or not Path(ca_bundle).expanduser().is_file():
            raise ConfigurationError(
                f"ca_bundle: not a file (got {str(ca_bundle)!r:.200}). Pass the path of a PEM file."
            )
        ca_bundle = str(Path(ca_bundle).expanduser().absolute())
    return Connection(dict(reveal(headers) or {}), reveal(proxy), ca_bundle)


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
