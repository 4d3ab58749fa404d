"""Check that a wheel holds the three packages with their scripts, typed, and nothing else: `check_wheel.py <wheel>`."""

import sys
import zipfile
from pathlib import Path

PACKAGES = {"embedkit_core", "langchain_embedkit", "llamaindex_embedkit"}

names = zipfile.ZipFile(sys.argv[1]).namelist()
found = {name.partition("/")[0] for name in names}
found = {name for name in found if not name.endswith(".dist-info")}
if found != PACKAGES:
    sys.exit(f"the wheel holds {sorted(found)} instead of {sorted(PACKAGES)}")
untyped = [package for package in sorted(PACKAGES) if f"{package}/py.typed" not in names]
if untyped:
    sys.exit(f"no py.typed in {', '.join(untyped)}")
source = Path(__file__).parents[1] / "shared"
scripts = [path.relative_to(source).as_posix() for path in source.rglob("*.lua")]
missing = [path for path in scripts if path not in names]
if missing or not scripts:
    sys.exit(f"no {', '.join(missing) or 'Lua scripts'}")
print(f"the wheel holds {', '.join(sorted(found))}: {len(names)} files")
