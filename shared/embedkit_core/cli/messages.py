"""Messages of the library in the words of the command line: options instead of Python arguments. No I/O."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from embedkit_core.config.base import parameter_names
from embedkit_core.config.roles import SubmitOptions
from embedkit_core.tools import bench, choose, compare

# Except `model`: it reads well, may be an argument of the command, and appears in the messages of servers.
ARGUMENTS = {
    "input_type",
    *parameter_names(),
    *SubmitOptions.__annotations__,
    *(name for tool in (bench, choose, compare) for name in inspect.signature(tool).parameters),
} - {"model"}
PHRASES = {
    "Pass api_key= or set": "Set",  # a key is not passed on a command line
    "api_key=": "the API key",
    ", or None for no limit": "",  # an option is omitted
    "choose(): no": "No",
    "embed()": "`embed`",
    "submit()": "`batch submit`",
    "use max_concurrency=": "use --max-concurrency ",  # of `bench`, which lacks this option
    " and are in .result": "",
    " and is in .result": "",
    "wait() and collect() send": "`batch collect` sends",
}
_PHRASE = re.compile("|".join(map(re.escape, PHRASES)))
_VALUE = r"\{[^{}]*\}|\([^()]*\)|'[^']*'|[\w$-]+(?:\.\w+)*"


class Wording:
    """Rewrites messages for the command that is run."""

    def __init__(self) -> None:
        self.use({})

    def use(self, options: Mapping[str, str]) -> None:
        """Set the options of the command, by the name of their Python argument."""
        self._options = dict(options)
        for argument, option in (("prices", "price"), ("dtype", "dtypes")):
            if option in options:
                self._options[argument] = options[option]
        names = "|".join(ARGUMENTS)
        subjects = "|".join(self._options.keys() - {"model"}) or "(?!)"
        self._subject = re.compile(rf"^({subjects})(?:\[[^]]*\])?(?=: |, [\w, ]+: )")
        words = "|".join(name for name in self._options if "_" in name) or "(?!)"  # no English words
        self._word = re.compile(rf"(?<![\w'\"=./-])({words})(?![\w'\"=./-]|\()")
        self._argument = re.compile(rf"(?<![\w'\"-])({names})(?:\['[^']*'\])?=({_VALUE})?")

    def __call__(self, message: str) -> str:
        """Return a message that names options. An argument without an option is marked as one of Python."""
        message = _PHRASE.sub(lambda found: PHRASES[found[0]], message)
        message = self._subject.sub(lambda found: self._options[found[1]], message)
        message = self._argument.sub(self._option, message)
        return self._word.sub(lambda found: self._options[found[1]], message)

    def _option(self, found: re.Match[str]) -> str:
        name, value = found[1], found[2] or ""
        if (name, value) == ("cache", "False") and "no_cache" in self._options:
            return self._options["no_cache"]
        if name not in self._options or value == "False":
            return f"{found[0]} (in Python)"
        if name == "prices" and value:  # a mapping; most commands have one model and its price
            model, _, price = value.strip("{}").rpartition(": ")
            value = price if "price" in self._options else f"{model.strip(chr(39))}={price}"
        if value.startswith("("):
            value = value.strip("()").replace(" ", "")
        return f"{self._options[name]} {value.strip(chr(39) + ' ')}".rstrip()
