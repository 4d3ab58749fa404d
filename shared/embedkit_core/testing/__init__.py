"""Helpers for testing what is built on this library, without a network, a key or a mock.

`Fake` is a provider: `Embedder("fake:any-name", base_url=FakeServer().url)`. Its vectors depend on text, role and
dimensions; its server counts what reaches it and fails as it is told to.
"""

from embedkit_core.testing.fake import Fake, FakeServer, Seen, fake_vector

__all__ = ["Fake", "FakeServer", "Seen", "fake_vector"]
