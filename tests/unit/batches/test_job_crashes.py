"""A process that dies at any step of a batch job: the next one goes on with it, and no text is paid for twice."""

from support.batch_jobs import Crash, Deaths, cached, job_embedder, left_files, vectors_of
from support.embedders import numbered

TEXTS = numbered(5)


def fail_once(server, text):
    """Fail the first line with a text."""
    failed = []

    def line_fault(custom_id, texts):
        return 500 if text in texts and not failed and (failed.append(custom_id) or True) else None

    server.line_fault = line_fault


def live(server, folder, leftovers="batch"):
    """Do what a program does that submits its texts once, waits for them, and embeds them."""
    with job_embedder(server, folder) as embedder:
        [job] = embedder.jobs() or [embedder.submit(TEXTS, leftovers=leftovers)]
        counts = job.wait(poll=0.001)
        return job, counts, embedder.embed(TEXTS)


def cancel(server, folder):
    """Do what a program does that submits texts, cancels the job, and collects what it has."""
    with job_embedder(server, folder) as embedder:
        [job] = embedder.jobs() or [embedder.submit(TEXTS)]
        job.cancel()
        counts = job.wait(poll=0.001)
        return job, counts, cached(embedder, TEXTS)


def live_until_done(deaths, program):
    """Run a program in "processes" that die, until one does not."""
    for _ in range(300):
        deaths.begin()
        try:
            return program()
        except Crash:
            continue
    raise AssertionError(deaths.at)


def check_end(job, folder):
    """Check that a job that has ended has left nothing but its record."""
    assert left_files(folder) == []
    assert job._journal._run(lambda db: db.execute("SELECT * FROM Claims").fetchall()) == []


def test_processes_may_die_twice_at_each_step_of_a_job(server, tmp_path, monkeypatch):
    fail_once(server, TEXTS[0])
    deaths = Deaths(monkeypatch)
    job, counts, result = live_until_done(deaths, lambda: live(server, tmp_path))
    assert len(deaths.at) > 50
    assert set(deaths.at.values()) <= {1, 2}  # a batch whose creation was not answered is adopted, not created again
    assert server.paid_texts == dict.fromkeys(TEXTS, 1)
    assert (counts.sent, counts.done, counts.open) == (len(TEXTS), len(TEXTS), 0)
    assert (result.vectors == vectors_of(TEXTS)).all()
    assert server.requests == []
    assert job.tokens == sum(batch.tokens for batch in server.batches.values())
    assert job.errors == {}
    check_end(job, tmp_path)


def test_leftovers_in_normal_requests_survive_a_death_at_each_step(server, tmp_path, monkeypatch):
    server.line_fault = lambda custom_id, texts: 500 if TEXTS[0] in texts else None
    deaths = Deaths(monkeypatch, most=1)
    job, counts, result = live_until_done(deaths, lambda: live(server, tmp_path, "request"))
    assert len(deaths.at) > 25
    assert (counts.done, counts.left, job.errors) == (len(TEXTS), 0, {})
    assert (result.vectors == vectors_of(TEXTS)).all()
    assert server.paid_texts == dict.fromkeys(TEXTS[2:], 1)
    assert server.billed_texts == dict.fromkeys(TEXTS[:2], 1)
    check_end(job, tmp_path)


def test_a_cancelled_job_survives_a_death_at_each_step(server, tmp_path, monkeypatch):
    server.finishes_after, server.cancel_keeps = None, 1
    deaths = Deaths(monkeypatch, most=1)
    job, counts, hits = live_until_done(deaths, lambda: cancel(server, tmp_path))
    assert job.status == "cancelled"
    assert any("cancel" in step for step in deaths.at)
    assert {text for text, hit in zip(TEXTS, hits, strict=True) if hit} == set(server.paid_texts)
    assert (counts.done, counts.done + counts.left) == (server.paid_texts.total(), len(TEXTS))
    assert job.tokens == sum(batch.tokens for batch in server.batches.values())
    check_end(job, tmp_path)
