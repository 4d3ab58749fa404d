"""The callable that workers use: small pickles without keys, one embedder a process, errors raised or in a column."""

import os
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from support.caches import DictCache
from support.embedders import numbered, texts_sent
from support.openai_client import expected
from support.openai_server import Fault

from embedkit_core import (
    AuthenticationError,
    BudgetError,
    ConfigurationError,
    Embedder,
    InputError,
    PartialFailureError,
    UnavailableError,
    track_usage,
)
from embedkit_core.fleet import ColumnEmbedder

MODEL = "openai:text-embedding-3-small"
KEY = "sk-of-the-environment"


def key_of_module() -> str:
    """Return the key, as a function of a user's module would."""
    return KEY


class LockedLimiter:
    """A rate limiter that cannot be pickled, such as LangChain's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Permit a request."""
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch, server):
    server.api_key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)


def embedder(**options):
    return Embedder(MODEL, **{"cache": False, "dimensions": 8, "max_retries": 0, **options})


def rows(texts):
    return expected(texts, dimensions=8)


def test_a_batch_gets_the_vectors_of_its_texts(server):
    texts = [*numbered(5), "text-0 word"]
    embed = ColumnEmbedder(embedder())
    batch = embed({"text": np.array(texts), "id": np.arange(6)})
    np.testing.assert_allclose(batch["vector"], rows(texts), atol=1e-6)
    assert batch["id"].tolist() == [0, 1, 2, 3, 4, 5]
    assert embed.usage.sent == 5
    assert embed.usage.duplicates == 1


def test_a_model_name_stands_for_an_embedder_with_defaults(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    batch = ColumnEmbedder(MODEL, "line", "row", input_type="query")({"line": ["a query"]})
    assert batch["row"].shape == (1, 1536)


def test_a_pickle_is_small_and_has_no_key(tmp_path):
    full = embedder(cache=[tmp_path, "redis://redis.internal:6379/0"], requests_per_minute=3000, account="team")
    pickled = pickle.dumps(ColumnEmbedder(full, "text", "vector", error_column="error"))
    assert len(pickled) < 600 + len(str(tmp_path))
    assert KEY.encode() not in pickled


def test_copies_in_a_process_share_an_embedder(server):
    pickled = pickle.dumps(ColumnEmbedder(embedder(budget_tokens=1000, budget_name="b", cache="unused")))
    copies = [pickle.loads(pickled) for _ in range(3)]
    assert len({id(copy.embedder) for copy in copies}) == 1
    other = ColumnEmbedder(embedder(dimensions=16))
    assert other.embedder is not copies[0].embedder


def test_threads_share_an_embedder_and_get_their_own_rows(server):
    pickled = pickle.dumps(ColumnEmbedder(embedder()))

    def run(n):
        texts = [f"text {i}" for i in range(n, n + 20)]
        vectors = pickle.loads(pickled)({"text": texts})["vector"]
        np.testing.assert_allclose(vectors, rows(texts), atol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(0, 160, 20)))
    assert sorted(texts_sent(server)) == sorted(f"text {i}" for i in range(160))


def test_a_worker_reports_a_missing_key_at_the_first_batch(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL")
    pickled = pickle.dumps(ColumnEmbedder(embedder()))
    monkeypatch.delenv("OPENAI_API_KEY")
    embed = pickle.loads(pickled)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        embed({"text": ["a"]})


# What cannot be sent to workers


@pytest.mark.parametrize("pickled", [False, True])
def test_an_embedder_with_a_key_is_refused(pickled):
    with pytest.raises(ConfigurationError, match=r"api_key: no key is sent.*OPENAI_API_KEY") as raised:
        ColumnEmbedder(embedder(api_key="sk-argument", pickle_api_key=pickled))
    assert "sk-argument" not in str(raised.value)


def test_a_key_function_of_a_module_is_sent(server):
    embed = pickle.loads(pickle.dumps(ColumnEmbedder(embedder(api_key=key_of_module, pickle_api_key=True))))
    assert embed({"text": ["a"]})["vector"].shape == (1, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key": key_of_module}, "api_key: is not sent .* Set pickle_api_key=True"),
        ({"api_key": lambda: KEY, "pickle_api_key": True}, "api_key: the function cannot be pickled"),
        ({"headers": {"X-Team": "search"}}, "headers: is not sent .* Set pickle_api_key=True"),
        ({"proxy": "http://user:secret@proxy:80"}, "proxy: is not sent .* Set pickle_api_key=True"),
        ({"budget_tokens": 10}, "budget_usd, budget_tokens: .* Set budget_name="),
        ({"rate_limiter": LockedLimiter()}, "rate_limiter: the LockedLimiter cannot be pickled"),
        ({"cache": DictCache()}, "cache: an embedder with a cache object"),
    ],
)
def test_what_workers_would_not_get_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message) as raised:
        ColumnEmbedder(embedder(**options))
    assert "secret" not in str(raised.value).replace("hold a secret", "")


def test_limits_that_workers_do_not_share_are_warned_of(tmp_path, caplog):
    ColumnEmbedder(embedder(cache=tmp_path, requests_per_minute=10))
    ColumnEmbedder(embedder())
    assert not caplog.text
    ColumnEmbedder(embedder(requests_per_minute=10))
    assert "requests_per_minute and tokens_per_minute of" in caplog.text


def test_headers_are_sent_on_request(server):
    embed = ColumnEmbedder(embedder(headers={"X-Team": "search"}, pickle_api_key=True))
    pickle.loads(pickle.dumps(embed))({"text": ["a"]})
    assert server.requests[0].headers["x-team"] == "search"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedder": 5}, r"embedder: must be an embedkit_core.Embedder .*\(got int\)"),
        ({"text_column": ""}, "text_column: must be the name of a column"),
        ({"vector_column": None}, "vector_column: must be the name of a column"),
        ({"error_column": 3}, "error_column: must be the name of a column"),
        ({"vector_column": "text"}, "must be different"),
        ({"error_column": "vector"}, "must be different"),
        ({"input_type": "documents"}, "input_type: must be one of"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        ColumnEmbedder(**{"embedder": embedder(), **arguments})


# Errors


def test_invalid_texts_raise_before_anything_is_sent(server):
    with pytest.raises(
        InputError, match=r"at position 1\. Pass strings, .* Positions are those of the rows. With error_column="
    ) as raised:
        ColumnEmbedder(embedder())({"text": ["a", None]})
    assert raised.value.indices == (1,)
    assert not server.requests


def test_a_failure_raises_even_if_the_embedder_returns_errors(server):
    server.fault_for(lambda texts, _: Fault(status=500) if "bad" in texts else None)
    embed = ColumnEmbedder(embedder(on_error="return", max_batch_texts=1))
    with pytest.raises(PartialFailureError):
        embed({"text": ["a", "bad", "b"]})


def test_errors_go_to_a_column(server):
    server.fault_for(lambda texts, _: Fault(status=500) if "bad" in texts else None)
    texts = ["a", "bad", None, "", "\ud800", "b", "bad"]
    embed = ColumnEmbedder(embedder(max_batch_texts=1), error_column="error")
    with track_usage() as tracked:
        batch = embed({"text": np.array(texts, dtype=object)})
    assert (embed.usage.texts, embed.usage.failed) == (tracked.texts, tracked.failed) == (7, 4)  # and a duplicate
    right = [0, 5]
    np.testing.assert_allclose(batch["vector"][right], rows(["a", "b"]), atol=1e-6)
    assert np.isnan(np.delete(batch["vector"], right, axis=0)).all()
    errors = batch["error"].tolist()
    assert [error is None for error in errors] == [True, False, False, False, False, True, False]
    assert errors[2] == "The text is not a string (got NoneType)."
    assert "500" in errors[1]
    assert errors[1] == errors[6]


def test_texts_without_a_vector_are_zero_in_an_integer_type(server):
    batch = ColumnEmbedder(embedder(dtype="ubinary"), error_column="error")(pa.table({"text": ["a", None]}))
    assert batch["vector"].to_pylist()[1] == [0]
    assert batch["error"].null_count == 1


def test_a_batch_that_fails_as_a_whole_has_its_error_in_each_row(server):
    server.fault_for(lambda texts, _: Fault(status=500))
    batch = ColumnEmbedder(embedder(), error_column="error")({"text": ["a", "b"]})
    assert batch["vector"].shape == (2, 8)
    assert np.isnan(batch["vector"]).all()
    assert all("500" in error for error in batch["error"])


def test_a_failed_batch_of_unknown_width_raises(server):
    server.fault_for(lambda texts, _: Fault(status=500))
    embed = ColumnEmbedder(Embedder("any", base_url=server.base_url, cache=False, max_retries=0), error_column="error")
    with pytest.raises(UnavailableError):
        embed({"text": ["a"]})
    with pytest.raises(InputError, match="Set dimensions="):
        embed({"text": [None]})


@pytest.mark.parametrize("error_column", [None, "error"])
def test_what_concerns_all_batches_raises_in_any_case(server, tmp_path, error_column):
    limited = embedder(budget_tokens=4, budget_name="small", cache=tmp_path, max_batch_texts=1)
    with pytest.raises(BudgetError):
        ColumnEmbedder(limited, error_column=error_column)({"text": numbered(4)})
    server.api_key = "sk-another"
    with pytest.raises(AuthenticationError):
        ColumnEmbedder(embedder(), error_column=error_column)({"text": ["a"]})


def test_no_engine_is_imported_or_needed():
    code = """
        import sys
        for name in ("ray", "dask", "pandas", "pyarrow"):
            sys.modules[name] = None  # cannot be imported
        from embedkit_core import Embedder
        from embedkit_core.fleet import ColumnEmbedder
        print(ColumnEmbedder(Embedder("openai:text-embedding-3-small", cache=False))({"text": ["a"]})["vector"].shape)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ.copy(), check=False)
    assert done.stdout == "(1, 1536)\n", done.stderr
