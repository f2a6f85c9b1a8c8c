import threading
import time

import pytest

from dmkit.app.jobs import Cancelled, Finished, Job, Jobs, Progress, Shown
from dmkit.app.store import SharedLock


def test_watch_yields_progress_shown_and_the_result():
    def work(job):
        job.part(1, 2, "second")
        job.step(1, 4)
        job.show("half")
        return "done"

    assert list(Job().watch(work)) == [Progress(5, 8, "second"), Shown("half"), Finished("done")]


def test_watch_raises_what_the_work_raises():
    def work(job):
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        list(Job().watch(work))


def endless(job):
    for k in range(10**9):
        time.sleep(0.001)
        job.step(k, 10**9)


def test_stop_ends_the_work_at_its_next_step():
    job = Job()
    with pytest.raises(Cancelled):  # noqa: PT012
        for _ in job.watch(endless):
            job.stop()


def test_leaving_the_loop_stops_the_work():
    before = threading.active_count()
    news = Job().watch(endless)
    next(news)
    news.close()
    assert threading.active_count() == before


def test_a_newer_job_of_the_same_visitor_and_tab_stops_the_older():
    jobs = Jobs()
    with (
        jobs.started("a", "sample") as old,
        jobs.started("a", "edit") as other,
        jobs.started("b", "sample") as theirs,
    ):
        with jobs.started("a", "sample") as new:
            with pytest.raises(Cancelled):
                old.check()
            new.check()
        other.check()
        jobs.stop("a")
        with pytest.raises(Cancelled):
            other.check()
        theirs.check()
    assert len(jobs) == 0


def test_many_share_and_one_is_alone():
    lock, inside, most = SharedLock(), [], []

    def share():
        with lock.held(alone=False):
            inside.append("s")
            most.append("".join(inside))
            time.sleep(0.05)
            inside.remove("s")

    def alone():
        with lock.held(alone=True):
            inside.append("A")
            most.append("".join(inside))
            time.sleep(0.02)
            inside.remove("A")

    threads = [threading.Thread(target=target) for target in (share, share, alone, share, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "ss" in most
    assert all(set(seen) == {"s"} or seen == "A" for seen in most)


def test_waiting_for_a_lock_can_be_given_up():
    lock, job = SharedLock(), Job()
    job.stop()
    with lock.held(alone=True):
        with pytest.raises(Cancelled), lock.held(False, job.check):
            pass
        with pytest.raises(Cancelled), lock.held(True, job.check):
            pass
    with lock.held(alone=False):
        pass
