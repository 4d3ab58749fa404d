"""Identity of key functions: two different functions are never taken for one credential."""

import functools
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.openai_server import OpenAIServer

from embedkit_core import Embedder
from embedkit_core.providers.secrets import Secret


def constant(key):
    """Return a new function; all of them have one __qualname__."""

    def get_key(*owner):
        return key

    return get_key


class Vault:
    """Owner of keys. `key_of` returns methods of one owner with one __qualname__."""

    def get(self):
        return "k"

    @classmethod
    def shared(cls):
        return "k"

    @staticmethod
    def static():
        return "k"

    def __call__(self):
        return "k"

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1

    def key_of(self, key):
        return types.MethodType(constant(key), self)


class Disguised:
    """A callable with the attributes of a bound method."""

    def __init__(self, owner):
        self.__self__, self.__func__, self.__qualname__ = owner, Vault.get, "Vault.get"

    def __call__(self):
        return "k"


OWNERS = [Vault(), Vault()]
FUNCTIONS = [constant("a"), constant("a"), constant("b"), functools.partial(OWNERS[0].get), {"k": "v"}.popitem]
FUNCTIONS += [function for owner in OWNERS for function in (owner.get, owner.shared, owner.static, owner)]
FUNCTIONS += [function for owner in OWNERS for function in (owner.key_of("a"), owner.key_of("b"), Disguised(owner))]


def is_same(one, other):
    if isinstance(one, types.MethodType) and isinstance(other, types.MethodType):
        return one.__self__ is other.__self__ and one.__func__ is other.__func__
    return one is other


@given(st.sampled_from(FUNCTIONS), st.sampled_from(FUNCTIONS))
def test_two_key_functions_are_one_credential_only_if_they_are_one_function_of_one_owner(one, other):
    assert (Secret("", one).fingerprint == Secret("", other).fingerprint) == is_same(one, other)


def test_a_method_is_one_credential_at_each_access():
    owner = Vault()
    assert Secret("", owner.get).fingerprint == Secret("", owner.get).fingerprint


@given(st.text(), st.sampled_from(FUNCTIONS))
def test_a_constant_key_is_never_the_credential_of_a_function(key, function):
    assert Secret(key).fingerprint != Secret("", function).fingerprint
    assert Secret(str(id(function))).fingerprint != Secret("", function).fingerprint


@pytest.mark.parametrize("owner", [Vault(), None], ids=["methods", "functions"])
def test_a_tenants_request_has_the_key_of_the_tenant(owner):
    def source(key):
        return owner.key_of(key) if owner else constant(key)

    with OpenAIServer(api_key=None) as server:
        tenants = {
            key: Embedder("openai:m", base_url=server.base_url, api_key=source(key), cache=False)
            for key in ("key-of-a", "key-of-b")
        }
        for key, embedder in tenants.items():
            embedder.embed([key])
        sent = {request.texts[0]: request.headers["authorization"] for request in server.requests}
    assert sent == {key: f"Bearer {key}" for key in tenants}
