"""Copy of a cache folder that the process may read and not write."""

# Defines `read_only_copy(folder, mode)` in a script for another interpreter. Root may write anywhere, so it becomes
# another user; what is imported later must be loaded before. `mode` is that of the folder, in octal digits.
READ_ONLY_COPY = """
import atexit, os, shutil, sys, tempfile
from pathlib import Path
import numpy as np
from embedkit_core.cache import Entry, open_cache
from embedkit_core.cache.disk import cache, create

def read_only_copy(folder, mode):
    copy = Path(tempfile.mkdtemp(), "copy")
    shutil.copytree(folder, copy)
    own = copy / "embedkit-v1"
    if os.geteuid() == 0:
        for path in (copy.parent, copy, own, *own.iterdir()):
            os.chown(path, 65534, 65534)
        os.setegid(65534)
        os.seteuid(65534)
    for path in own.iterdir():
        path.chmod(0o400)
    own.chmod(int(mode, 8))
    atexit.register(lambda: (own.chmod(0o700), shutil.rmtree(copy.parent)))
    return copy
"""
