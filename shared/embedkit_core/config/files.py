"""Arguments of an embedder in a mapping, or in a TOML or JSON file, without secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.validation import unknown_argument
from embedkit_core.config.pickling import arguments_as_json, check_has_no_objects
from embedkit_core.config.resolve import split_model
from embedkit_core.providers.registry import provider_class
from embedkit_core.providers.secrets import SECRET_ARGUMENTS, SIGN_IN, Hidden, is_sign_in, mask_login, reveal

TABLE = "rag-embedkit"
SUFFIXES = (".toml", ".json")
ENCODING = "utf-8-sig"  # with or without the byte order mark that some editors write


def read_config(config: Hidden, defaults: Mapping[str, Any]) -> Hidden:
    """Return the mapping of arguments in a configuration, hidden.

    Args:
        config: The hidden mapping, or the hidden path of a file. A table "rag-embedkit" of the file is used alone.
        defaults: The constructor's arguments with their defaults.

    Raises:
        ConfigurationError: The file cannot be read, a key is unknown, or a value may be a secret.
    """
    source = "config"
    if isinstance(reveal(config), Mapping):
        arguments = config
    elif isinstance(reveal(config), (str, PathLike)):
        path = Path(reveal(config))
        arguments, source = _read_file(path), f"The file {path}"
    else:
        raise ConfigurationError(
            f"config: must be a mapping, or the path of a TOML or JSON file (got {type(reveal(config)).__name__})."
        )
    for name in reveal(arguments):
        if name not in defaults:
            raise unknown_argument(source, name, [*defaults], listed=[*defaults])
    for name in SECRET_ARGUMENTS:
        if reveal(arguments).get(name) is not None and not is_sign_in(reveal(arguments)[name]):
            other = f"Set the environment variable {_key_variable(arguments)}, or pass" if name == "api_key" else "Pass"
            raise ConfigurationError(
                f"{name}: must not be in a configuration, since it may be a secret. {other} {name}= to from_config()."
            )
    return arguments


def make_config(arguments: Mapping[str, Any], defaults: Mapping[str, Any], *, signs_in: bool) -> dict[str, Any]:
    """Return the arguments that are not the defaults as JSON types, without secrets and `progress`.

    Args:
        arguments: The constructor arguments without secrets.
        defaults: All of them with their defaults.
        signs_in: True if a package signs in, so that there is no API key.

    Raises:
        ConfigurationError: A cache, the coordinator or the rate limiter is an object.
    """
    check_has_no_objects(arguments, "have a configuration")
    if arguments["rate_limiter"] is not None:
        raise ConfigurationError(
            "rate_limiter: an embedder with a rate limiter cannot have a configuration. Create it without, and pass "
            "rate_limiter= to from_config()."
        )
    kept = arguments_as_json({name: value for name, value in arguments.items() if name != "progress"}, defaults)
    return {**kept, "api_key": SIGN_IN} if signs_in else kept


def _read_file(path: Path) -> Hidden:
    """Return the table of a file, hidden."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(
            f"config: the file must end in .toml or .json (got {str(path)!r}). Load it yourself, and pass the mapping."
        )
    table, flaw = Hidden(None), "it has no table of arguments"
    try:
        table = Hidden(_load(path.expanduser()))
    except (ValueError, RecursionError):  # its message could quote the file, which may have a secret
        flaw = f"it is not valid {path.suffix[1:].upper()}"
    except (OSError, RuntimeError) as error:  # RuntimeError: the user in "~user" is unknown
        flaw = type(error).__name__
    if isinstance(reveal(table), Mapping):
        table = Hidden(reveal(table).get(TABLE, reveal(table)))
    if not isinstance(reveal(table), Mapping):
        raise ConfigurationError(f"config: the file {path} cannot be used: {flaw}.")
    return table


def _load(path: Path) -> Any:
    if path.suffix.lower() == ".json":
        return json.loads(path.read_text(encoding=ENCODING))
    import tomllib

    return tomllib.loads(path.read_text(encoding=ENCODING))


def _key_variable(arguments: Hidden) -> str:
    """Return the environment variable of the API key."""
    provider, _ = split_model(reveal(arguments).get("model", ""), mask_login(reveal(arguments).get("base_url")))
    return provider_class(provider).key_variable or "of the provider"
