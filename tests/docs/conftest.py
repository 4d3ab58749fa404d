"""What the examples of the pages change in the process of the tests is undone."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _log_levels():
    """Undo the levels that an example sets for the library's loggers."""
    yield
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "embedkit_core":
            logging.getLogger(name).setLevel(logging.NOTSET)
