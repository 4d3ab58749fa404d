from acme_cache import AcmeCache

from embedkit_core.testing import CacheSuite, ProviderSuite


class TestAcme(ProviderSuite):
    model = "acme:small"
    other_model = "acme:large"
    other_dimensions = 32
    unit_length = False


class TestAcmeCache(CacheSuite):
    def make(self, folder):
        return AcmeCache(f"acme://{folder}")
