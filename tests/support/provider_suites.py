"""Base of the conformance tests of providers that are reached over HTTP."""

from typing import Any

import pytest

from embedkit_core.testing import ProviderSuite

from .openai_replies import Fault

SOON = {"retry-after-ms": "1"}
USUAL_FAULTS = {
    "auth": Fault(status=401),
    "quota": Fault(status=402),
    "bad_request": Fault(status=404),
    "bad_text": Fault(status=400),
    "bad_reply": Fault(transform=lambda reply: reply | {"data": reply["data"][:-1]}),
    "rate_limit": Fault(status=429, headers=SOON),
    "unavailable": Fault(status=503, headers=SOON),
}


class ServedSuite(ProviderSuite):
    """A provider with a local server, which repeats text and key in every refusal.

    A subclass sets `server_class`, and overrides `faults` to return those that are not the usual ones.
    """

    server_class: Any

    @pytest.fixture(autouse=True)
    def far_end(self):
        with self.server_class(api_key=self.api_key, echo_input_in_errors=True) as self.server:
            yield

    @property
    def settings(self):
        return {"base_url": self.server.base_url}

    def requests_seen(self):
        return len(self.server.requests)

    def faults(self):
        return {}

    def fail(self, kind):
        faults = USUAL_FAULTS | self.faults()

        def fault(texts, number):
            passes = kind == "bad_text" and not any(self.bad_text in text for text in texts)
            return None if kind is None or passes else faults[kind]

        self.server.fault_for(fault)
