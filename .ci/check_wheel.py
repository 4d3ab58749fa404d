"""Check the built wheel of rag-embedkit, `check_wheel.py <wheel>`.

It holds the three packages with their scripts, typed, and nothing else. Its description, the README, has only absolute
links; those into the repository name a file that exists, in the version of the wheel.
"""

import re
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"embedkit_core", "langchain_embedkit", "llamaindex_embedkit"}

wheel = zipfile.ZipFile(sys.argv[1])
names = wheel.namelist()
found = {name.partition("/")[0] for name in names}
found = {name for name in found if not name.endswith(".dist-info")}
if found != PACKAGES:
    sys.exit(f"the wheel holds {sorted(found)} instead of {sorted(PACKAGES)}")
untyped = [package for package in sorted(PACKAGES) if f"{package}/py.typed" not in names]
if untyped:
    sys.exit(f"no py.typed in {', '.join(untyped)}")
scripts = [path.relative_to(ROOT / "shared").as_posix() for path in (ROOT / "shared").rglob("*.lua")]
missing = [path for path in scripts if path not in names]
if missing or not scripts:
    sys.exit(f"no {', '.join(missing) or 'Lua scripts'}")

[path] = [name for name in names if name.endswith(".dist-info/METADATA")]
metadata = message_from_bytes(wheel.read(path))
[repository] = [url.split(", ")[1] for url in metadata.get_all("Project-URL") if url.startswith("Repository, ")]
raw = repository.replace("https://github.com", "https://raw.githubusercontent.com")
version = metadata["Version"]
links = re.findall(r"""\]\(([^)]+)\)|\b(?:href|src|srcset)=["']([^"']+)""", metadata.get_payload())
targets = {markdown or html for markdown, html in links}
relative = sorted(target for target in targets if not re.match("https?://|#", target))
if relative or not targets:
    sys.exit(f"relative links in the description: {', '.join(relative) or 'no links at all'}")
files = {
    target.removeprefix(base).partition("#")[0]
    for base in (f"{repository}/blob/v{version}/", f"{raw}/v{version}/")
    for target in targets
    if target.startswith(base)
}
absent = sorted(file for file in files if not (ROOT / file).exists())
if absent or not files:
    sys.exit(f"links in the description to files that do not exist: {', '.join(absent) or 'no file at all'}")
print(f"the wheel holds {', '.join(sorted(found))}: {len(names)} files; its description links {len(files)} files")
