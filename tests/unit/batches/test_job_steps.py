"""Steps of a job whose provider refuses, is silent, has a full queue, or does not end a batch."""

from dataclasses import replace

import pytest
from support.batch_jobs import Crash, Deaths, JobClock, check_cache, job_embedder, left_files
from support.embedders import numbered

from embedkit_core.batches import runner, service
from embedkit_core.common.errors import BadRequestError, CacheError, ConfigurationError, JobError

TEXTS = numbered(12)
HOUR = 3600


def refuse_full_queue(server, limit, *, states_it):
    """Refuse batches that would queue more than `limit` tokens; the library estimates twice what the server counts."""
    refused = []

    def refuse(batch):
        running = [other for other in server.batches.values() if not other.is_finished]
        if sum(2 * len(texts) for other in running for _, texts in other.lines) <= limit:
            return None
        refused.append(batch.id)
        number = f" Limit: {2 * limit:,} enqueued tokens." if states_it else ""
        return "token_limit_exceeded", f"Enqueued token limit reached for {server.path} in organization x.{number}"

    server.refuse_batch = refuse
    return refused


@pytest.mark.parametrize(
    ("states_it", "leftovers"), [(True, "leave"), (False, "batch")], ids=["with number", "without"]
)
def test_a_full_queue_is_learned_and_batches_are_split_to_it(server, tmp_path, monkeypatch, states_it, leftovers):
    texts, more = TEXTS[:8], TEXTS[8:]
    monkeypatch.setattr(runner, "MIN_QUEUE_TOKENS", 1)
    server.finishes_after = 2
    refused = refuse_full_queue(server, 4, states_it=states_it)
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(texts, leftovers=leftovers)
        counts = job.wait(poll=0.001, timeout=30)
        assert counts.done == len(texts)
        assert server.paid_texts == dict.fromkeys(texts, 1)
        assert job.tokens == 2 * len(texts)
        assert job.possibly_billed_usd == 0
        journal, record = job._service.journal, job._record()
        assert journal.queue(record.account, record.model, 0.0)[0] == 8
        n_refused = len(refused)
        assert embedder.submit(more).wait(poll=0.001, timeout=30).done == 4
        assert len(refused) == n_refused  # the limit is in the journal
    check_cache(server, tmp_path, texts + more)
    assert left_files(tmp_path) == []


def test_a_full_queue_of_others_is_waited_for(server, tmp_path, monkeypatch):
    clock = JobClock(monkeypatch)
    monkeypatch.setattr(runner, "QUEUE_SECONDS", 300.0)
    refuse_full_queue(server, 0, states_it=False)
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        job.collect()
        assert (job.status, job.counts.open, server.created) == ("waiting", 4, 1)
        assert job.collect().open == 4
        server.refuse_batch = lambda batch: None
        assert server.created == 1
        clock.ahead = 301
        assert job.wait(poll=0.001).done == 4
        record = job._record()
        assert job._service.journal.queue(record.account, record.model, 0.0)[0] is None
    assert server.paid_texts == dict.fromkeys(TEXTS[:4], 1)


def test_errors_of_polls_do_not_end_a_job(server, tmp_path, monkeypatch, caplog):
    clock = JobClock(monkeypatch)
    monkeypatch.setattr(runner, "MAX_TRIES", 3)
    server.faults_of = {
        "retrieve": [502, "lost", ("cut", 20), 500, 503, 529, 429],
        "download": [500, "lost", ("cut", 99)],
    }
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        assert job.wait(poll=0.001).done == 4
    assert server.faults_of == {"retrieve": [], "download": []}
    on_retrieve = server.on_retrieve

    async def refuse(name, request):
        return server._refuse(429, server.error("Slow down."), headers={"retry-after": "40"})

    server.on_retrieve = refuse
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[4:8])
        caplog.clear()
        assert job.refresh() == "running"
        assert "Slow down; the next try is in 40 s or later" in caplog.text
        called = server.called("retrieve")
        server.on_retrieve = on_retrieve
        clock.ahead = 35
        assert job.collect().open == 4
        assert server.called("retrieve") == called
        clock.ahead = 41
        assert job.collect().done == 4
    assert server.paid_texts == dict.fromkeys(TEXTS[:8], 1)


@pytest.mark.parametrize("ends", [True, False], ids=["and ends", "and does not end"])
def test_a_batch_past_its_window_is_cancelled_and_its_rest_is_sent_again(server, tmp_path, monkeypatch, ends):
    clock = JobClock(monkeypatch)
    server.finishes_after, server.cancel_keeps = None, 1 if ends else 0
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        clock.ahead = 25.9 * HOUR
        assert job.refresh() == "running"
        assert server.cancelled == 0
        clock.ahead = 26.1 * HOUR
        assert job.refresh() == "running"
        assert server.cancelled == 1
        first = server.last_batch
        if not ends:
            first.retrieves, first.is_cancelling = 1, False  # it stays "cancelling" for ever
            monkeypatch.setattr(server, "running_word", "cancelling")
            job.refresh()
            assert server.cancelled == 1  # it is not asked twice
            clock.ahead = 27.1 * HOUR
        assert job.refresh() == "ready"
        server.finishes_after = 1
        counts = job.wait(poll=0.001)
        assert (counts.done, counts.left) == (4, 0)
        assert (job.possibly_billed_usd > 0) == (not ends)
    assert server.created == 2
    assert server.paid_texts == dict.fromkeys(TEXTS[:4], 1)


def test_a_batch_that_is_deleted_after_its_window_is_not_paid_for_again(server, tmp_path, monkeypatch):
    clock = JobClock(monkeypatch)
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        server.batches.clear()
        with pytest.raises(Exception, match="does not know the batch"):
            job.collect()
        clock.ahead = 27 * HOUR
        counts = job.wait(poll=0.001)
        assert (counts.done, counts.left) == (0, 4)
        assert job.possibly_billed_usd > 0
    assert server.created == 1


def test_a_creation_that_is_listed_late_is_repeated_and_the_duplicate_cancelled(server, tmp_path):
    server.finishes_after = None
    server.faults_of = {"create": ["lost"]}
    on_list = server.on_list

    async def list_none(name, request):
        return server.ok({"object": "list", "data": [], "has_more": False})

    server.on_list = list_none
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        for _ in range(4):
            job.refresh()
        assert (server.created, job.status) == (2, "running")
        server.on_list = on_list
        job.refresh()
        first, second = server.batches
        assert server.batches[first].is_cancelling
        assert not server.batches[second].is_cancelling
        server.finish(second)
        assert job.wait(poll=0.001).done == 4
    assert server.paid_texts == dict.fromkeys(TEXTS[:4], 1)


def test_a_job_that_is_cancelled_while_a_creation_is_unanswered_is_billed_for_what_was_created(
    server, tmp_path, monkeypatch
):
    clock = JobClock(monkeypatch)
    monkeypatch.setattr(runner, "SEARCH_SECONDS", 60.0)
    server.finishes_after, server.cancel_keeps = None, 1
    server.faults_of = {"create": ["lost"], "list": [500]}
    on_list = server.on_list

    async def list_none(name, request):
        return server.ok({"object": "list", "data": [], "has_more": False})

    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:6])
        assert server.created >= 1
        server.on_list = list_none
        for _ in range(3):
            job.cancel()
        assert job.status == "cancelling"
        server.on_list = on_list  # now it is listed
        clock.ahead = 61
        counts = job.wait(poll=0.001)
        assert (job.status, set(job.errors)) == ("cancelled", {"batch_cancelled"})
        assert (counts.done, counts.done + counts.left) == (server.paid_texts.total(), 6)
        assert counts.done >= 2
    assert left_files(tmp_path) == []
    check_cache(server, tmp_path, TEXTS[:6])


@pytest.mark.parametrize("operation", ["upload", "create"])
def test_a_job_whose_first_step_is_refused_is_removed(server, tmp_path, operation):
    server.faults_of = {operation: [400, 400]}
    with job_embedder(server, tmp_path) as embedder:
        with pytest.raises(BadRequestError):
            embedder.submit(TEXTS[:6])
        assert embedder.jobs() == []
        assert left_files(tmp_path) == []
        job = embedder.submit(TEXTS[:6])
        assert (job.counts.sent, job.counts.elsewhere) == (6, 0)
        assert job.wait(poll=0.001).done == 6


def test_a_file_that_is_not_ready_is_tried_again_without_a_search(server, tmp_path):
    server.file_ready_after = 2
    with job_embedder(server, tmp_path) as embedder:
        assert embedder.submit(TEXTS[:4]).wait(poll=0.001).done == 4
    assert (server.created, server.called("create"), server.called("list")) == (1, 3, 0)


def test_jobs_without_texts_to_send_are_done_at_once(server, tmp_path):
    with job_embedder(server, tmp_path, on_empty_text="zero") as embedder:
        assert embedder.submit([]).wait().texts == 0
        assert embedder.submit(iter([" "])).status == "collected"
        job = embedder.submit([*TEXTS[:3], "", TEXTS[0]])
        assert job.wait(poll=0.001)[:5] == (5, 0, 0, 0, 3)
        again = embedder.submit(TEXTS[:3])
        assert (again.counts.cache_hits, again.status, again.wait()) == (3, "collected", again.counts)
        assert again.cancel() == "collected"
        assert left_files(tmp_path) == []
    assert server.created == 1


def test_invalid_arguments_of_jobs_are_refused_before_anything_is_done(server, tmp_path):
    with job_embedder(server, tmp_path) as embedder:
        with pytest.raises(ConfigurationError, match=r"keep_texts: must be True or False \(got 'no'\)"):
            embedder.submit(TEXTS[:1], keep_texts="no")
        with pytest.raises(ConfigurationError, match="progress: must be True for a bar"):
            embedder.submit([]).wait(progress="yes")
    assert server.calls == []


def test_a_full_disk_is_a_clear_error_and_loses_nothing(server, tmp_path, monkeypatch):
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        with monkeypatch.context() as patch:
            patch.setattr(runner.files, "write_to_disk", lambda file: (_ for _ in ()).throw(OSError(28, "No space")))
            with pytest.raises(JobError, match="disk full"):
                job.collect()
        assert job.collect().done == 4
    assert server.paid_texts == dict.fromkeys(TEXTS[:4], 1)


def test_an_upload_that_the_provider_has_deleted_is_repeated(server, tmp_path, monkeypatch):
    clock = JobClock(monkeypatch)
    monkeypatch.setattr(service, "SUBMIT_SECONDS", 0.0)
    monkeypatch.setattr(runner, "FIRST_RETRY_SECONDS", 5.0)
    server.faults_of = {"create": [503]}
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        batch = job._batches()[0]
        job._journal.save_batch(replace(batch, step="UPLOADED", not_before=0.0))
        server.files.clear()
        clock.ahead = 25 * HOUR
        job.refresh()
        assert job._batches()[0].step == "PREPARED"
        assert job.wait(poll=0.001).done == 4
    assert server.paid_texts == dict.fromkeys(TEXTS[:4], 1)


def test_a_cache_that_cannot_be_written_loses_nothing(server, tmp_path, monkeypatch):
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        with monkeypatch.context() as patch:
            patch.setattr(embedder.vector_cache.backend, "set_many", lambda rows: 1 / 0)
            with pytest.raises(CacheError, match="They stay with the provider"):
                job.collect()
        assert job.status == "ready"
        assert job.collect().done == 4
    assert server.paid_texts == dict.fromkeys(TEXTS[:4], 1)
    check_cache(server, tmp_path, TEXTS[:4])


def test_a_job_that_a_dead_process_was_preparing_holds_no_text(server, tmp_path, monkeypatch):
    with job_embedder(server, tmp_path, in_batch="error") as embedder:
        with monkeypatch.context() as patch:
            Deaths(patch, only="before save_job open")
            with pytest.raises(Crash):
                embedder.submit(TEXTS[:4])
        assert len(left_files(tmp_path)) == 1
        assert embedder.jobs() == []
        assert len(embedder.embed(TEXTS[:2]).vectors) == 2
        assert embedder.submit(TEXTS[:4]).wait(poll=0.001)[1:5] == (2, 0, 0, 2)
    assert left_files(tmp_path) == []


def test_a_creation_that_is_never_answered_is_not_repeated_for_ever(server, tmp_path):
    server.finishes_after = None
    server.faults_of = {"create": ["lost"] * 9}
    on_list = server.on_list

    async def list_none(name, request):
        return server.ok({"object": "list", "data": [], "has_more": False})

    server.on_list = list_none
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        with pytest.raises(JobError, match="has not answered 3 creations"):
            job.wait(poll=0.001)
        assert (server.created, job.counts.open) == (3, 4)
        server.on_list = on_list
        server.finishes_after = 1
        assert job.wait(poll=0.001).done == 4  # one that is listed later is adopted
    assert server.created == 3


def test_a_creation_without_an_answer_counts_as_possibly_billed_when_it_is_cancelled(server, tmp_path):
    server.faults_of = {"create": ["lost"] * 9}

    async def list_none(name, request):
        return server.ok({"object": "list", "data": [], "has_more": False})

    server.on_list = list_none
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        while job.cancel() != "cancelled":
            pass
        assert (job.counts.left, job.cost_usd) == (4, 0)
        assert job.possibly_billed_usd == job.max_cost_usd > 0


@pytest.mark.parametrize("appear", [True, False], ids=["later", "never"])
def test_results_that_a_completed_batch_lacks_are_waited_for_and_not_paid_for_again(
    server, tmp_path, monkeypatch, appear
):
    clock = JobClock(monkeypatch)
    describe = server.describe
    server.describe = lambda batch: describe(batch) | {"output_file_id": None}
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        for _ in range(3):
            assert job.collect().open == 4
        if appear:
            server.describe = describe
        clock.ahead = 0.9 * HOUR
        assert job.collect().open == (0 if appear else 4)
        clock.ahead = 1.1 * HOUR
        counts = job.collect()
        assert (counts.done, counts.left) == ((4, 0) if appear else (0, 4))
        assert (job.possibly_billed_usd > 0) == (not appear)
    assert server.created == 1


@pytest.mark.parametrize("number", [10**30, 10**400, 1e300], ids=["30", "400", "float"])
def test_absurd_numbers_of_a_server_do_not_stop_a_job(server, tmp_path, monkeypatch, number):
    clock = JobClock(monkeypatch)
    describe = server.describe
    counts = dict.fromkeys(("total", "completed", "failed"), number)
    server.describe = lambda batch: describe(batch) | {"request_counts": counts, "expires_at": number}
    server.finishes_after, server.cancel_keeps = None, 2
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        assert job.refresh() == "running"
        assert job.expires_at is None
        clock.ahead = 26.1 * HOUR
        assert job.refresh() == "running"
        assert server.cancelled == 1
        assert job.wait(poll=0.001).done == 4


def test_a_wait_of_a_year_that_a_server_states_is_one_of_an_hour(server, tmp_path, monkeypatch):
    clock = JobClock(monkeypatch)
    on_retrieve = server.on_retrieve

    async def refuse(name, request):
        return server._refuse(429, server.error("Slow down."), headers={"retry-after": "31536000"})

    server.on_retrieve = refuse
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:4])
        assert job.collect().open == 4
        server.on_retrieve = on_retrieve
        clock.ahead = HOUR + 1
        assert job.collect().done == 4


def test_a_job_is_settled_in_named_budgets_that_could_not_be_reached_at_first(server, tmp_path):
    with job_embedder(server, tmp_path, budget_usd="0.01", budget_name="ingest") as embedder:
        job = embedder.submit(TEXTS)
        coordinator = embedder.coordination.handle.open()
    with job_embedder(server, tmp_path, coordination=False) as alone:
        with pytest.raises(JobError, match="its vectors are in the cache, but its named budgets cannot be settled"):
            alone.job(job.id).wait(poll=0.001)
        assert alone.embed(TEXTS).usage.requests == 0
    assert coordinator.budgets()[0].holds.tokens > 0
    with job_embedder(server, tmp_path) as another:
        assert another.job(job.id).wait(poll=0.001).done == len(TEXTS)
    [budget] = coordinator.budgets()
    assert (budget.holds.tokens, budget.spent.tokens) == (0, job.tokens)
    assert server.paid_texts == dict.fromkeys(TEXTS, 1)
