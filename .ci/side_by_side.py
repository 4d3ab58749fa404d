"""Run commands side by side: `side_by_side.py <how many at once> <command>...`; output is printed whole, in that order.

Exits with 1 if one failed, once all have ended.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor


def run(command):
    began = time.monotonic()
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout, time.monotonic() - began


at_once, *commands = sys.argv[1:]
failed = []
with ThreadPoolExecutor(int(at_once)) as pool:
    for command, (status, output, seconds) in zip(commands, pool.map(run, commands), strict=True):
        verdict = f"{seconds:.0f} s" if status == 0 else f"FAILED with status {status} after {seconds:.0f} s"
        print(f"\n-- {command}\n{output.rstrip()}\n-- {command}: {verdict}", flush=True)
        failed += [command] * (status != 0)
if failed:
    sys.exit("\n".join(["failed:", *failed]))
