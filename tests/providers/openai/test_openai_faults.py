"""Faults and waiting of the local OpenAI server, with the real SDK."""

import asyncio
import contextlib
import threading
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import openai
import pytest
from support.openai_client import MODEL, client, embed, expected, vectors
from support.openai_server import Fault, OpenAIServer


async def test_a_bad_server_can_echo_the_text_and_the_key():
    with OpenAIServer(echo_input_in_errors=True) as server:
        server.faults += [Fault.server_error(), None]
        with pytest.raises(openai.InternalServerError, match=r"secret text.*Bearer test-key"):
            await embed(server, ["secret text"])
        with pytest.raises(openai.BadRequestError, match=r"secret text.*Bearer test-key"):
            await embed(server, ["secret text", ""])


async def test_a_rejected_text_fails_the_requests_that_contain_it(server):
    server.rejected_texts.add("bad")
    await embed(server, ["a", "b"])
    with pytest.raises(openai.BadRequestError, match="is invalid"):
        await embed(server, ["a", "bad"])
    assert server.billed_texts == Counter(["a", "b"])


async def test_hold_keeps_requests_waiting_until_they_are_released(server):
    server.hold()
    tasks = [asyncio.create_task(embed(server, f"text {n}")) for n in range(5)]
    finished = asyncio.as_completed(tasks)
    await asyncio.to_thread(server.wait_for_requests, 5)
    assert [request.outcome for request in server.requests] == ["waiting"] * 5
    assert server.in_flight == server.peak_in_flight == 5
    server.release(2)
    for _ in range(2):
        await next(finished)
    assert (server.in_flight, len(server.billed_texts)) == (3, 2)
    assert [request.outcome for request in server.requests[:2]] == ["answered"] * 2
    server.release()
    await asyncio.gather(*tasks)
    assert (server.in_flight, server.peak_in_flight) == (0, 5)


async def test_waiting_for_requests_that_do_not_come_times_out(server):
    with pytest.raises(TimeoutError, match="0 requests have arrived"):
        server.wait_for_requests(1, timeout=0.01)
    server.wait_in_flight(0, timeout=0.01)


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        (Fault.rate_limited(), openai.RateLimitError, "rate_limit_exceeded"),
        (Fault.quota(), openai.RateLimitError, "insufficient_quota"),
        (Fault.server_error(503), openai.InternalServerError, None),
        (Fault.unauthorized(), openai.AuthenticationError, "invalid_api_key"),
        (Fault(status=403), openai.PermissionDeniedError, None),
        (Fault(status=529, body="overloaded"), openai.InternalServerError, None),
        (Fault(cut=True), openai.APIConnectionError, None),
        (Fault(raw=b"<html>busy</html>", status=502), openai.InternalServerError, None),
    ],
)
async def test_a_fault_fails_one_request_and_bills_nothing(server, fault, kind, code):
    server.faults += [None, fault]
    await embed(server, "a")
    with pytest.raises(kind) as failed:
        await embed(server, "b")
    assert getattr(failed.value, "code", None) == code
    await embed(server, "c")
    assert server.billed_texts == Counter(["a", "c"])
    assert server.requests[1].outcome == ("cut" if fault.cut else "refused")


async def test_a_refusal_has_retry_after_headers(server):
    date = datetime(2026, 11, 20, 12, tzinfo=UTC)
    server.faults += [Fault.rate_limited(retry_after=2, retry_after_ms=1500), Fault.rate_limited(date=date)]
    with pytest.raises(openai.RateLimitError) as refused:
        await embed(server, "a")
    assert refused.value.response.headers["retry-after"] == "2"
    assert refused.value.response.headers["retry-after-ms"] == "1500"
    with pytest.raises(openai.RateLimitError) as refused:
        await embed(server, "a")
    assert refused.value.response.headers["retry-after"] == "Fri, 20 Nov 2026 12:00:00 GMT"


async def test_work_can_be_billed_without_an_answer(server):
    server.faults += [Fault(cut_after_work=True), Fault(status=500, billed=True)]
    with pytest.raises(openai.APIConnectionError):
        await embed(server, "a b")
    with pytest.raises(openai.InternalServerError):
        await embed(server, "c")
    assert (server.billed_texts, server.billed_tokens) == (Counter(["a b", "c"]), 3)
    assert [(request.outcome, request.status) for request in server.requests] == [("cut", None), ("refused", 500)]


async def test_a_client_that_leaves_is_billed_for_finished_work(server):
    server.hold()
    with pytest.raises(openai.APITimeoutError):
        await embed(server, "a", client_options={"timeout": 0.1})
    server.release()
    await asyncio.to_thread(server.wait_in_flight, 0)
    assert (server.requests[0].outcome, server.billed_texts) == ("cut", Counter(["a"]))


async def test_a_request_can_hang_until_its_client_leaves(server):
    server.faults.append(Fault(hang=True))
    with pytest.raises(openai.APITimeoutError):
        await embed(server, "a", client_options={"timeout": 0.1})
    await asyncio.to_thread(server.wait_in_flight, 0)
    assert (server.requests[0].outcome, server.billed_tokens) == ("cut", 0)


async def test_an_html_page_can_come_with_status_200(server):
    server.faults.append(Fault(raw=b"<html>hello</html>"))
    async with client(server) as api:
        raw = await api.embeddings.with_raw_response.create(model=MODEL, input="a")
    assert (raw.status_code, raw.headers["content-type"], raw.text) == (200, "text/html", "<html>hello</html>")


@pytest.mark.parametrize("always_floats", [True, False])
async def test_a_reply_can_be_changed_the_same_way_in_either_encoding(always_floats):
    def spoil(reply):
        reply["data"].pop()
        reply["data"][0]["embedding"][3] = np.nan
        reply["data"][1]["embedding"] = reply["data"][1]["embedding"][:7]
        reply["data"][1]["index"] = 0

    with OpenAIServer(always_floats=always_floats) as server:
        server.faults.append(Fault(transform=spoil))
        spoilt, clean = await embed(server, ["a", "b", "c"]), await embed(server, ["a", "b", "c"])
    assert [item.index for item in spoilt.data] == [0, 0]
    assert [len(item.embedding) for item in spoilt.data] == [1536, 7]
    assert np.isnan(spoilt.data[0].embedding[3])
    np.testing.assert_array_equal(vectors(clean), expected(["a", "b", "c"]))


async def test_a_function_chooses_faults_by_text_and_number(server):
    server.fault_for(lambda texts, number: Fault.server_error() if "b" in texts and number < 3 else None)
    await embed(server, "a")
    with pytest.raises(openai.InternalServerError):
        await embed(server, "b")
    await embed(server, "b")


async def test_a_bug_in_a_fault_function_fails_its_test():
    with pytest.raises(ZeroDivisionError), OpenAIServer() as server:  # noqa: PT012
        server.fault_for(lambda texts, number: 1 / 0)
        with pytest.raises(openai.APIConnectionError):
            await embed(server, "a")


async def test_leaving_the_server_ends_its_thread_and_connections_even_with_open_requests():
    async with contextlib.AsyncExitStack() as stack:
        with OpenAIServer() as server:
            api = await stack.enter_async_context(client(server))
            await api.embeddings.create(model=MODEL, input="leaves a connection idle")
            server.hold()
            tasks = [asyncio.create_task(api.embeddings.create(model=MODEL, input="a")) for _ in range(2)]
            await asyncio.to_thread(server.wait_for_requests, 3)
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [openai.APIConnectionError] * 2
    assert [request.outcome for request in server.requests] == ["answered", "cut", "cut"]
    assert server.in_flight == 0
    assert "OpenAIServer" not in [thread.name for thread in threading.enumerate()]
