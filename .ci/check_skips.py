"""Check that pytest skipped nothing, but for the reasons given: `check_skips.py <pytest's output> [reason...]`."""

import re
import sys
from pathlib import Path

EXPECTED = [
    "only root can give a folder away",  # what no installation can bring
    "PID namespaces are not permitted here",
    "the suite sets no",  # a conformance test of a setting that the provider does not have
    "the suite names no",
    "does not define fail(",  # a local model has no server
    "does not define requests_seen()",
    "persistent = False",  # a byte store in memory
    "no ONNX backend of sentence-transformers",  # it needs an older transformers; `nox -s "extra(local)"` tries it
]

if sys.version_info < (3, 12):
    EXPECTED.append("needs Connection.setconfig of Python 3.12")  # tried with the other versions

log, *reasons = sys.argv[1:]
skipped = re.findall(r"^SKIPPED .*$", Path(log).read_text(encoding="utf-8"), re.M)
unexpected = [line for line in skipped if not any(reason in line for reason in reasons + EXPECTED)]
if unexpected:
    sys.exit("\n".join(["skipped, and should not be:", *unexpected]))
