"""The tools find what would fail after the texts are billed, before they send anything."""

import subprocess
import sys

import pytest

from embedkit_core import ConfigurationError
from embedkit_core.testing import FakeServer
from embedkit_core.tools import Task, compare

DOCUMENTS = {f"d{i}": f"document number {i}" for i in range(12)}
TASK = Task("small", DOCUMENTS, {"q": "document number 1"}, {"q": {"d1": 1}})

WITHOUT_A_PACKAGE = """
import sys
sys.modules[sys.argv[1]] = None
from embedkit_core import MissingExtraError
from embedkit_core.testing import FakeServer
from embedkit_core.tools import Task, bench, compare
server = FakeServer()
calls = {
    "compare": lambda: compare("fake:x", Task("t", {"d": "x"}, {"q": "x"}, {"q": {"d": 1}}), base_url=server.url),
    "bench": lambda: bench("fake:x", sizes=8, most=1, base_url=server.url),
}
try:
    calls[sys.argv[2]]()
except MissingExtraError as error:
    print(len(server.received), error.extra, error)
"""


@pytest.mark.parametrize("tool", ["compare", "bench"])
@pytest.mark.parametrize("package", ["ir_measures", "matplotlib"])
def test_without_the_tools_extra_nothing_is_sent_and_the_error_has_the_install_command(package, tool):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_A_PACKAGE, package, tool]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == (
        f'0 tools {tool}() needs the extra [tools], which is not installed. Run: pip install "rag-embedkit[tools]"\n'
    ), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ks": (0,)}, r"ks: must be an integer of at least 1 \(got 0\)"),  # trec_eval ends the process
        ({"ks": 10}, r"ks: must be a sequence \(got 10\)\. Example: ks=\(10, 100\)"),
        ({"seed": -1}, "seed: must be an integer of at least 0"),
        ({"dimensions": 256}, "dimensions: must be a sequence"),
        ({"dimensions": ("own", 256)}, "dimensions: must be an integer of at least 1"),
        ({"dtypes": "int8"}, "dtypes: must be a sequence"),
        ({"dtypes": ("int88",)}, "dtypes: must be one of .* did you mean 'int8'"),
        ({"progress": "yes"}, "progress: must be True"),
    ],
)
def test_an_invalid_argument_of_compare_is_refused_before_anything_is_sent(arguments, message):
    server = FakeServer()
    with pytest.raises(ConfigurationError, match=message):
        compare("fake:model", TASK, base_url=server.url, cache=False, **arguments)
    assert server.received == []


@pytest.mark.parametrize(
    ("documents", "queries", "judgements", "message"),
    [
        ({1: "x"}, {"q": "y"}, {"q": {1: 1}}, r"documents: ids must be strings \(got 1\)"),
        (DOCUMENTS, {"q": " "}, {"q": {"d1": 1}}, "queries: the text of 'q' cannot be embedded"),
        (DOCUMENTS, {"q": "y"}, {"q": {"d1": 0.5}}, "relevance of documents must be integers"),
        (DOCUMENTS, {"q": "y"}, {"q": {"d1"}}, "relevance of documents must be integers"),
        (DOCUMENTS, {"q": "y"}, {"q": {"d1": 1}, "r": {"d1": 1}}, "1 unknown query, such as 'r'"),
        (DOCUMENTS, {"q": "y"}, {"q": {"d99": 1}}, "1 missing document, such as 'd99'"),
        (DOCUMENTS, {"q": "y"}, {"q": {}}, "no judged queries"),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused(documents, queries, judgements, message):
    with pytest.raises(ConfigurationError, match=message):
        Task("small", documents, queries, judgements)
