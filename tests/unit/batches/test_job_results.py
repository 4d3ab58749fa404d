"""Results of batches, right and wrong: only right vectors are cached, and what is right and paid for is kept."""

import copy
import logging
import math
import sqlite3

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.batch_jobs import cached, check_cache, job_embedder, left_files, use_small_batches, vectors_of
from support.embedders import numbered
from support.openai_batch_server import OpenAIBatchServer

from embedkit_core.common.errors import JobError

TEXTS = numbered(12)


def data_of(line):
    return line["response"]["body"]["data"]


def change_vector(line, change):
    """Change the first vector of a line; base64 becomes a list of numbers."""
    item = data_of(line)[0]
    vector = item["embedding"]
    item["embedding"] = change([0.5] * 8 if isinstance(vector, str) else list(vector))


def swap(line):
    data = data_of(line)
    data[0]["embedding"], data[-1]["embedding"] = data[-1]["embedding"], data[0]["embedding"]


MANGLINGS = {
    "missing": lambda line: [],
    "equal duplicate": lambda line: [line, copy.deepcopy(line)],
    "null": lambda line: [None],
    "no response": lambda line: [{**line, "response": None}],
    "no ID": lambda line: [{**line, "custom_id": None}],
    "another nonce": lambda line: [{**line, "custom_id": "f" * 16 + line["custom_id"][16:]}],
    "another digest": lambda line: [{**line, "custom_id": line["custom_id"][:-4] + "0000"}],
    "wrong index": lambda line: data_of(line)[0].update(index=7),
    "equal indexes": lambda line: [item.update(index=0) for item in data_of(line)] and None,
    "short data": lambda line: data_of(line).pop(),
    "no data": lambda line: line["response"]["body"].pop("data"),
    "another width": lambda line: change_vector(line, lambda vector: vector[:-1]),
    "another model": lambda line: line["response"]["body"].update(model="text-embedding-3-large"),
    "NaN": lambda line: change_vector(line, lambda vector: [math.nan, *vector[1:]]),
    "zeros": lambda line: change_vector(line, lambda vector: [0.0] * len(vector)),
    "text": lambda line: change_vector(line, lambda vector: "not base64!"),
    "status 500": lambda line: line["response"].update(status_code=500, body={"error": {"code": "x"}}),
    "bill of millions": lambda line: line["response"]["body"]["usage"].update(total_tokens=10**9),
}
HARMLESS = {"equal duplicate", "bill of millions"}


def mangled(kinds, seed):
    """Return a function that mangles lines in turn, one kind each, and shuffles them; a kind of None leaves a line."""
    left = list(kinds)

    def mangle(lines):
        found = []
        for line in copy.deepcopy(lines):
            kind = left.pop(0) if left else None
            if kind == "different duplicate":
                other = copy.deepcopy(line)
                swap(other)
                found += [line, other]
                continue
            made = None if kind is None else MANGLINGS[kind](line)
            found += made if isinstance(made, list) else [line]
        np.random.default_rng(seed).shuffle(found)
        return found

    return mangle


KINDS = st.lists(st.sampled_from([None, "different duplicate", *MANGLINGS]), max_size=8)


@pytest.fixture(scope="module")
def one_server():
    with OpenAIBatchServer() as running:
        yield running


@given(KINDS, st.integers(0, 99))
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_results_are_mangled_no_wrong_vector_is_cached(one_server, tmp_path_factory, kinds, seed):
    server, folder = one_server, tmp_path_factory.mktemp("jobs")
    server.paid_texts.clear()
    server.mangle = mangled(kinds, seed)
    with job_embedder(server, folder) as embedder:
        job = embedder.submit(TEXTS)
        counts = job.wait(poll=0.001)
    assert counts.open == 0
    assert counts.done + counts.left == len(TEXTS)
    assert counts.left <= 2 * len(kinds[6:])  # mangled again: what was billed is sent once more at most
    check_cache(server, folder, TEXTS)
    assert left_files(folder) == []
    right = [n for n, kind in enumerate([*kinds, *[None] * 6][:6]) if kind is None or kind in HARMLESS]
    if len(kinds) <= 6 and len(right) == 6:
        assert set(server.paid_texts.values()) == {1}
    assert server.paid_texts.total() <= len(TEXTS) + 2 * sum(kind not in HARMLESS for kind in kinds if kind)


def test_a_wrong_result_costs_its_own_line_only(server, tmp_path, monkeypatch):
    use_small_batches(monkeypatch, lines=50)
    kinds = [None, *MANGLINGS, "different duplicate", None]
    texts = numbered(2 * len(kinds))
    server.mangle = mangled(kinds, 0)
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(texts, leftovers="leave")
        counts = job.wait(poll=0.001)
        hits = cached(embedder, texts)
    assert hits[::2] == hits[1::2]
    assert {kind for kind, hit in zip(kinds, hits[::2], strict=True) if hit} == {None, *HARMLESS}
    assert (counts.done, counts.left) == (hits.count(True), hits.count(False))
    assert sum(job.errors.values()) == counts.left
    check_cache(server, tmp_path, texts)
    bill = sum(batch.tokens for batch in server.batches.values())
    assert job.tokens < bill
    unknown = sum(found.unknown for found in job._service.journal.counts(job.id).values())
    assert job.tokens + unknown >= bill


def test_an_unknown_width_is_that_of_most_results(server, tmp_path):
    server.dimensions = 8
    server.mangle = mangled(["another width"], 2)
    with job_embedder(server, tmp_path, model="openai:unlisted", dimensions=None) as embedder:
        job = embedder.submit(TEXTS[:4], leftovers="leave")
        assert job.wait(poll=0.001).done == 2
        assert cached(embedder, TEXTS[:4]).count(True) == 2
        assert embedder.embed(TEXTS[:4]).vectors.shape == (4, 8)


def endings(server, *found):
    """End batches in the order of their polls, each with an ending and the number of completed lines; None: not yet."""
    server.finishes_after = None
    left = list(found)
    original = server.on_retrieve

    async def on_retrieve(name, request):
        batch = server.batches[name]
        if not batch.is_finished:
            ending = left.pop(0) if left else ("completed", None)
            if ending is not None:
                await server._end(batch, *ending)
        return await original(name, request)

    server.on_retrieve = on_retrieve


@pytest.mark.parametrize("ending", ["expired", "failed", "cancelled", "completed", "abandoned"])
def test_lines_of_a_batch_that_ended_early_are_kept_and_the_others_sent_once_more(server, tmp_path, ending):
    endings(server, (ending, 1), ("completed", None), None)
    texts = TEXTS[:6]
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(texts)
        assert cached(embedder, texts) == [False] * 6
        most = job.max_cost_usd
        counts = job.collect()
        assert job.cost_usd < job.max_cost_usd < most  # lines that are sent again are counted once
        assert cached(embedder, texts) == [True] * 2 + [False] * 2 + [True] * 2
        assert (counts.done, counts.open) == (4, 2)
        assert job.wait(poll=0.001).done == 6
    assert server.paid_texts == dict.fromkeys(texts, 1)
    assert server.created == 3
    assert job.tokens == 12
    assert job.max_cost_usd == job.cost_usd + job.possibly_billed_usd
    assert job.errors == {}
    check_cache(server, tmp_path, texts)
    assert left_files(tmp_path) == []


@pytest.mark.parametrize("option", ["leave", "request", "keep_texts", "cancel"])
def test_leftovers_are_not_sent_to_another_batch_if_the_caller_says_so(server, tmp_path, option):
    if option == "cancel":
        server.finishes_after, server.cancel_keeps = None, 1
    else:
        endings(server, ("expired", 1))
    options = {"keep_texts": {"keep_texts": False}, "cancel": {}}.get(option, {"leftovers": option})
    with job_embedder(server, tmp_path, in_batch="wait") as embedder:
        job = embedder.submit(TEXTS[:4], **options)
        assert left_files(tmp_path) == ([] if option == "keep_texts" else left_files(tmp_path)[:1])
        if option == "cancel":
            assert job.cancel() == "cancelling"
        counts = job.wait(poll=0.001)
        job_tokens, errors = job.tokens, job.errors
        assert cached(embedder, TEXTS[:4]) == [True] * 2 + [option == "request"] * 2
        if option != "request":
            assert server.requests == []
            assert errors == {"batch_cancelled" if option == "cancel" else "batch_expired": 2}
            assert (counts.done, counts.left) == (2, 2)
        else:
            assert [request.texts for request in server.requests] == [tuple(TEXTS[2:4])]
            assert errors == {}
            assert (counts.done, counts.left) == (4, 0)
            assert embedder.usage.tokens == 8
        np.testing.assert_array_equal(embedder.embed(TEXTS[:4]).vectors, vectors_of(TEXTS[:4]))
    assert server.created == 1
    assert job_tokens == 4
    assert job.status == ("cancelled" if option == "cancel" else "collected")
    assert left_files(tmp_path) == []


def test_a_refused_text_fails_alone(server, tmp_path):
    server.rejected_texts = {TEXTS[1]}
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:5])
        counts = job.wait(poll=0.001)
        assert cached(embedder, TEXTS[:5]) == [True, False, True, True, True]
    assert (counts.done, counts.failed, counts.left) == (4, 1, 0)
    assert sum(job.errors.values()) == 1
    assert server.paid_texts == dict.fromkeys([TEXTS[0], *TEXTS[2:5]], 1)


def test_lines_that_always_fail_are_left_after_some_batches(server, tmp_path):
    server.line_fault = lambda custom_id, texts: 503 if TEXTS[0] in texts else None
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:3])
        counts = job.wait(poll=0.001)
        assert (counts.done, counts.failed, counts.left) == (1, 0, 2)
        assert server.created == 4
        server.line_fault = lambda custom_id, texts: None
        assert embedder.submit(TEXTS[:3]).wait(poll=0.001).done == 2  # their claims are released
    assert server.paid_texts == dict.fromkeys(TEXTS[:3], 1)


def test_a_batch_that_is_refused_as_a_whole_fails_with_its_code(server, tmp_path):
    server.refuse_batch = lambda batch: ("model_mismatch", f"No. Input: {batch.lines}") if batch.id[-1] == "1" else None
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:6])
        with pytest.raises(JobError, match=r"refused batch batch_0001: model_mismatch\.") as raised:
            job.wait(poll=0.001)
        assert TEXTS[0] not in str(raised.value)
        counts = job.wait(poll=0.001)
        assert (counts.done, counts.failed) == (2, 4)
        assert job.errors == {"batch_refused": 4}
        assert job.possibly_billed_usd == 0
        server.refuse_batch = lambda batch: None
        assert embedder.submit(TEXTS[:6]).wait(poll=0.001).done == 4
    assert server.paid_texts == dict.fromkeys(TEXTS[:6], 1)


def test_a_damaged_file_of_texts_leaves_its_lines(server, tmp_path, caplog):
    endings(server, ("expired", 1))
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        [file] = (tmp_path / "embedkit-jobs-v1").glob("*.lines.jsonl")
        assert file.stat().st_mode & 0o077 == 0 or file.drive
        lines = file.read_bytes().splitlines()
        file.write_bytes(lines[0] + b"\n" + lines[1][:40])
        with caplog.at_level(logging.WARNING):
            counts = job.wait(poll=0.001)
    assert (counts.done, counts.left) == (2, 2)
    assert "damaged" in caplog.text
    assert left_files(tmp_path) == []


@pytest.mark.parametrize("column", ["job", "nonce"])
def test_a_journal_with_planted_ids_reaches_no_other_file(server, tmp_path, column):
    victim, planted = tmp_path / "victim-1", "../victim"
    victim.touch()
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:2])
        with sqlite3.connect(job._journal.folder / "jobs.db") as database:
            if column == "job":
                database.execute("UPDATE Jobs SET id = ?", (planted,))
            database.execute(f"UPDATE Batches SET {column} = ?", (planted,))
        database.close()
        with pytest.raises(JobError, match="damaged"):
            [found.wait(poll=0.001) for found in embedder.jobs()]
    assert victim.exists()


def test_an_id_of_a_provider_is_shown_without_control_characters(server, tmp_path):
    server.refuse_batch = lambda batch: ("model_mismatch", "No.")
    describe, on_retrieve = server.describe, server.on_retrieve
    server.describe = lambda batch: describe(batch) | {"id": "batch_\x1b[2J" + "x" * 500}
    server.on_retrieve = lambda name, request: on_retrieve(server.last_batch.id, request)
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:2])
        with pytest.raises(JobError, match=r"refused batch batch_x+: ") as raised:
            job.collect()
    assert len(str(raised.value)) < 400
