"""Imports load no SDK, torch, tokenizer or other framework, and a missing extra is a clear error."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.embedders import MINILM, needs_local_model

import embedkit_core
from embedkit_core import ConfigurationError, MissingExtraError
from embedkit_core.common import errors

ROOT = Path(__file__).parents[2]
OPENAI = "openai:text-embedding-3-small"
NAMES = {
    "embedkit_core": "Embedder",
    "langchain_embedkit": "EmbedKitEmbeddings",
    "llamaindex_embedkit": "EmbedKitEmbedding",
}
HOSTS = {"langchain_embedkit": "langchain_core.embeddings.embeddings", "llamaindex_embedkit": "llama_index.core"}
HEAVY = {
    "openai", "voyageai", "cohere", "botocore", "aiohttp", "httpx", "httpx2", "torch", "transformers",
    "sentence_transformers", "tokenizers", "tiktoken", "huggingface_hub", "orjson", "pybase64", "scipy", "sklearn",
    "fastembed", "onnxruntime", "model2vec",
}  # fmt: skip
FRAMEWORKS = {"langchain_core", "langchain", "llama_index", "llama_index_instrumentation", "pydantic"}

LOADED = """
import importlib, json, sys
for name in filter(None, sys.argv[1].split(",")):
    importlib.import_module(name)
before = set(sys.modules)
exec(sys.argv[2])
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def loads(code: str, *, after: str = "") -> set[str]:
    """Return the packages that code imports in a new process, without those of `after`."""
    command = [sys.executable, "-W", "error", "-c", LOADED, after, code]
    env = os.environ | {"OPENAI_API_KEY": "x", "VOYAGE_API_KEY": "x", "CO_API_KEY": "x", "GOOGLE_API_KEY": "x"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=env)
    assert (run.returncode, run.stderr) == (0, "")
    return set(json.loads(run.stdout))


def test_the_core_imports_nothing_heavy_and_no_framework():
    assert not loads("import embedkit_core, embedkit_core.adapters.base, embedkit_core.testing") & (HEAVY | FRAMEWORKS)


def test_opentelemetry_is_imported_by_instrument_only():
    used = "from embedkit_core import Embedder; import embedkit_core.observability.otel; "
    used += "Embedder({!r}, cache=False).explain('x')"
    assert "opentelemetry" not in loads(used.format(OPENAI))
    assert "opentelemetry" in loads(
        "from embedkit_core.observability.otel import instrument; instrument()", after="embedkit_core"
    )


@pytest.mark.parametrize(
    "model",
    [
        *(OPENAI, "voyage:voyage-4", "cohere:embed-v4.0"),
        *("bedrock:amazon.titan-embed-text-v2:0", "google:gemini-embedding-2"),
        pytest.param(MINILM, marks=needs_local_model),
    ],
    ids=["openai", "voyage", "cohere", "bedrock", "google", "local"],
)
def test_making_an_embedder_imports_no_sdk_and_no_framework(model):
    made = "from embedkit_core import Embedder; Embedder({!r}, cache=False).explain('x')"
    assert not loads(made.format(model)) & (HEAVY | FRAMEWORKS)


@pytest.mark.parametrize("package", HOSTS)
def test_an_adapter_imports_no_more_than_its_framework(package):
    made = f"from {package} import {NAMES[package]} as door; door(model={OPENAI!r}, cache=False)"
    [other] = HOSTS.keys() - {package}
    others = {HOSTS[other].partition(".")[0], other}
    assert not loads(made, after=HOSTS[package]) & (HEAVY | others)


def test_the_langchain_adapter_imports_no_llamaindex_and_no_tokenizer():
    assert not loads("import langchain_embedkit") & {"llama_index", "tiktoken", "torch", "openai", "transformers"}


@pytest.mark.parametrize("package", HOSTS)
def test_an_adapter_imports_public_names_of_the_core_and_what_adapters_share(package):
    allowed = {"embedkit_core", "embedkit_core.adapters.arguments", "embedkit_core.adapters.base"}
    if package == "langchain_embedkit":
        allowed.add("embedkit_core.cache")  # the public interface for cache authors
    found = set()
    for file in (ROOT / package).glob("**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "embedkit_core":
                found.add(node.module)
                if node.module == "embedkit_core":
                    assert {alias.name for alias in node.names} <= {*embedkit_core.__all__}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name.startswith("embedkit_core")}
    assert found == allowed


@pytest.mark.parametrize("package", NAMES)
def test_every_package_is_marked_as_typed(package):
    [folder] = [root / package for root in (ROOT, ROOT / "shared") if (root / package).is_dir()]
    assert (folder / "py.typed").is_file()


@pytest.mark.parametrize("package", NAMES)
def test_all_lists_names_that_exist(package):
    module = __import__(package)
    assert NAMES[package] in module.__all__
    assert set(module.__all__) <= set(dir(module))
    assert all(hasattr(module, name) for name in module.__all__)


def test_every_error_class_is_exported_and_documented():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    defined -= {"EncodingRefusedError", "FileNotReadyError"}  # answered with another encoding, and with a retry
    assert defined <= {*embedkit_core.__all__}
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert [name for name in sorted(defined) if f"\n| `{name}`" not in page] == []


MISSING = """
import sys
from {package} import {name}
from embedkit_core import MissingExtraError
try:
    {name}(model=sys.argv[1], api_key="x", cache=False)
except MissingExtraError as error:
    print(error.extra, error)
"""


@pytest.mark.parametrize(("package", "name"), NAMES.items())
@pytest.mark.parametrize(
    ("model", "extra", "absent"),
    [
        (OPENAI, "openai", ("openai", "httpx2", "pybase64")),
        (MINILM, "local", ("sentence_transformers", "torch", "transformers", "huggingface_hub")),
    ],
    ids=["openai", "local"],
)
def test_without_an_extra_the_error_has_the_install_command(package, name, model, extra, absent, tmp_path):
    """The process sees links to all installed packages except the absent ones."""
    for installed in Path(np.__file__).parents[1].iterdir():
        if re.split(r"[.-]", installed.name)[0] not in absent:
            (tmp_path / installed.name).symlink_to(installed)
    path = os.pathsep.join(map(str, [tmp_path, ROOT, ROOT / "shared"]))
    code = MISSING.format(package=package, name=name)
    run = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code, model],
        env={"PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert run.stdout.startswith(f"{extra} the {extra} provider needs"), run.stderr
    assert f'pip install "rag-embedkit[{extra}]"' in run.stdout
    assert extra in importlib.metadata.metadata("rag-embedkit").get_all("Provides-Extra")


def test_a_missing_extra_is_a_configuration_error_and_an_import_error():
    assert issubclass(MissingExtraError, ConfigurationError)
    assert issubclass(MissingExtraError, ImportError)
