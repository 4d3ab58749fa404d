"""Entry point of the command line: every failure becomes one line on standard error and an exit code."""

from __future__ import annotations

import sys
from typing import Any

import typer

from embedkit_core.cli import batches, budgets, caches, embedding, tools  # noqa: F401 - registers the commands
from embedkit_core.cli.console import BUDGET, FAILED, INTERRUPTED, PARTIAL, USAGE, StoppedError, app, err, wording
from embedkit_core.common.errors import (
    AuthenticationError,
    BudgetError,
    ConfigurationError,
    EmbedKitError,
    InputError,
    PartialFailureError,
)

# click's base class of usage errors; some versions of typer bundle their own copy of click.
COMMAND_LINE: Any = typer.BadParameter.__mro__[2]


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; print an error as one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    wording.use(options)
    try:
        code = app(args=arguments, prog_name="rag-embedkit", standalone_mode=False)
    except typer.Exit as end:
        code = end.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except StoppedError as stop:
        return _fail(f"stopped. {stop}", INTERRUPTED)
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
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error or type(error).__name__}{file}", FAILED)
    if code == INTERRUPTED:  # typer may have converted the interrupt to this exit code
        is_cached = "cache" in options and "--no-cache" not in arguments
        more = " Finished vectors are in the cache: run the same command to continue." if is_cached else ""
        return _fail(f"stopped.{more}", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _options(arguments: list[str]) -> dict[str, str]:
    """Return the options of the command that is run, by parameter name."""
    command: Any = typer.main.get_command(app)
    for word in arguments:
        if word not in getattr(command, "commands", ()):
            break
        command = command.commands[word]
    return {parameter.name: parameter.opts[0] for parameter in command.params}


def _fail(message: str, code: int) -> int:
    err.print(f"rag-embedkit: {wording(message)}")
    return code
