"""The built-in providers and caches pass the conformance suites."""

from pathlib import Path

import diskcache
import pytest
from support.embedders import MINILM, copied_model, needs_local_model
from support.openai_client import MODEL
from support.openai_server import Fault, OpenAIServer

from embedkit_core.cache import BytesCache, RawDisk
from embedkit_core.cache.access import OpenCache
from embedkit_core.cache.disk.cache import DiskCache
from embedkit_core.cache.opening import open_cache
from embedkit_core.cache.raw_disk import DiskcacheStore
from embedkit_core.cache.redis.cache import open_address
from embedkit_core.cache.tiers import open_tiers
from embedkit_core.cache.urls import open_url
from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BadTextError,
    QuotaError,
    RateLimitError,
    UnavailableError,
)
from embedkit_core.testing import CacheSuite, FakeServer, ProviderSuite


class TestOpenAI(ProviderSuite):
    """The real SDK, with a server that repeats text and key in every refusal."""

    model = f"openai:{MODEL}"
    api_key = "sk-test-key-of-mine"
    other_model = "openai:text-embedding-ada-002"  # has the width that the server uses for every model
    other_dimensions = 256
    wrong_dimensions = 1537

    @pytest.fixture(autouse=True)
    def far_end(self, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with OpenAIServer(api_key=self.api_key, echo_input_in_errors=True) as self.server:
            yield

    @property
    def settings(self):
        return {"base_url": self.server.base_url}

    @property
    def options(self):
        return {"user": "me"}

    def requests_seen(self):
        return len(self.server.requests)

    def fail(self, kind):
        def fault(texts, number):
            return None if kind is None or (kind == "bad_text" and self.bad_text not in texts) else faults[kind]

        soon = {"retry-after-ms": "1"}
        faults = {
            "auth": Fault(status=401),
            "quota": Fault.quota(),
            "bad_request": Fault(status=404),
            "bad_text": Fault(status=400),
            "bad_reply": Fault(transform=lambda reply: reply | {"data": reply["data"][:-1]}),
            "rate_limit": Fault.rate_limited(retry_after_ms=1),
            "unavailable": Fault(status=503, headers=soon),
        }
        self.server.fault_for(fault)


class TestOpenAIThatAnswersFloatsOutOfTurn(TestOpenAI):
    """An unknown model, whose width is known from its reply only, at a compatible server."""

    model = "openai:some-model"
    other_model = "openai:another-model"
    wrong_dimensions = None

    @pytest.fixture(autouse=True)
    def far_end(self, monkeypatch):
        with OpenAIServer(api_key=self.api_key, always_floats=True, shuffle_index=True, dimensions=512) as self.server:
            yield


@needs_local_model
class TestLocal(ProviderSuite):
    model = MINILM
    wrong_dimensions = 385


@needs_local_model
class TestLocalWithPrompts(ProviderSuite):
    """A model with a query prompt in its folder."""

    asymmetric = True

    @pytest.fixture(autouse=True)
    def folder(self):
        with copied_model(prompts={"query": "query: ", "document": ""}) as folder:
            self.model = f"local:{folder}"
            yield


@needs_local_model
class TestFastEmbed(ProviderSuite):
    wrong_dimensions = 385
    tolerance = 1e-5  # padding changes the rounding

    @pytest.fixture(autouse=True)
    def folder(self, onnx_model):
        self.model = f"fastembed:{onnx_model}"


@needs_local_model
class TestModel2Vec(ProviderSuite):
    wrong_dimensions = 65

    @pytest.fixture(autouse=True)
    def folder(self, static_model):
        self.model = f"model2vec:{static_model}"


class TestFake(ProviderSuite):
    model = "fake:model"
    api_key = "sk-fake-key-of-mine"
    other_model = "fake:another"
    other_dimensions = 5
    asymmetric = True

    @pytest.fixture(autouse=True)
    def far_end(self):
        self.server = FakeServer(asymmetric=self.asymmetric)

    @property
    def settings(self):
        return {"base_url": self.server.url}

    @property
    def options(self):
        return {"task": "classification"}

    def requests_seen(self):
        return len(self.server.received)

    def fail(self, kind):
        errors = {
            "auth": AuthenticationError,
            "quota": QuotaError,
            "bad_request": BadRequestError,
            "bad_text": BadTextError,
            "bad_reply": BadReplyError,
            "rate_limit": RateLimitError,
            "unavailable": UnavailableError,
        }

        def fault(texts):
            passes = kind is None or (kind == "bad_text" and self.bad_text not in texts)
            return None if passes else errors[kind]("as the test has it", retry_after=0.0)

        self.server.fault_for = fault


class TestSymmetricFake(TestFake):
    asymmetric = False


class TestDiskCache(CacheSuite):
    def make(self, folder: Path):
        return DiskCache(folder)


class TestSharedDiskCache(CacheSuite):
    """One cache object per folder."""

    def make(self, folder: Path):
        return open_cache(folder)


class TestDiskCacheAtAnAddress(CacheSuite):
    def make(self, folder: Path):
        return open_url(folder.as_uri())


class TestRedisCache(CacheSuite):
    @pytest.fixture(autouse=True)
    def _empty_server(self, redis):
        self.address = redis.address

    def make(self, folder):
        return open_address(self.address)


class TestDiskcache(CacheSuite):
    """A diskcache.Cache of the user."""

    def make(self, folder: Path):
        return BytesCache(DiskcacheStore(diskcache.Cache(str(folder), disk=RawDisk)))


class TestTiers(CacheSuite):
    """Two folders as one cache."""

    def make(self, folder: Path):
        return open_tiers([OpenCache(open_cache(folder / name)) for name in ("first", "second")])
