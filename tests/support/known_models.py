"""Names of the catalogue's models as a type, for completion in editors; run as a program, it writes the module."""

from pathlib import Path

import embedkit_core
from embedkit_core.providers.catalogue import models

MODULE = Path(embedkit_core.__file__).parent / "providers" / "catalogue" / "known_models.py"


def module_text() -> str:
    """Return the module: all models of the catalogue, as "provider:model", that can still be used."""
    names = sorted(f"{row.provider}:{row.name}" for row in models() if row.status != "retired")
    listed = "".join(f'    "{name}",\n' for name in names)
    return f'''"""Names of the catalogue's models, for completion. Written by `python tests/support/known_models.py`."""

from typing import Literal, TypeAlias

KnownModel: TypeAlias = Literal[
{listed}]
'''


if __name__ == "__main__":
    MODULE.write_text(module_text(), "utf-8")
