"""How a provider is reached: headers of the user's own, a proxy, certificates. None of it is part of a key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from embedkit_core.common.errors import AuthenticationError, ConfigurationError
from embedkit_core.providers.secrets import SALT

if TYPE_CHECKING:
    import ssl

SHORTEST = 4  # characters of a part of a header that may be a secret
OF_THE_MESSAGE = frozenset({"content-length", "content-type", "transfer-encoding", "connection", "host"})


@dataclass(frozen=True, slots=True)
class Connection:
    """What the user says of the way to a provider; headers and the proxy's address may hold secrets.

    It is `lost` where it had secrets and came out of a pickle without them.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = field(default=None, repr=False)
    ca_bundle: str | None = None
    lost: bool = False

    @property
    def fingerprint(self) -> str:
        """Tell two connections apart within this process, without showing either."""
        parts = repr((sorted(self.headers.items()), self.proxy, self.ca_bundle))
        return hashlib.sha256(SALT + parts.encode()).hexdigest()

    @property
    def authorization(self) -> str | None:
        """The Authorization header of the user's own, which stands in place of the key's."""
        return next((value for name, value in self.headers.items() if name.lower() == "authorization"), None)

    def secrets_with(self, key: str) -> list[str]:
        """Give the key and all that headers and proxy hold, as a whole and in parts, which no message may repeat."""
        held = [*self.headers.values(), *([self.proxy] if self.proxy else [])]
        parts = [part for one in held for part in re.split(r"[\s:/@,;=]+", one) if len(part) >= SHORTEST]
        return [key, *held, *parts]

    def __bool__(self) -> bool:
        return bool(self.headers or self.proxy or self.ca_bundle or self.lost)

    def check_not_lost(self) -> None:
        """Raise AuthenticationError where the headers or the proxy stayed behind in another process."""
        if self.lost:
            raise AuthenticationError(
                "headers and proxy given in another process are not pickled, as they may hold secrets; give "
                "pickle_api_key=True there, or make the embedder here"
            )

    def proxy_for(self, url: str) -> str | None:
        """Give the proxy to an address: the user's, else the environment's (HTTPS_PROXY, NO_PROXY); None for none."""
        if self.proxy is not None:
            return self.proxy
        from urllib.request import getproxies, proxy_bypass

        parts = urlsplit(url)
        known = getproxies()
        found = known.get(parts.scheme) or known.get("all")
        if not found or proxy_bypass(parts.netloc):
            return None
        address = found if "://" in found else f"http://{found}"
        if not _is_proxy(address):  # to go past it in silence would be worse
            raise ConfigurationError(
                f"the environment variable {parts.scheme.upper()}_PROXY names no proxy such as "
                "http://proxy.example:3128; proxy= takes another, and NO_PROXY the hosts that need none"
            )
        return address

    def ssl_context(self) -> ssl.SSLContext | None:
        """Give what trusts the user's certificates, None for the client's own choice."""
        if self.ca_bundle is None:
            return None
        import ssl

        try:
            return ssl.create_default_context(cafile=self.ca_bundle)
        except (OSError, ssl.SSLError) as error:
            flaw = type(error).__name__
        raise ConfigurationError(f"ca_bundle={self.ca_bundle!r} holds no certificates that can be read ({flaw})")


def connection(
    headers: Mapping[str, str] | None, proxy: str | None, ca_bundle: str | PathLike[str] | None
) -> Connection:
    """Check what the user gave and make a connection of it.

    Raises:
        ConfigurationError: naming the argument, without its value.
    """
    if headers is not None and not isinstance(headers, Mapping):
        raise ConfigurationError("headers must be a mapping from names to values")
    spelled = [name.lower() for name in headers or {} if isinstance(name, str)]
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigurationError("headers holds a name that HTTP does not have; give {name: value}")
        if name.lower() in OF_THE_MESSAGE or spelled.count(name.lower()) > 1:
            raise ConfigurationError(f"headers[{name!r}] is set by the client itself, or given twice")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise ConfigurationError(f"headers[{name!r}] must be a string that HTTP can carry")
    if proxy is not None and (not isinstance(proxy, str) or not _is_proxy(proxy)):
        raise ConfigurationError("proxy must be an address such as http://proxy.example:3128")
    if ca_bundle is not None:
        if not isinstance(ca_bundle, (str, PathLike)) or not Path(ca_bundle).expanduser().is_file():
            raise ConfigurationError(f"ca_bundle={str(ca_bundle)!r:.200} is no file; give the path of a PEM file")
        ca_bundle = str(Path(ca_bundle).expanduser().absolute())
    return Connection(dict(headers or {}), proxy, ca_bundle)


def _is_proxy(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
