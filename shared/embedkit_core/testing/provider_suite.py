"""The conformance suite for providers."""

from __future__ import annotations

from embedkit_core.testing.provider_failures import FailureCases
from embedkit_core.testing.provider_settings import SettingCases
from embedkit_core.testing.provider_vectors import VectorCases


class ProviderSuite(VectorCases, SettingCases, FailureCases):
    """What every provider proves, by a subclass in a test file of its own that pytest collects::

        class TestAcme(ProviderSuite):
            model = "acme:small"

    Attributes that say more of the model, all of them optional:
        api_key: a key the far end takes; what is shown and logged is then searched for it.
        settings: further arguments of `Embedder`, a property where a fixture must provide them.
        other_model: another model of the provider.
        other_dimensions: a width that is offered besides its own; None if it takes no dimensions.
        wrong_dimensions: a width that is not offered.
        options: `provider_options` that it takes.
        asymmetric: whether a query has another vector than the same text as a document.
        unit_length: whether vectors have length 1.
        tolerance: how far apart any number of two vectors of one text may be.

    Two methods, also optional, lead to the far end: `requests_seen()` gives how many requests have reached it, `fail`
    makes it fail. The cases that need them are skipped without them.
    """
