"""Check that pytest skipped nothing, but for the reasons given: `check_skips.py <pytest's output> [reason...]`."""

import re
import sys
from pathlib import Path

EXPECTED = [
    "only root can give a folder away",  # what no installation can bring
    "the suite names no",  # a conformance case about what a provider does not offer
    "would make the far end fail so",  # a local model has no far end
    "would tell how many requests reach the far end",
]

log, *reasons = sys.argv[1:]
skipped = re.findall(r"^SKIPPED .*$", Path(log).read_text(encoding="utf-8"), re.M)
unexpected = [line for line in skipped if not any(reason in line for reason in reasons + EXPECTED)]
if unexpected:
    sys.exit("\n".join(["skipped, and should not be:", *unexpected]))
