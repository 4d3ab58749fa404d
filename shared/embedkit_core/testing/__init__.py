"""Testing kit: a fake provider, a coordinator in memory, and conformance suites. No network and no API key needed.

`Fake` is a provider: `Embedder("fake:any-name", base_url=FakeServer().url)`. Its vectors depend on text, input type,
dimensions and model. `FakeServer` counts requests and fails on demand.

`MemoryCoordinator` coordinates embedders of one process as if each was in a process of its own.

`ProviderSuite`, `CacheSuite` and `CoordinationSuite` need pytest; the rest of the kit does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from embedkit_core.testing.fake import Fake, FakeServer, ReceivedRequest, fake_vector

if TYPE_CHECKING:
    from embedkit_core.testing.cache_suite import CacheSuite
    from embedkit_core.testing.coordination_suite import CoordinationSuite
    from embedkit_core.testing.memory_coordinator import MemoryCoordinator
    from embedkit_core.testing.provider_suite import ProviderSuite

__all__ = [
    "CacheSuite",
    "CoordinationSuite",
    "Fake",
    "FakeServer",
    "MemoryCoordinator",
    "ProviderSuite",
    "ReceivedRequest",
    "fake_vector",
]

_ON_FIRST_USE = {
    "CacheSuite": "cache_suite",
    "CoordinationSuite": "coordination_suite",
    "MemoryCoordinator": "memory_coordinator",
    "ProviderSuite": "provider_suite",
}


def __getattr__(name: str) -> object:
    if name in _ON_FIRST_USE:
        return getattr(import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
