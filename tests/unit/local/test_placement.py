"""Which clients share a process."""

import pytest

from fedlog.local.placement import Worker, place, thread_environment

TEN = [f"site/{i}" for i in range(10)]


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [
        pytest.param(2, None, 2, id="one per core"),
        pytest.param(64, None, 8, id="at most eight"),
        pytest.param(2, 5, 5, id="as asked"),
        pytest.param(2, 50, 10, id="never more than clients"),
    ],
)
def test_number_of_workers(cores, workers, expected):
    placed = place(TEN, cores=cores, workers=workers)
    assert len(placed) == expected
    assert sorted(c for worker in placed for c in worker.clients) == sorted(TEN)
    sizes = [len(worker.clients) for worker in placed]
    assert max(sizes) - min(sizes) <= 1


def test_neighbours_are_in_different_workers():
    assert place(["a/0", "a/1", "b/0"], cores=2) == [
        Worker("worker-0", ("a/0", "b/0")),
        Worker("worker-1", ("a/1",)),
    ]


def test_isolated_clients_have_a_process_each_named_after_them():
    placed = place(["a/0", "evaluator/0"], cores=1, isolate=True)
    assert placed == [Worker("a-0", ("a/0",)), Worker("evaluator-0", ("evaluator/0",))]


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 2, "4"), (2, 5, "1"), (3, 2, "1")])
def test_threads_are_shared_among_workers(cores, workers, threads):
    environment = thread_environment(cores, workers)
    assert environment["OMP_NUM_THREADS"] == threads
    assert environment["TF_NUM_INTRAOP_THREADS"] == threads
    assert environment["FEDLOG_THREADS"] == threads
