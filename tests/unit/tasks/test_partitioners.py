from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlog.job.model import PartitionerName, Partitioning
from fedlog.tasks.base import Partition
from fedlog.tasks.errors import PartitionError
from fedlog.tasks.partitioners import (
    Dirichlet,
    Iid,
    NaturalId,
    Partitioner,
    Pathological,
    Shard,
    Size,
    make_partitioner,
)

LABELS = st.lists(st.integers(0, 4), min_size=60, max_size=200).map(np.array)
COUNT = st.integers(1, 6)
SEED = st.integers(0, 2**31 - 1)


def spec(name: PartitionerName, **parameters: object) -> Partitioning:
    return Partitioning(name=name, parameters=parameters)


def split_exactly(
    partitioner: Partitioner, labels: np.ndarray, count: int, seed: int, **columns: np.ndarray
) -> list[np.ndarray]:
    """The parts, after checking what holds for all partitioners."""
    parts = partitioner.split(labels, count, seed, columns)
    assert len(parts) == count
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all((np.diff(part) > 0).all() for part in parts), "ascending"
    again = partitioner.split(labels, count, seed, columns)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True)), "pure"
    return parts


@given(LABELS, COUNT, SEED)
def test_iid_sizes_differ_by_at_most_one(labels: np.ndarray, count: int, seed: int) -> None:
    sizes = [len(part) for part in split_exactly(Iid(), labels, count, seed)]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(LABELS, COUNT, SEED, st.sampled_from([0.5, 1.0, 100.0]))
def test_dirichlet_keeps_the_minimum(
    labels: np.ndarray, count: int, seed: int, alpha: float
) -> None:
    parts = split_exactly(Dirichlet(alpha, min_partition_size=2), labels, count, seed)
    assert min(len(part) for part in parts) >= 2


def test_dirichlet_is_the_more_skewed_the_smaller_alpha_is() -> None:
    labels = np.repeat(np.arange(10), 500)

    def largest_class_share(alpha: float) -> float:
        parts = split_exactly(Dirichlet(alpha), labels, 10, seed=3)
        return float(np.mean([np.bincount(labels[p]).max() / len(p) for p in parts]))

    # A client with equal classes has a largest share of 0.1; alpha = 1000 is nearly that.
    assert largest_class_share(1000.0) < 0.13
    assert largest_class_share(0.1) > 0.4


@given(LABELS, COUNT, SEED, st.integers(1, 4))
def test_shards_hold_runs_of_the_sorted_labels(
    labels: np.ndarray, count: int, seed: int, per_client: int
) -> None:
    parts = split_exactly(Shard(per_client), labels, count, seed)
    ranks = np.empty(len(labels), dtype=int)
    ranks[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    for part in parts:
        runs = 1 + np.count_nonzero(np.diff(np.sort(ranks[part])) != 1)
        assert runs <= per_client


@given(COUNT, SEED, st.integers(1, 5))
def test_pathological_clients_have_exactly_so_many_classes(
    count: int, seed: int, wanted: int
) -> None:
    labels = np.tile(np.arange(5), 20)
    if wanted * count < 5:
        with pytest.raises(PartitionError, match="cannot hold all 5 classes"):
            Pathological(wanted).split(labels, count, seed)
        return
    for part in split_exactly(Pathological(wanted), labels, count, seed):
        assert len(np.unique(labels[part])) == wanted


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), SEED)
def test_sizes_are_kept(sizes: list[int], seed: int) -> None:
    labels = np.zeros(sum(sizes))
    parts = split_exactly(Size(tuple(sizes)), labels, len(sizes), seed)
    assert [len(part) for part in parts] == sizes


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), SEED)
def test_natural_ids_are_never_divided(writers: list[str], seed: int) -> None:
    column = np.array(writers)
    count = len(set(writers))
    parts = split_exactly(NaturalId("writer"), np.zeros(len(writers)), count, seed, writer=column)
    assert [set(column[part]) for part in parts] == [{w} for w in sorted(set(writers))]


def test_another_seed_divides_otherwise() -> None:
    labels = np.repeat(np.arange(10), 20)
    for partitioner in (Iid(), Dirichlet(0.5), Shard(2), Pathological(2), Size((100, 100))):
        count = 2 if isinstance(partitioner, Size) else 5
        one, two = (partitioner.split(labels, count, seed)[0] for seed in (1, 2))
        assert not np.array_equal(one, two), partitioner


def test_partition_takes_its_own_part_and_hands_columns_on() -> None:
    labels = np.zeros(4)
    writers = np.array(["b", "a", "b", "a"])
    partition = Partition(1, 2, "g", partitioner=NaturalId("writer"))
    assert partition.indices(labels, {"writer": writers}).tolist() == [0, 2]
    assert Partition(1, 2, "g").indices(labels).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("given_spec", "expected"),
    [
        (spec(PartitionerName.IID), Iid()),
        (spec(PartitionerName.DIRICHLET, alpha="0.5"), Dirichlet(0.5, 10)),
        (spec(PartitionerName.DIRICHLET, alpha=1, minPartitionSize=3), Dirichlet(1.0, 3)),
        (spec(PartitionerName.DIRICHLET, alpha=["0.5", 2]), Dirichlet((0.5, 2.0))),
        (spec(PartitionerName.SHARD, shardsPerPartition=2), Shard(2)),
        (spec(PartitionerName.PATHOLOGICAL, classesPerPartition=2), Pathological(2)),
        (spec(PartitionerName.SIZE, sizes=[1, 2]), Size((1, 2))),
        (spec(PartitionerName.NATURAL_ID, column="writer"), NaturalId("writer")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_job_names_a_partitioner(given_spec: Partitioning, expected: Partitioner) -> None:
    assert make_partitioner(given_spec) == expected


def test_no_partitioning_is_no_partitioner() -> None:
    assert make_partitioner(None) is None


@pytest.mark.parametrize(
    ("given_spec", "message"),
    [
        (spec(PartitionerName.DIRICHLET, alpha="no"), "alpha is 'no', allowed is a decimal"),
        (spec(PartitionerName.DIRICHLET, alpha="-1"), "alpha is '-1', allowed is a decimal"),
        (spec(PartitionerName.DIRICHLET, alpha="NaN"), "alpha is 'NaN', allowed is a decimal"),
        (spec(PartitionerName.SHARD, shardsPerPartition="2"), "allowed is a whole number"),
        (spec(PartitionerName.PATHOLOGICAL, classesPerPartition=0), "of at least 1"),
        (spec(PartitionerName.SIZE, sizes=[3, 0]), r"sizes\[1\] is 0"),
        (spec(PartitionerName.SIZE, sizes=5), "a list of sizes"),
        (spec(PartitionerName.NATURAL_ID, column=3), "a column's name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(
    given_spec: Partitioning, message: str
) -> None:
    with pytest.raises(PartitionError, match=message):
        make_partitioner(given_spec)


@pytest.mark.parametrize(
    ("partitioner", "message"),
    [
        (Iid(), "4 examples are too few for 5 clients"),
        (Dirichlet(1.0), "at least 50 are needed"),
        (Dirichlet((1.0, 1.0), 0), r"one per client \(5\)"),
        (Dirichlet(1e-3, 0), None),
        (Shard(2), "at least 10 are needed"),
        (Pathological(3), "the data has 2 classes"),
        (Pathological(2), "has 2 examples for 5 clients"),
        (Size((1, 1)), "one per client"),
        (Size((1, 1, 1, 1, 1)), "sizes add up to 5, the data has 4"),
        (NaturalId("site"), "'site' is not in the task's data, which has: writer"),
        (NaturalId("writer"), "2 different values, the job has 5 clients"),
    ],
    ids=repr,
)
def test_data_that_cannot_be_divided_so(partitioner: Partitioner, message: str | None) -> None:
    labels = np.array([0, 0, 1, 1])
    if message is None:
        split_exactly(partitioner, labels, 5, 0)
        return
    with pytest.raises(PartitionError, match=message):
        partitioner.split(labels, 5, 0, {"writer": np.array(list("abab"))})


def test_an_impossible_minimum_is_reported_not_retried_for_ever() -> None:
    labels = np.repeat(np.arange(2), 50)
    with pytest.raises(PartitionError, match="raise alpha"):
        Dirichlet(0.001, 20).split(labels, 5, 0)
