"""Run a command line and turn every failure into one line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from embedkit_core.cli import caches, embedding, tools  # noqa: F401 - they add the commands
from embedkit_core.cli.console import BUDGET, FAILED, INTERRUPTED, PARTIAL, USAGE, app, err
from embedkit_core.common.errors import (
    AuthenticationError,
    BudgetError,
    ConfigurationError,
    EmbedKitError,
    InputError,
    PartialFailureError,
)

# The error of a wrong command line: click's own class, of which some versions of typer bring a copy.
COMMAND_LINE: Any = typer.BadParameter.__mro__[2]


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and give its exit code; what goes wrong is one line on standard error."""
    try:
        code = app(args=arguments, prog_name="rag-embedkit", standalone_mode=False)
    except typer.Exit as end:
        code = end.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except COMMAND_LINE as error:
        error.show()
        return USAGE
    except BudgetError as error:
        return _fail(str(error), BUDGET)
    except PartialFailureError as error:
        return _fail(str(error), PARTIAL)
    except (ConfigurationError, InputError, AuthenticationError) as error:
        return _fail(str(error), USAGE)
    except EmbedKitError as error:
        return _fail(str(error), FAILED)
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error or type(error).__name__}{where}", FAILED)
    if code == INTERRUPTED:  # which typer may have made of it already
        return _fail("stopped; what is paid for is in the cache, and the same command goes on from there", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    err.print(f"rag-embedkit: {message}")
    return code
