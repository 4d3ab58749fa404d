"""Check that pytest skipped nothing, but for the reasons given: `check_skips.py <pytest's output> [reason...]`."""

import re
import sys
from pathlib import Path

PLATFORM = ["only root can give a folder away"]  # what no installation can bring

log, *reasons = sys.argv[1:]
skipped = re.findall(r"^SKIPPED .*$", Path(log).read_text(encoding="utf-8"), re.M)
unexpected = [line for line in skipped if not any(reason in line for reason in reasons + PLATFORM)]
if unexpected:
    sys.exit("\n".join(["skipped, and should not be:", *unexpected]))
