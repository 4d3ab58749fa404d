"""Cases for providers: a setting makes a difference or is refused, in the request and so in the key of the cache."""

# ruff: noqa: D102 - the name of a case is its sentence

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
from embedkit_core.testing.provider_cases import TEXTS, ProviderCases, numbered
from embedkit_core.testing.suite import refusal, skip

TEXT = TEXTS[0]
LONG = 8000  # characters
ROLES: tuple[InputType, ...] = ("document", "query")


class SettingCases(ProviderCases):
    """What is sent, and what its key covers."""

    def test_the_provider_has_the_name_it_is_registered_under(self) -> None:
        provider = self.embedder().provider
        assert isinstance(provider, Provider)
        assert is_provider(provider.name), f"no entry point is named {provider.name!r}"
        assert provider.limits.texts >= 1, f"limits.texts = {provider.limits.texts}: a request holds at least one text"

    def test_a_wire_is_json_and_the_same_for_equal_settings(self) -> None:
        one, other = self.embedder().provider, self.embedder().provider
        for role in ROLES:
            wire = one.request_body(role)
            try:
                carried = json.loads(json.dumps(wire, allow_nan=False))
            except (TypeError, ValueError) as error:
                raise AssertionError(f"request_body({role!r}) is no JSON: {error}") from None
            assert carried == wire, (
                f"request_body({role!r}) comes back from JSON as something else: no tuples, names are strings"
            )
            assert wire == one.request_body(role) == other.request_body(role), (
                f"request_body({role!r}) is not the same twice: the cache would serve nothing. No time, no random id"
            )

    def test_nothing_that_is_shown_holds_the_key(self) -> None:
        """The request, the account, the provider, the embedder and its pickle."""
        embedder = self.embedder()
        if not self.api_key:
            skip("the suite names no api_key")
        provider = embedder.provider
        shown = [repr(part) for part in (provider, provider.account, provider.endpoint, embedder, embedder.space)]
        shown += [repr(embedder.explain(TEXT, input_type=role)) for role in ROLES]
        for one in shown:
            assert self.api_key not in one, (
                "the key is shown; keep it as the Secret it comes in, account takes its .mark"
            )
        assert self.api_key.encode() not in pickle.dumps(embedder), "the pickle of an embedder holds the key"

    def test_an_account_is_hashable_and_equal_for_equal_settings(self) -> None:
        """What shares a client and a bound; another key is another account."""
        account = self.embedder().provider.account
        hash(account)
        assert account == self.embedder().provider.account, (
            "two embedders of equal settings have two accounts, so that each has its own bound: compare by value"
        )

    def test_another_key_is_another_account_and_the_same_cache(self) -> None:
        if not self.api_key:
            skip("the suite names no api_key")
        mine, other = self.embedder(), self.embedder(api_key=f"{self.api_key}-of-another")
        assert mine.provider.account != other.provider.account, "two keys share one account: put api_key.mark in it"
        assert mine.explain(TEXT).key == other.explain(TEXT).key, "the key of the cache depends on the api_key"

    def test_another_model_is_another_request(self) -> None:
        if self.other_model is None:
            skip("the suite names no other_model")
        one, other = self.embedder(), self.embedder(model=self.other_model)
        assert_differ(one, other, "document", f"model={self.other_model!r}")
        rows = [embedder.embed([TEXT]).vectors for embedder in (one, other)]  # both open: they may share a client
        assert self.differ(*rows), (
            "two models that are in use at once give one vector: does the client keep the model it was connected for? "
            "What shares an account shares a client; the model is in batch.body"
        )

    def test_dimensions_make_a_difference_or_are_refused(self) -> None:
        embedder = self.embedder()
        own = embedder.embed([TEXT]).vectors.shape[1]
        if self.other_dimensions is None:
            half = max(1, own // 2)
            refusal(
                lambda: self.embedder(dimensions=half),
                f"dimensions={half} is accepted: refuse it with check_only_used(...), or name it as other_dimensions",
            )
            return
        other = self.embedder(dimensions=self.other_dimensions)
        # Not the wires: what no provider is asked for is cut from its reply, and is in the key beside the request.
        assert embedder.explain(TEXT).key != other.explain(TEXT).key, (
            f"dimensions={self.other_dimensions} changes nothing in the key: put them in the wire, or refuse them"
        )
        assert other.embed([TEXT]).vectors.shape == (1, self.other_dimensions)

    def test_dimensions_that_are_not_offered_are_refused_before_anything_is_sent(self) -> None:
        before = self.requests_before()
        for wrong in (0, -1, True, "8", self.wrong_dimensions):
            if wrong is not None:
                refusal(
                    partial(self.embedder, dimensions=wrong),
                    f"dimensions={wrong!r} is accepted; a row of the catalogue, or model_info=, says what is offered",
                )
        assert before is None or self.requests_seen() == before
        if self.wrong_dimensions is None:
            skip("0, -1, True and '8' are refused; the suite names no wrong_dimensions that the model does not offer")

    def test_a_query_prompt_makes_a_difference_or_is_refused(self) -> None:
        self._try_prompt("query", "document")

    def test_a_document_prompt_makes_a_difference_or_is_refused(self) -> None:
        self._try_prompt("document", "query")

    def _try_prompt(self, role: InputType, other_role: InputType) -> None:
        name, plain = f"{role}_prompt", self.embedder()
        prompted = made_or_refused(lambda: self.embedder(**{name: "Represent this sentence for searching: "}))
        if prompted is None:
            return
        assert_differ(plain, prompted, role, name)
        assert plain.provider.request_body(other_role) == prompted.provider.request_body(other_role), (
            f"{name} changes the other role too"
        )
        vectors = [embedder.embed([TEXT], input_type=role).vectors for embedder in (plain, prompted)]
        assert self.differ(*vectors), (
            f"{name} is in the wire and changes no vector: use batch.texts_with_prompt(), or refuse it"
        )

    def test_options_make_a_difference_or_are_refused(self) -> None:
        options = dict(self.options) or {"no_such_option": "value"}
        made = made_or_refused(lambda: self.embedder(provider_options=options))
        if made is not None:
            assert_differ(self.embedder(), made, "document", f"provider_options={options}")
        if not self.options:
            return
        assert made is not None, f"provider_options={options} are refused, and the suite names them as options"
        assert len(made.embed([TEXT]).vectors) == 1

    def test_an_address_makes_a_difference_or_is_refused(self) -> None:
        address = "http://localhost:9/another/v1"
        made = made_or_refused(lambda: self.embedder(base_url=address))
        if made is None:
            return
        assert made.provider.endpoint, (
            "base_url is ignored: put it in the endpoint, or refuse it with settings.check_only_used(...)"
        )
        assert made.provider.account != self.embedder().provider.account, "two addresses share one account"
        assert made.explain(TEXT).key != self.embedder().explain(TEXT).key

    def test_a_text_is_not_cut_in_silence(self) -> None:
        """A provider that cuts texts itself must be told not to, in the wire, and say which it has cut."""
        cutting, refusing = self.embedder(), self.embedder(on_long_text="error", on_error="return")
        if cutting.provider.truncates_long_texts and cutting.provider.truncating_body("document") is None:
            assert cutting.provider.request_body("document") != refusing.provider.request_body("document"), (
                "the provider cuts long texts itself, and on_long_text='error' changes nothing in the wire"
            )
        assert cutting.explain(TEXT).key != refusing.explain(TEXT).key
        pair = unlike_at_the_end(cutting.provider.limits)
        cut = cutting.embed(pair)
        assert self.differ(*cut.vectors) or cut.truncated == (0, 1), (
            f"two texts of {len(pair[0])} characters that differ at the end have one vector: name a text that was cut "
            "in Reply.truncated, or have it refused and raise TextTooLongError"
        )
        whole = refusing.embed(pair)
        assert whole.failed or (self.differ(*whole.vectors) and not whole.truncated), (
            "a text is cut although on_long_text='error'"
        )

    def test_a_copy_and_what_comes_out_of_a_pickle_are_the_same(self) -> None:
        embedder = self.embedder()
        rows = embedder.embed([TEXT]).vectors
        for made in (copy.deepcopy(embedder), pickle.loads(pickle.dumps(embedder))):  # noqa: S301 - it is ours
            assert made.model == embedder.model
            assert made.explain(TEXT).key == embedder.explain(TEXT).key
            if made.provider.account == embedder.provider.account:  # else the key stayed behind
                self.assert_same(made.embed([TEXT]).vectors, rows, "a copy gives other vectors")


def assert_differ(one: Embedder, other: Embedder, role: InputType, what: str) -> None:
    """Fail unless two embedders send different requests and keep them under different keys."""
    assert one.provider.request_body(role) != other.provider.request_body(role), (
        f"{what} changes nothing in request_body({role!r}), so one's vectors serve the other's texts: put in the wire "
        "what changes a vector, or refuse the setting with settings.check_only_used(...)"
    )
    assert one.explain(TEXT, input_type=role).key != other.explain(TEXT, input_type=role).key


def unlike_at_the_end(limits: Limits) -> list[str]:
    """Give two texts that differ in their last tenth; as long as is sure to pass, by two characters for a token."""
    stated = [2 * tokens for tokens in (limits.text_tokens, limits.tokens) if tokens is not None]
    size = min([LONG, *stated])
    body = " ".join(numbered(size // 40 + 1))[: size - size // 10]
    return [
        body + (ending * size)[: size // 10] for ending in (" Cats sleep in the sun.", " Banks lend money at a rate.")
    ]


def made_or_refused(make: Callable[[], Any]) -> Embedder | None:
    """Give what is made; None where the setting is refused as it should be."""
    made: Embedder | None = None
    with contextlib.suppress(ConfigurationError):
        made = make()
    return made
