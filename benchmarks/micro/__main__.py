"""Run a small benchmark by its name.

python -m benchmarks.micro imports --rounds 15
"""

import sys
from importlib import import_module
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def main() -> int:
    """Run the benchmark that the first argument names, with the other arguments."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in NAMES:
        print(f"usage: python -m benchmarks.micro {{{','.join(NAMES)}}} [--help]", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    sys.argv = [f"benchmarks.micro {name}", *arguments]
    return import_module(f"benchmarks.micro.{name}").main() or 0


if __name__ == "__main__":
    sys.exit(main())
