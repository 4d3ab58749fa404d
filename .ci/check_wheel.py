"""Check that a wheel holds the three packages, marked as typed, and nothing else: `check_wheel.py <wheel>`."""

import sys
import zipfile

PACKAGES = {"embedkit_core", "langchain_embedkit", "llamaindex_embedkit"}

names = zipfile.ZipFile(sys.argv[1]).namelist()
found = {name.partition("/")[0] for name in names}
found = {name for name in found if not name.endswith(".dist-info")}
if found != PACKAGES:
    sys.exit(f"the wheel holds {sorted(found)} instead of {sorted(PACKAGES)}")
untyped = [package for package in sorted(PACKAGES) if f"{package}/py.typed" not in names]
if untyped:
    sys.exit(f"no py.typed in {', '.join(untyped)}")
print(f"the wheel holds {', '.join(sorted(found))}: {len(names)} files")
