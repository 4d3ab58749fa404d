"""Testing kit: a fake provider, and conformance suites for providers and caches. No network and no API key needed.

`Fake` is a provider: `Embedder("fake:any-name", base_url=FakeServer().url)`. Its vectors depend on text, input type,
dimensions and model. `FakeServer` counts requests and fails on demand.

`ProviderSuite` and `CacheSuite` need pytest; the rest of the kit does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from embedkit_core.testing.fake import Fake, FakeServer, ReceivedRequest, fake_vector

if TYPE_CHECKING:
    from embedkit_core.testing.cache_suite import CacheSuite
    from embedkit_core.testing.provider_suite import ProviderSuite

__all__ = ["CacheSuite", "Fake", "FakeServer", "ProviderSuite", "ReceivedRequest", "fake_vector"]

_SUITES = {"CacheSuite": "cache_suite", "ProviderSuite": "provider_suite"}


def __getattr__(name: str) -> object:
    if name in _SUITES:
        return getattr(import_module(f"{__name__}.{_SUITES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
