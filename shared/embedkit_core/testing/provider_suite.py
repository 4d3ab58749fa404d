"""The conformance suite for providers."""

from __future__ import annotations

from embedkit_core.testing.provider_failures import FailureCases
from embedkit_core.testing.provider_settings import SettingCases
from embedkit_core.testing.provider_vectors import VectorCases


class ProviderSuite(VectorCases, SettingCases, FailureCases):
    """Tests that every provider must pass. Subclass it in a test file::

        class TestAcme(ProviderSuite):
            model = "acme:small"

    All attributes but `model` are optional. Define the methods `requests_seen()`, which returns the number of requests
    the server has received, and `fail(kind)`, which makes it fail, to run the tests that need them.

    Attributes:
        model: The model under test, as provider:model.
        api_key: A valid API key; errors, logs and pickles are searched for it.
        settings: Further arguments of `Embedder`; a property, if a fixture provides them.
        other_model: Another model of the provider.
        other_dimensions: Supported dimensions other than the default; None if dimensions cannot be set.
        wrong_dimensions: Unsupported dimensions.
        options: `provider_options` that the model accepts.
        asymmetric: Whether a query and a document with the same text have different vectors.
        unit_length: Whether vectors are normalized.
        tolerance: Maximum difference between the numbers of two vectors of one text.
    """
