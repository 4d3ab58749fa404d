"""Import time of each package in a new process, and what it adds to the import of its framework.

Prints medians in milliseconds. The goal: `import langchain_embedkit` takes at most 100 ms more than
`import langchain_core.embeddings, numpy`.
"""

import argparse
import statistics
import subprocess
import sys
import time

NOTHING = "pass"
LANGCHAIN = "from langchain_core.embeddings import Embeddings; import numpy"
LLAMAINDEX = "from llama_index.core.base.embeddings.base import BaseEmbedding; import numpy"
PAIRS = [
    ("import numpy", "import embedkit_core"),
    ("import langchain_core.embeddings, numpy", "import langchain_embedkit"),
    (LANGCHAIN, "from langchain_embedkit import EmbedKitEmbeddings"),
    (LLAMAINDEX, "from llamaindex_embedkit import EmbedKitEmbedding"),
]


def seconds(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="processes per statement (default: 15)")
    rounds = parser.parse_args().rounds
    statements = [NOTHING, *(statement for pair in PAIRS for statement in pair)]
    taken: dict[str, list[float]] = {statement: [] for statement in statements}
    for _ in range(rounds + 1):  # statements take turns, so that load affects all; the first round fills the disk cache
        for statement in statements:
            taken[statement].append(seconds(statement))
    ms = {statement: statistics.median(times[1:]) * 1000 for statement, times in taken.items()}
    for statement in statements:
        print(f"{ms[statement] - ms[NOTHING]:7.0f} ms  {statement}")
    print()
    for framework, ours in PAIRS:
        print(f"{ms[ours] - ms[framework]:+7.0f} ms ({ms[ours] / ms[framework]:.2f} x)  {ours}  over  {framework}")
