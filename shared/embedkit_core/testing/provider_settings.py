"""Provider tests of settings: each one changes the request and the cache key, or is rejected."""

# ruff: noqa: D102 - test names are sentences

from __future__ import annotations

import contextlib
import copy
import json
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType, Limits
from embedkit_core.embedder import Embedder
from embedkit_core.providers.base import Provider
from embedkit_core.providers.registry import is_provider
from embedkit_core.testing.provider_cases import TEXTS, ProviderCases, numbered_texts
from embedkit_core.testing.suite import assert_rejected, skip

TEXT = TEXTS[0]
LONG_TEXT_CHARACTERS = 8000
INPUT_TYPES: tuple[InputType, ...] = ("document", "query")


class SettingCases(ProviderCases):
    """Tests of requests, accounts and cache keys."""

    def test_the_provider_has_the_name_of_its_entry_point(self) -> None:
        provider = self.embedder().provider
        assert isinstance(provider, Provider)
        assert is_provider(provider.name), f"there is no entry point {provider.name!r}"
        assert provider.limits.texts >= 1, f"limits.texts is {provider.limits.texts}. It must be at least 1."

    def test_a_request_body_is_json_and_equal_for_equal_settings(self) -> None:
        one, other = self.embedder().provider, self.embedder().provider
        for input_type in INPUT_TYPES:
            body = one.request_body(input_type)
            try:
                decoded = json.loads(json.dumps(body, allow_nan=False))
            except (TypeError, ValueError) as error:
                raise AssertionError(f"request_body({input_type!r}) is not JSON: {error}") from None
            assert decoded == body, (
                f"request_body({input_type!r}) changes in a JSON round trip. Use no tuples, and strings as keys."
            )
            assert body == one.request_body(input_type) == other.request_body(input_type), (
                f"request_body({input_type!r}) differs between two calls, so the cache would never hit. Leave out "
                "times and random ids."
            )

    def test_the_api_key_is_in_no_repr_account_or_pickle(self) -> None:
        """Searches request, account, provider, embedder and pickle."""
        embedder = self.embedder()
        if not self.api_key:
            skip("the suite sets no api_key")
        provider = embedder.provider
        shown = [repr(part) for part in (provider, provider.account, provider.endpoint, embedder, embedder.space)]
        shown += [repr(embedder.explain(TEXT, input_type=input_type)) for input_type in INPUT_TYPES]
        for text in shown:
            assert self.api_key not in text, (
                "the API key is exposed. Keep the Secret object, and put its .fingerprint into the account."
            )
        assert self.api_key.encode() not in pickle.dumps(embedder), "the pickle of an embedder contains the API key"

    def test_an_account_is_hashable_and_equal_for_equal_settings(self) -> None:
        """Embedders with equal accounts share a client and concurrency limits."""
        account = self.embedder().provider.account
        hash(account)
        assert account == self.embedder().provider.account, (
            "two embedders with equal settings have different accounts, so that each has its own concurrency limit. "
            "Use a value that compares equal."
        )

    def test_another_api_key_changes_the_account_but_not_the_cache_key(self) -> None:
        if not self.api_key:
            skip("the suite sets no api_key")
        first, other = self.embedder(), self.embedder(api_key=f"{self.api_key}-of-another")
        assert first.provider.account != other.provider.account, (
            "two API keys share one account. Put api_key.fingerprint into the account."
        )
        assert first.explain(TEXT).key == other.explain(TEXT).key, "the cache key depends on the API key"

    def test_another_model_changes_the_request_and_the_vector(self) -> None:
        if self.other_model is None:
            skip("the suite sets no other_model")
        one, other = self.embedder(), self.embedder(model=self.other_model)
        assert_differ(one, other, "document", f"model={self.other_model!r}")
        rows = [embedder.embed([TEXT]).vectors for embedder in (one, other)]  # both are open and may share a client
        assert self.differ(*rows), (
            "two models used at the same time return the same vector. Models of an account share a client: use the "
            "model in batch.body, not that of the provider that created the client."
        )

    def test_dimensions_have_an_effect_or_are_rejected(self) -> None:
        embedder = self.embedder()
        default = embedder.embed([TEXT]).vectors.shape[1]
        if self.other_dimensions is None:
            half = max(1, default // 2)
            assert_rejected(
                lambda: self.embedder(dimensions=half),
                f"dimensions={half} is accepted. Reject it with check_only_used(...), or set it as other_dimensions.",
            )
            return
        other = self.embedder(dimensions=self.other_dimensions)
        # Not the request bodies: vectors may be truncated locally, and the key contains the dimensions anyway.
        assert embedder.explain(TEXT).key != other.explain(TEXT).key, (
            f"dimensions={self.other_dimensions} does not change the cache key. Put them into request_body(), or "
            "reject them."
        )
        assert other.embed([TEXT]).vectors.shape == (1, self.other_dimensions)

    def test_unsupported_dimensions_are_rejected_before_any_request(self) -> None:
        before = self.requests_before()
        for wrong in (0, -1, True, "8", self.wrong_dimensions):
            if wrong is not None:
                assert_rejected(
                    partial(self.embedder, dimensions=wrong),
                    f"dimensions={wrong!r} is accepted. Declare the supported ones in the catalogue or by model_info=.",
                )
        assert before is None or self.requests_seen() == before
        if self.wrong_dimensions is None:
            skip("0, -1, True and '8' are rejected; the suite sets no wrong_dimensions")

    def test_a_query_prompt_has_an_effect_or_is_rejected(self) -> None:
        self._test_prompt("query", "document")

    def test_a_document_prompt_has_an_effect_or_is_rejected(self) -> None:
        self._test_prompt("document", "query")

    def _test_prompt(self, input_type: InputType, other_type: InputType) -> None:
        name, plain = f"{input_type}_prompt", self.embedder()
        prompted = make_or_none(lambda: self.embedder(**{name: "Represent this sentence for searching: "}))
        if prompted is None:
            return
        assert_differ(plain, prompted, input_type, name)
        assert plain.provider.request_body(other_type) == prompted.provider.request_body(other_type), (
            f"{name} changes the request body of {other_type} texts too"
        )
        vectors = [embedder.embed([TEXT], input_type=input_type).vectors for embedder in (plain, prompted)]
        assert self.differ(*vectors), (
            f"{name} is in the request body but does not change the vector. Use batch.texts_with_prompt(), or reject "
            "it."
        )

    def test_provider_options_have_an_effect_or_are_rejected(self) -> None:
        options = dict(self.options) or {"no_such_option": "value"}
        made = make_or_none(lambda: self.embedder(provider_options=options))
        if made is not None:
            assert_differ(self.embedder(), made, "document", f"provider_options={options}")
        if not self.options:
            return
        assert made is not None, f"provider_options={options} are rejected, but the suite sets them as options"
        assert len(made.embed([TEXT]).vectors) == 1

    def test_a_base_url_has_an_effect_or_is_rejected(self) -> None:
        address = "http://localhost:9/another/v1"
        made = make_or_none(lambda: self.embedder(base_url=address))
        if made is None:
            return
        assert made.provider.endpoint, (
            "base_url is ignored. Put it into the endpoint, or reject it with settings.check_only_used(...)."
        )
        assert made.provider.account != self.embedder().provider.account, "two base URLs share one account"
        assert made.explain(TEXT).key != self.embedder().explain(TEXT).key

    def test_no_text_is_truncated_silently(self) -> None:
        """A provider that truncates texts must report which, and must not truncate with on_long_text="error"."""
        truncating, rejecting = self.embedder(), self.embedder(on_long_text="error", on_error="return")
        if truncating.provider.truncates_long_texts and truncating.provider.truncating_body("document") is None:
            assert truncating.provider.request_body("document") != rejecting.provider.request_body("document"), (
                "the provider truncates long texts, but on_long_text='error' does not change the request body"
            )
        assert truncating.explain(TEXT).key != rejecting.explain(TEXT).key
        pair = texts_with_different_ends(truncating.provider.limits)
        result = truncating.embed(pair)
        assert self.differ(*result.vectors) or result.truncated == (0, 1), (
            f"two texts of {len(pair[0])} characters that differ only at the end have the same vector. Report "
            "truncated texts in Reply.truncated, or make the server reject them and raise TextTooLongError."
        )
        result = rejecting.embed(pair)
        assert result.failed or (self.differ(*result.vectors) and not result.truncated), (
            "a text is truncated although on_long_text='error'"
        )

    def test_a_copy_and_an_unpickled_embedder_behave_the_same(self) -> None:
        embedder = self.embedder()
        rows = embedder.embed([TEXT]).vectors
        for restored in (copy.deepcopy(embedder), pickle.loads(pickle.dumps(embedder))):  # noqa: S301 - pickled here
            assert restored.model == embedder.model
            assert restored.explain(TEXT).key == embedder.explain(TEXT).key
            if restored.provider.account == embedder.provider.account:  # not if the API key was not pickled
                self.assert_same(restored.embed([TEXT]).vectors, rows, "a copy returns other vectors")


def assert_differ(one: Embedder, other: Embedder, input_type: InputType, setting: str) -> None:
    """Fail unless two embedders have different request bodies and cache keys."""
    assert one.provider.request_body(input_type) != other.provider.request_body(input_type), (
        f"{setting} does not change request_body({input_type!r}), so different vectors would share a cache key. Put "
        "every setting that affects vectors into request_body(), or reject it with settings.check_only_used(...)."
    )
    assert one.explain(TEXT, input_type=input_type).key != other.explain(TEXT, input_type=input_type).key


def texts_with_different_ends(limits: Limits) -> list[str]:
    """Return two texts that differ in their last tenth and fit the limits, at two characters per token."""
    known_limits = [2 * tokens for tokens in (limits.text_tokens, limits.tokens) if tokens is not None]
    size = min([LONG_TEXT_CHARACTERS, *known_limits])
    body = " ".join(numbered_texts(size // 40 + 1))[: size - size // 10]
    return [
        body + (ending * size)[: size // 10] for ending in (" Cats sleep in the sun.", " Banks lend money at a rate.")
    ]


def make_or_none(make: Callable[[], Any]) -> Embedder | None:
    """Return the embedder, or None if its settings are rejected."""
    embedder: Embedder | None = None
    with contextlib.suppress(ConfigurationError):
        embedder = make()
    return embedder
