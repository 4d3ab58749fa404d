"""The conformance suites find mistakes, explain them, and their tests cannot be overridden."""

import logging
import sys
from dataclasses import replace

import pytest
from support.plugin import run_command, run_pytest, run_suite

from embedkit_core import testing
from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    ConfigurationError,
    ProviderError,
    QuotaError,
    RateLimitError,
    UnavailableError,
)
from embedkit_core.common.types import Limits
from embedkit_core.testing import CacheSuite, CoordinationSuite, FakeServer, ProviderSuite
from embedkit_core.testing.provider_settings import texts_with_different_ends

CASE = "test_rows_are_in_the_order_of_the_texts"
COMPANY = "test_a_text_has_the_same_vector_in_a_small_and_a_large_batch"
GUARD = "test_no_test_of_the_suite_is_overridden_or_removed"
ROWS = "np.stack(rows)"
OF_ONE_THREAD = """    def set_many(self, items):
        from threading import get_ident
        if self.__dict__.setdefault("thread", get_ident()) != get_ident():
            raise RuntimeError("works only in the thread that made it")
"""
WIRE = '"prompt": self.prompts[input_type]'


def test_a_correct_provider_and_a_correct_cache_pass(acme, tmp_path):
    said = run_suite(acme, tmp_path)
    assert "failed" not in said
    assert "passed" in said


@pytest.mark.parametrize(
    ("old", "new", "case", "words"),
    [
        (ROWS, "np.stack(rows[::-1])", CASE, "Rows must be in the order of the texts"),
        (ROWS, "np.stack(rows).astype(float)", "test_a_client_answers", "Reply.vectors is float64"),
        (ROWS, "np.stack(rows * 0 + [rows[0]] * len(rows))", "test_different_texts", "have the same vector"),
        (ROWS, "np.stack(rows)[:, 1:]", "test_rows_are_finite", "dimensions"),
        ("default_rng(seed)", "default_rng()", "test_a_client_answers", "second connection returns other"),
        ("batch.texts_with_prompt()", "batch.texts", "test_a_query_prompt", "does not change the vector"),
        (WIRE, '"prompt": ""', "test_a_document_prompt", "reject it with settings"),
        (
            WIRE,
            WIRE + ', "at": __import__("time").time_ns()',
            "test_a_request_body_is_json",
            "Leave out times and random ids",
        ),
        (WIRE, WIRE + ', "role": input_type', "test_queries_and_documents_differ", "asymmetric = True"),
        (WIRE, WIRE + ', "tags": ("a",)', "test_a_request_body_is_json", "Use no tuples"),
        ('"model": self.model', '"model": "small"', "test_another_model", "does not change request_body"),
        ("settings.check_only_used(", "len((", "test_provider_options_have", "provider_options="),
        ("settings.check_only_used(", "len((", "test_a_base_url_has", "base_url is ignored"),
        ('settings.name, "acme"', "settings.name, object()", "test_an_account", "different accounts"),
        ("blob[0] == 1", "False", "test_the_truncated_flag", "Entry.truncated is not stored"),
        ("key.hex()", "key.hex()[:8]", "test_keys_that_differ", "with other numbers"),
        ("key.hex()", "(key[:15] + key[16:]).hex()", "test_keys_that_differ", "with other numbers"),
        ("key.hex()", "key[:-1].hex()", "test_keys_that_differ", "with other numbers"),
        (
            "(url).path)",
            "(url).path), str(__import__('os').getpid())",
            "test_another_process",
            "finds no stored vector",
        ),
        ("    def set_many(self, items):\n", OF_ONE_THREAD, "test_different_threads_can_write", "only in the thread"),
        ("blob[1:], np.float32", "blob[1:], np.int32", "test_a_vector_is_returned", "int32 instead of float32"),
        ("if path.exists()", "", "test_an_unknown_key", ""),
    ],
)
def test_a_wrong_one_fails_the_test_of_its_mistake_with_an_explanation(acme, tmp_path, old, new, case, words):
    changes = {old: new}
    if new == "len((":
        changes['"query_prompt", "document_prompt")'] = '"query_prompt", "document_prompt"))'
    said = run_suite(acme, tmp_path, changes=changes, only=case, ok=False)
    failures = [line for line in said.splitlines() if line.startswith("FAILED") and case in line]
    assert failures, said
    assert words in said


def test_a_cache_that_shares_its_arrays_fails():
    class Sharing:
        def __init__(self):
            self.entries = {}

        def get_many(self, keys):
            return {key: self.entries[key] for key in keys if key in self.entries}

        def set_many(self, items):
            self.entries.update(items)

        def close(self): ...

    class Suite(CacheSuite):
        def make(self, folder):
            return Sharing()

    for case in (
        "test_changing_a_stored_array_does_not_change_the_cache",
        "test_changing_a_returned_array_does_not_change_the_cache",
    ):
        with pytest.raises(AssertionError, match="other numbers"):
            getattr(Suite(), case)(None)


IN_THE_MODULE = """
import sys, threading
import pytest
from embedkit_core.testing import CacheSuite

KEPT = {}

class Cache:
    def __init__(self, folder):
        self.kept = KEPT.setdefault(folder, {})
    def get_many(self, keys):
        return {key: self.kept[key] for key in keys if key in self.kept}
    def set_many(self, items):
        self.kept.update((key, entry._replace(vector=read_only(entry.vector))) for key, entry in items)
    def close(self): ...

def read_only(vector):
    copy = vector.copy()
    copy.flags.writeable = False
    return copy

class TestCache(CacheSuite):
    def make(self, folder):
        return Cache(folder)

class TestHonestCache(TestCache):
    persistent = False

class TestCacheOfThisProcess(TestCache):
    def make(self, folder):
        assert sys.argv[0] != "-c", "there is none"
        return super().make(folder)

class TestCacheOfAFixture(TestCache):
    @pytest.fixture(autouse=True)
    def far_end(self):
        self.lock = threading.Lock()
"""


def test_an_in_process_cache_fails_unless_persistent_is_false_or_no_other_process_can_open_it(tmp_path):
    (tmp_path / "test_mine.py").write_text(IN_THE_MODULE, encoding="utf-8")
    said = run_pytest(tmp_path, ok=False)
    failures = [line for line in said.splitlines() if line.startswith("FAILED")]
    assert len(failures) == 1, said
    assert "TestCache::test_another_process_reads_the_stored_vectors" in failures[0]
    assert "Set persistent = False" in said


class Faithless(ProviderSuite):
    """A server with wrong vectors."""

    model, other_model, other_dimensions, asymmetric = "fake:faithless", "fake:another", 5, True

    def __init__(self, kind):
        self.server = kind()

    @property
    def settings(self):
        return {"base_url": self.server.url}


class OfItsFirstModel(FakeServer):
    first = None

    def vector(self, text, wire):
        self.first = self.first or wire["model"]
        return super().vector(text, {**wire, "model": self.first})


class CutsInSilence(FakeServer):
    def vector(self, text, wire):
        return super().vector(text[:6000], wire)


class OtherInABatch(FakeServer):
    async def answer(self, batch):
        reply = await super().answer(batch)
        return reply if len(batch.texts) <= 24 else replace(reply, vectors=reply.vectors[:, ::-1].copy())


class LostPlaceInABatch(FakeServer):
    """Texts after the first 24 get the vector of another text."""

    async def answer(self, batch):
        reply = await super().answer(batch)
        reply.vectors[24:] = reply.vectors[24:][::-1].copy()
        return reply


class ShortensOnly(FakeServer):
    def vector(self, text, wire):
        return super().vector(text, {**wire, "dimensions": 8})[: wire["dimensions"]]


@pytest.mark.parametrize(
    ("kind", "case", "words"),
    [
        (OfItsFirstModel, "test_another_model_changes_the_request_and_the_vector", "use the model in batch.body"),
        (
            CutsInSilence,
            "test_no_text_is_truncated_silently",
            "8000 characters that differ only at the end have the same vector",
        ),
        (OtherInABatch, COMPANY, "in a large batch than alone"),
        (LostPlaceInABatch, COMPANY, "in a large batch than"),
        (ShortensOnly, "test_vectors_have_unit_length_if_declared", "with dimensions=5 lengths are"),
    ],
)
def test_a_server_that_is_wrong_only_in_some_cases_fails(kind, case, words):
    getattr(Faithless(FakeServer), case)()
    with pytest.raises(AssertionError, match=words):
        getattr(Faithless(kind), case)()


@pytest.mark.parametrize(
    ("limits", "characters"),
    [(Limits(), 8000), (Limits(text_tokens=512), 1024), (Limits(tokens=600, text_tokens=8192), 1200)],
)
def test_the_long_texts_fit_the_limits_of_the_provider(limits, characters):
    one, other = texts_with_different_ends(limits)
    assert len(one) == len(other) == characters
    assert one[: characters * 9 // 10] == other[: characters * 9 // 10]
    assert one != other


CUTS = {
    'name = "acme"': 'name = "acme"\n    truncates_long_texts = True',
    "settings.prompts": "settings.prompts\n        self.cuts = settings.on_long_text == 'truncate'",
    WIRE: WIRE + ', "cuts": self.cuts',
    "for text in batch.texts_with_prompt()": (
        "for text in (t[:3000] if batch.body['cuts'] else t for t in batch.texts_with_prompt())"
    ),
}
NAMES = {
    ROWS + ", tokens=None": ROWS
    + ", None, [i for i, t in enumerate(batch.texts) if batch.body['cuts'] and len(t) > 3000]"
}
ALWAYS = {**CUTS, "for text in batch.texts_with_prompt()": "for text in (t[:3000] for t in batch.texts_with_prompt())"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({**CUTS, **NAMES}, ""), (CUTS, "Reply.truncated"), ({**ALWAYS, **NAMES}, "although on_long_text='error'")],
)
def test_a_truncating_provider_must_report_it_and_obey_on_long_text(acme, tmp_path, changes, words):
    said = run_suite(acme, tmp_path, changes=changes, only="test_no_text_is_truncated_silently", ok=not words)
    assert words in said


class Failing(ProviderSuite):
    """A server that fails with one error for every kind of failure."""

    model, api_key, asymmetric = "fake:failing", "sk-fake-key-of-mine", True

    def __init__(self, error, seen_per_request=1):
        self.server, self.error, self.factor = FakeServer(), error, seen_per_request

    @property
    def settings(self):
        return {"base_url": self.server.url}

    def requests_seen(self):
        return self.factor * len(self.server.received)

    def fail(self, kind):
        self.server.fault_for = lambda texts: self.error(texts) if kind else None


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("test_a_rejected_key", lambda texts: QuotaError("no"), "raises QuotaError instead of AuthenticationError"),
        ("test_a_rejected_key", lambda texts: AuthenticationError(f"no: {texts[0]}"), "contains a text"),
        (
            "test_a_rejected_key",
            lambda texts: AuthenticationError("no", request_id=Failing.api_key),
            "contains the API key",
        ),
        ("test_an_account_without", lambda texts: RateLimitError("no"), "raises RateLimitError instead of Quota"),
        ("test_a_rejected_request", lambda texts: ValueError("no"), "raises ProviderError instead of BadRequest"),
        ("test_a_lasting_outage", lambda texts: ProviderError("no"), "raises ProviderError instead of Unavailable"),
        ("test_a_request_succeeds", lambda texts: BadReplyError("no"), "BadReplyError"),
        ("test_a_rejected_text", lambda texts: AuthenticationError("no"), "AuthenticationError"),
    ],
)
def test_an_error_of_the_wrong_class_or_with_a_secret_fails(case, error, words):
    [name] = [name for name in dir(Failing) if name.startswith(case)]
    with pytest.raises((AssertionError, ProviderError)) as failed:
        getattr(Failing(error), name)()
    assert words in f"{type(failed.value).__name__}: {failed.value}"


def test_a_client_that_retries_by_itself_fails():
    failing = Failing(lambda texts: UnavailableError("no", retry_after=0.0), seen_per_request=3)
    with pytest.raises(AssertionError, match=r"sent 9 requests instead of 3\. Turn off the retries of the SDK"):
        failing.test_a_lasting_outage_is_retried_max_retries_times()


def test_a_log_line_that_holds_a_text_fails():
    def error(texts):
        logging.getLogger("acme.sdk").info("POST /embeddings input=%s", texts)
        return AuthenticationError("no")

    with pytest.raises(AssertionError, match="contains a text"):
        Failing(error).test_a_rejected_key_raises_an_authentication_error_after_one_request()


# Overridden tests


@pytest.mark.parametrize(
    ("override", "passes"),
    [
        (f"def {CASE}(self): pass", False),
        (f"{CASE} = None", False),
        (f"@pytest.mark.skip(reason='later')\n    def {CASE}(self): pass", False),
        (f"@pytest.mark.xfail\n    def {CASE}(self): assert False", False),
        (f"@pytest.mark.xfail(reason='Acme has no order')\n    def {CASE}(self): assert False", False),
        (f"@pytest.mark.xfail(reason='x', strict=False)\n    def {CASE}(self): pass", False),
        (f"@pytest.mark.xfail(strict=True)\n    def {CASE}(self): assert False", False),
        (f"@pytest.mark.xfail(False, reason='x', strict=True)\n    def {CASE}(self): pass", False),
        (f"@pytest.mark.xfail(reason='x', strict=True)\n    def {CASE}(self): assert False", True),
        ("def test_more_of_my_own(self): pass", True),
    ],
)
def test_an_overridden_or_removed_test_fails_the_suite_unless_xfail_has_a_reason(tmp_path, override, passes):
    head = "import pytest\nfrom embedkit_core.testing import *\nserver = FakeServer()\n"
    head += "class TestMine(ProviderSuite):\n    model, asymmetric = 'fake:mine', True\n"
    head += "    settings = {'base_url': server.url}\n    other_dimensions = 4\n    "
    (tmp_path / "test_mine.py").write_text(head + override + "\n", encoding="utf-8")
    said = run_pytest(tmp_path, ok=passes)
    assert ("1 failed" in said) is not passes
    assert passes or f"TestMine overrides or removes {CASE}" in said


def test_a_test_that_passes_despite_xfail_fails_the_suite(tmp_path):
    head = "import pytest\nfrom embedkit_core.testing import *\nserver = FakeServer()\n"
    head += "class TestMine(ProviderSuite):\n    model, settings = 'fake:mine', {'base_url': server.url}\n    "
    code = f"{head}@pytest.mark.xfail(reason='x', strict=True)\n    def {CASE}(self): pass\n"
    (tmp_path / "test_mine.py").write_text(code, encoding="utf-8")
    assert "XPASS(strict)" in run_pytest(tmp_path, only=CASE, ok=False)


def test_a_test_from_a_mixin_is_an_override_too():
    class Mixin:
        def test_rows_are_in_the_order_of_the_texts(self): ...

    class Mine(Mixin, ProviderSuite): ...

    with pytest.raises(AssertionError, match=f"Mine overrides or removes {CASE}"):
        getattr(Mine(), GUARD)()


@pytest.mark.parametrize("suite", [ProviderSuite, CacheSuite, CoordinationSuite])
def test_the_guard_test_cannot_be_overridden(suite):
    with pytest.raises(TypeError, match=GUARD):
        type("Mine", (suite,), {GUARD: lambda self: None})


def test_a_suite_without_settings_says_what_it_needs():
    with pytest.raises(AssertionError, match="has no model"):
        ProviderSuite().embedder()
    with pytest.raises(NotImplementedError, match=r"make\(self, folder\)"):
        CacheSuite().make(None)
    with pytest.raises(NotImplementedError, match=r"make\(self, folder\)"):
        CoordinationSuite().make(None)


# Without pytest

WITHOUT = """
import sys
sys.modules["pytest"] = None
import embedkit_core.testing
embedkit_core.testing.FakeServer()
try:
    from embedkit_core.testing import {suite}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("suite", ["ProviderSuite", "CacheSuite", "CoordinationSuite"])
def test_without_pytest_only_the_suites_are_missing_and_the_error_has_the_install_command(suite):
    assert "pip install pytest" in run_command(sys.executable, "-c", WITHOUT.format(suite=suite))


def test_importing_the_testing_kit_imports_no_pytest():
    said = run_command(sys.executable, "-c", "import sys, embedkit_core.testing; print('pytest' in sys.modules)")
    assert said == "False\n"


def test_every_name_in_all_of_the_testing_package_exists():
    assert all(getattr(testing, name) is not None for name in testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Suit'"):
        testing.Suit  # noqa: B018


@pytest.mark.parametrize(
    ("argument", "value"),
    [("latency", -1), ("latency", float("inf")), ("dimensions", 0), ("max_words", 0), ("usd_per_million", -1)],
)
def test_an_invalid_argument_of_the_fake_server_is_refused(argument, value):
    with pytest.raises(ConfigurationError, match=f"^{argument}: must be"):
        FakeServer(**{argument: value})
