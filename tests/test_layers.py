"""The house's doors: who imports whom, read from the source and not from what happens to be loaded."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "shared" / "embedkit_core"
ADAPTERS = {
    "langchain_embedkit": {"langchain_core"},
    "llamaindex_embedkit": {"llama_index", "llama_index_instrumentation"},
}
PURE = [
    *("scheduler", "turns", "queues", "packing", "pace", "own", "flow", "recent"),
    *("failures", "retry", "longtext", "replies", "items", "budget", "purse", "money", "deadlines", "notes"),
]
PRESETS = {"azure", "ollama", "vllm", "tei", "infinity", "lmstudio"}
PROVIDERS = {"openai", "local", "fake", "voyage", "cohere", *PRESETS}
FILES = sorted([*CORE.rglob("*.py"), *(path for name in ADAPTERS for path in (ROOT / name).rglob("*.py"))])
LONGEST = 330


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().removeprefix("shared/")


each_file = pytest.mark.parametrize("path", FILES, ids=named)


def imports(path: Path) -> set[str]:
    """Every name a file imports, as in "embedkit_core.types.Batch"; those for the type checker only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """The modules of the core that a file imports, without the package's name."""
    found = {name.removeprefix("embedkit_core.") for name in imports(path) if name.startswith("embedkit_core.")}
    return {name for name in found if not name.startswith("_")}


def within(names: set[str], rooms: set[str]) -> bool:
    return all(any(name == room or name.startswith(f"{room}.") for room in rooms) for name in names)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_knows_its_host_and_public_names_of_the_core(adapter):
    import embedkit_core
    from embedkit_core import hosts

    public = {f"embedkit_core.{name}" for name in embedkit_core.__all__}
    public |= {f"embedkit_core.hosts.{name}" for name in hosts.__all__}
    for path in (ROOT / adapter).rglob("*.py"):
        names = imports(path)
        assert {name for name in names if name.startswith("embedkit_core")} <= public
        strangers = (set(ADAPTERS) | {"openai", "torch", "numpy"} | set().union(*ADAPTERS.values())) - ADAPTERS[adapter]
        assert not {name.partition(".")[0] for name in names} & (strangers - {adapter})


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=named)
def test_the_core_knows_no_framework(path):
    tops = {name.partition(".")[0] for name in imports(path)}
    assert not tops & {
        "langchain_core",
        "langchain",
        "llama_index",
        "llama_index_instrumentation",
        "pydantic",
        *ADAPTERS,
    }


@pytest.mark.parametrize(
    ("room", "doors"),
    [
        ("form.py", set()),
        ("types.py", {"form", "lists"}),  # a result's to_lists() reaches for it when it is called
        ("errors.py", set()),
        ("catalogue", {"types", "errors", "form", "catalogue"}),
        ("order.py", {"types", "errors", "form"}),
        ("secrets.py", {"errors"}),
        ("plan.py", {"types", "errors", "engine.packing"}),
        ("lists.py", {"types", "forks", "form"}),
        ("meter.py", {"types", "forks"}),
        ("plugins.py", {"errors", "forks"}),
        ("cache", {"types", "errors", "forks", "plugins", "cache"}),
        ("engine", {"types", "errors", "form", "forks", "meter", "engine"}),
        ("providers", {"types", "errors", "form", "secrets", "plugins", "forks", "engine.retry", "providers"}),
        # What stands on the front door; nothing below it knows of them.
        ("tools", {"embedder", "errors", "types", "form", "config", "progress", "tracking", "tools"}),
        ("cli", {"embedder", "errors", "types", "forecast", "catalogue", "cache.tending", "tracking", "tools", "cli"}),
        # The suites go in by the front door, as those do who write a provider or a cache; the fake is a provider.
        (
            "testing",
            {
                "embedder",
                "engine.budget.most_tokens",
                "types",
                "errors",
                "providers",
                "cache.Cache",
                "cache.Entry",
                "testing",
            },
        ),
        ("testing/fake.py", {"types", "errors", "providers"}),
    ],
)
def test_a_room_has_these_doors_and_no_others(room, doors):
    place = CORE / room
    for path in [place] if place.suffix else place.rglob("*.py"):
        assert within(ours(path), doors), (named(path), ours(path))


@pytest.mark.parametrize("name", PURE)
def test_the_scheduler_and_its_parts_hold_no_thread_no_clock_and_no_socket(name):
    tops = {name.partition(".")[0] for name in imports(CORE / "engine" / f"{name}.py")}
    assert not tops & {"threading", "asyncio", "socket", "time", "concurrent", "queue", "multiprocessing", "os"}
    parts = {f"engine.{part}" for part in PURE}
    assert within(
        ours(CORE / "engine" / f"{name}.py"),
        parts | {"types", "errors", "form", "forks.tell_child", "meter", "engine.longtext"},
    )


@each_file
def test_nobody_but_a_provider_asks_which_provider_it_is(path):
    if path.stem in {*PROVIDERS, "presets"} and path.parent.name in ("providers", "testing"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Compare, ast.MatchValue)):
            strings = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            assert not strings & PROVIDERS, f"{named(path)}:{node.lineno}"


@each_file
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_stays_thin(adapter):
    """No loop, no pool, no clock: batching, caching, retrying and counting are the core's."""
    for path in (ROOT / adapter).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, (ast.For, ast.AsyncFor, ast.While))]
        assert not {name.partition(".")[0] for name in imports(path)} & {"asyncio", "threading", "time", "functools"}


def test_nothing_below_knows_of_the_tools_and_the_command():
    for path in CORE.rglob("*.py"):
        if path.relative_to(CORE).parts[0] not in ("tools", "cli", "__main__.py"):
            assert not {name for name in ours(path) if name.partition(".")[0] in ("tools", "cli")}, named(path)
