"""What several files of tests share."""

import pytest
from support.plugin import install

collect_ignore = ["fixtures/plugin_example"]  # a package of its own: its tests run where it is installed


@pytest.fixture(scope="session")
def acme(tmp_path_factory):
    """The folder that the example of a third party's package is installed in."""
    return install(tmp_path_factory.mktemp("acme"))
