"""The layers of the code: which package may import which, read from the source.

Imports under `if TYPE_CHECKING:`, inside functions and by `import_module` count like all others.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import embedkit_core
from embedkit_core import cache
from embedkit_core.adapters import arguments, base
from embedkit_core.common.plugins import COMPATIBLE

ROOT = Path(__file__).parents[2]
CORE = ROOT / "shared" / "embedkit_core"
ADAPTERS = {
    "langchain_embedkit": {"langchain_core"},
    "llamaindex_embedkit": {"llama_index", "llama_index_instrumentation"},
}
# From the top down: a module imports modules of its own layer and of the layers below. Every module has a layer: that
# of the longest name here that it begins with. Modules of the two adapter packages do not import each other.
LAYERS = [
    "langchain_embedkit",
    "llamaindex_embedkit",
    "embedkit_core.__main__",
    "embedkit_core.cli",
    "embedkit_core.tools",
    "embedkit_core.frames",
    "embedkit_core.fleet",
    "embedkit_core.testing",
    "embedkit_core.adapters",
    "embedkit_core",  # its __init__.py: the public names
    "embedkit_core.embedder",
    "embedkit_core.batches",
    "embedkit_core.calls",
    "embedkit_core.config",
    "embedkit_core.observability",
    "embedkit_core.engine",
    "embedkit_core.engine.runtime",
    "embedkit_core.engine.scheduler",
    "embedkit_core.engine.rate_limits",
    "embedkit_core.engine.batching",
    "embedkit_core.coordination",
    "embedkit_core.costs",
    "embedkit_core.cache",
    "embedkit_core.providers",
    "embedkit_core.common",
]
# Decisions without I/O: what the Hypothesis state machine drives on a virtual clock.
NO_IO = [
    "engine/scheduler",
    "engine/rate_limits",
    "engine/batching.py",
    "coordination/port.py",
    "coordination/rules.py",
    "coordination/sliding_window.py",
    "costs/amounts.py",
    "costs/budget.py",
    "costs/tokens.py",
]
IO_MODULES = {"asyncio", "concurrent", "multiprocessing", "os", "queue", "socket", "threading", "time"}
PROVIDER_NAMES = {
    "openai",
    "local",
    "fastembed",
    "model2vec",
    "fake",
    "voyage",
    "cohere",
    "nomic",
    "hf-inference",
    "google",
    "vertex",
    "bedrock",
    "azure",
}
PROVIDER_NAMES |= {*COMPATIBLE}
MAX_LINES = 450
LONGER_FILES = {"embedkit_core.embedder": "one class; most lines document its methods"}  # why they are not split
MAX_ROOT_ENTRIES = 19  # the layers, four files and the entry points for people: cli, tools, frames, fleet, testing


def modules() -> dict[str, Path]:
    """Return all modules of the three packages by dotted name."""
    found = {}
    for base_folder, package in ((ROOT / "shared", "embedkit_core"), *((ROOT, name) for name in ADAPTERS)):
        for path in sorted((base_folder / package).rglob("*.py")):
            parts = path.relative_to(base_folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
SOURCES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported_names(module: str) -> Iterator[str]:
    """Yield the dotted names that a module imports anywhere."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            yield from (name.value for name in node.args if isinstance(name, ast.Constant))


def module_of(name: str) -> str | None:
    """Return the module that a dotted name is or is defined in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def imports() -> dict[str, set[str]]:
    """Return the imported modules of the three packages, by module."""
    found = defaultdict(set)
    for module in MODULES:
        found[module] = {target for name in imported_names(module) if (target := module_of(name))} - {module}
    return found


IMPORTS = imports()


def layer_of(module: str) -> str:
    name = module
    while name not in LAYERS:
        name = name.rpartition(".")[0]
    return module if module == "embedkit_core" else name


def outside(module: str) -> set[str]:
    """Return the top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imported_names(module)}


def test_every_module_imports_its_own_layer_and_the_layers_below():
    # The name of the whole core stands for its __init__.py alone.
    homeless = [m for m in MODULES if m != "embedkit_core" and layer_of(m) == "embedkit_core"]
    assert not homeless, "these modules have no layer: add them to LAYERS"
    upward = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target in targets
        if LAYERS.index(layer_of(target)) < LAYERS.index(layer_of(module))
    ]
    assert not upward


def test_every_layer_exists():
    assert {layer_of(module) for module in MODULES} == set(LAYERS)


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        raise AssertionError(f"import circle: {' -> '.join(error.args[1])}") from None


def test_the_adapters_do_not_import_each_other_and_only_public_names_of_the_core():
    public = {f"embedkit_core.{name}" for name in embedkit_core.__all__}
    for module in (base, arguments, cache):
        public |= {f"{module.__name__}.{name}" for name in module.__all__}
    frameworks = set().union(*ADAPTERS.values())
    for adapter, framework in ADAPTERS.items():
        for module in (m for m in MODULES if m.partition(".")[0] == adapter):
            assert {n for n in imported_names(module) if n.startswith("embedkit_core")} <= public, module
            assert not outside(module) & (
                ({*ADAPTERS, "openai", "torch", "numpy"} | frameworks) - framework - {adapter}
            )


def test_the_adapters_have_no_loop_thread_or_clock():
    """Batching, caching, retries and counting belong to the core."""
    found = []
    for module in (m for m in MODULES if m.partition(".")[0] in ADAPTERS):
        loops = [node for node in ast.walk(SOURCES[module]) if isinstance(node, (ast.For, ast.AsyncFor, ast.While))]
        found += [module] * bool(loops or outside(module) & {"asyncio", "threading", "time", "functools"})
    assert not found


def test_the_core_imports_no_framework():
    frameworks = {"langchain", "langchain_core", "llama_index", "llama_index_instrumentation", "pydantic", *ADAPTERS}
    assert not [m for m in MODULES if m.partition(".")[0] == "embedkit_core" and outside(m) & frameworks]


def test_the_decision_modules_have_no_io():
    checked = [m for m, path in MODULES.items() for part in NO_IO if path.is_relative_to(CORE / part)]
    assert len(checked) > len(NO_IO)
    assert not [m for m in checked if outside(m) & IO_MODULES]
    assert not [m for m in checked if any(t.startswith("embedkit_core.engine.runtime") for t in IMPORTS[m])]


def test_only_a_provider_compares_provider_names():
    found = []
    for module in MODULES:
        if set(module.split(".")) & PROVIDER_NAMES:
            continue
        for node in ast.walk(SOURCES[module]):
            if isinstance(node, (ast.Compare, ast.MatchValue)):
                strings = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                found += [f"{module}:{node.lineno}"] * bool(strings & PROVIDER_NAMES)
    assert not found


def test_every_long_file_is_listed_with_a_reason():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name for name, n in lines.items() if n > MAX_LINES} == set(LONGER_FILES)


def test_the_root_of_the_core_has_few_entries():
    entries = {path.name for path in CORE.iterdir()} - {"__pycache__", "py.typed"}
    assert len(entries) <= MAX_ROOT_ENTRIES, sorted(entries)
