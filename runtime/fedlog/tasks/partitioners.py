"""Partitioners: how one labelled data set becomes the data of many clients.

Named as in Flower Datasets and behaving alike, with one difference: every example goes to exactly
one client, where Flower's Shard, Pathological and Size may leave examples out. Where that cannot
be done, a PartitionError says so. All are pure functions of their parameters, the labels, the
number of clients and the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedlog.job.model import PartitionerName, Partitioning
from fedlog.tasks.errors import PartitionError

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[Any]
Columns = Mapping[str, Labels]
"""Further values per example by name, for NaturalId: `{"writer": writers}`."""

NO_COLUMNS: Columns = {}


class Partitioner(Protocol):
    """Divides a labelled data set; a pure function of its arguments."""

    def split(
        self, labels: Labels, count: int, seed: int, columns: Columns = NO_COLUMNS
    ) -> list[Indices]:
        """`count` ascending index arrays that together hold every example exactly once.

        labels: one per example. columns: arrays as long as `labels`. Raises PartitionError.
        """


@dataclass(frozen=True)
class Iid:
    """A random division into parts whose sizes differ by at most one."""

    def split(
        self, labels: Labels, count: int, seed: int, columns: Columns = NO_COLUMNS
    ) -> list[Indices]:
        _check_enough(labels, count)
        order = np.random.default_rng(seed).permutation(len(labels))
        return [np.sort(part) for part in np.array_split(order, count)]


@dataclass(frozen=True)
class Dirichlet:
    """Each class is divided in proportions drawn from a Dirichlet distribution.

    (Yurochkin et al. 2019; Hsu et al. 2019.) alpha: concentration, > 0; small values give clients
    of few classes, large ones approach Iid; a list holds one value per client.
    min_partition_size: the draw is repeated until every client has so many examples, as in Flower;
    `ATTEMPTS` times, then PartitionError.
    """

    alpha: float | tuple[float, ...]
    min_partition_size: int = 10

    ATTEMPTS = 1000

    def split(
        self, labels: Labels, count: int, seed: int, columns: Columns = NO_COLUMNS
    ) -> list[Indices]:
        _check_enough(labels, count * self.min_partition_size, f"{count} clients")
        if isinstance(self.alpha, tuple) and len(self.alpha) != count:
            raise PartitionError(
                f"alpha holds {len(self.alpha)} values, allowed is one value or one per client "
                f"({count})"
            )
        rng = np.random.default_rng(seed)
        concentration = np.broadcast_to(np.asarray(self.alpha, dtype=float), (count,))
        by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
        for _ in range(self.ATTEMPTS):
            shares: list[list[Indices]] = [[] for _ in range(count)]
            for members in by_class:
                proportions = rng.dirichlet(concentration)
                if not np.isfinite(proportions).all():  # numpy underflows for a tiny alpha
                    break
                cuts = (np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
                for share, part in zip(shares, np.split(members, cuts), strict=True):
                    share.append(part)
            else:
                parts = [np.sort(np.concatenate(share)) for share in shares]
                if min(len(part) for part in parts) >= self.min_partition_size:
                    return parts
        raise PartitionError(
            f"no draw of {self.ATTEMPTS} with alpha {self.alpha} gave each of {count} clients "
            f"minPartitionSize ({self.min_partition_size}) of {len(labels)} examples: raise alpha, "
            "or lower minPartitionSize or the number of clients"
        )


@dataclass(frozen=True)
class Shard:
    """Examples sorted by label, cut into shards of equal size (to within one), dealt at random.

    (McMahan et al. 2017.) shards_per_partition: shards per client, so about as many classes.
    """

    shards_per_partition: int

    def split(
        self, labels: Labels, count: int, seed: int, columns: Columns = NO_COLUMNS
    ) -> list[Indices]:
        total = count * self.shards_per_partition
        _check_enough(
            labels, total, f"{count} clients with {self.shards_per_partition} shards each"
        )
        shards = np.array_split(np.argsort(labels, kind="stable"), total)
        dealt = np.random.default_rng(seed).permutation(total).reshape(count, -1)
        return [np.sort(np.concatenate([shards[i] for i in hand])) for hand in dealt]


@dataclass(frozen=True)
class Pathological:
    """Every client has exactly `classes_per_partition` classes (Li et al. 2021).

    Classes are chosen at random among those that the fewest clients have so far, so that none is
    left out; a class is divided evenly among the clients that have it.
    """

    classes_per_partition: int

    def split(
        self, labels: Labels, count: int, seed: int, columns: Columns = NO_COLUMNS
    ) -> list[Indices]:
        classes, sizes = np.unique(labels, return_counts=True)
        wanted = self.classes_per_partition
        if wanted > len(classes):
            raise PartitionError(
                f"classesPerPartition is {wanted}, the data has {len(classes)} classes: lower it"
            )
        if wanted * count < len(classes):
            raise PartitionError(
                f"{count} clients with {wanted} classes each cannot hold all {len(classes)} "
                "classes: raise classesPerPartition or the number of clients"
            )
        rng = np.random.default_rng(seed)
        owners: list[list[int]] = [[] for _ in classes]
        for client in range(count):
            load = np.array([len(owner) for owner in owners])
            for chosen in np.lexsort((rng.permutation(len(classes)), load))[:wanted]:
                owners[chosen].append(client)
        shares: list[list[Indices]] = [[] for _ in range(count)]
        for label, size, owner in zip(classes, sizes, owners, strict=True):
            if len(owner) > size:
                raise PartitionError(
                    f"class {label} has {size} examples for {len(owner)} clients: lower "
                    "classesPerPartition or the number of clients"
                )
            members = rng.permutation(np.flatnonzero(labels == label))
            for client, part in zip(owner, np.array_split(members, len(owner)), strict=True):
                shares[client].append(part)
        return [np.sort(np.concatenate(share)) for share in shares]


@dataclass(frozen=True)
class Size:
    """A random division into parts of given sizes, one per client; they add up to the data."""

    sizes: tuple[int, ...]

    def split(
        self, labels: Labels, count: int, seed: int, columns: Columns = NO_COLUMNS
    ) -> list[Indices]:
        if len(self.sizes) != count:
            raise PartitionError(
                f"sizes holds {len(self.sizes)} values, allowed is one per client ({count})"
            )
        if sum(self.sizes) != len(labels):
            raise PartitionError(
                f"sizes add up to {sum(self.sizes)}, the data has {len(labels)} examples: they "
                "must be equal"
            )
        order = np.random.default_rng(seed).permutation(len(labels))
        return [np.sort(part) for part in np.split(order, np.cumsum(self.sizes)[:-1])]


@dataclass(frozen=True)
class NaturalId:
    """One client per value of a column: a writer, a hospital, a device.

    Values are taken in ascending order. column: name of one of the `columns` that the task hands
    to `Partition.indices`.
    """

    column: str

    def split(
        self, labels: Labels, count: int, seed: int, columns: Columns = NO_COLUMNS
    ) -> list[Indices]:
        if self.column not in columns:
            known = ", ".join(sorted(columns)) or "none"
            raise PartitionError(
                f"column {self.column!r} is not in the task's data, which has: {known}. A task "
                "hands its columns to partition.indices(labels, columns={name: values})"
            )
        values, group = np.unique(columns[self.column], return_inverse=True)
        if len(group) != len(labels):
            raise PartitionError(
                f"column {self.column!r} has {len(group)} values for {len(labels)} examples"
            )
        if len(values) != count:
            raise PartitionError(
                f"column {self.column!r} has {len(values)} different values, the job has {count} "
                "clients: NaturalId needs one client per value, so change replicas"
            )
        return [np.flatnonzero(group == i) for i in range(count)]


def _check_enough(labels: Labels, needed: int, what: str | None = None) -> None:
    if len(labels) < needed:
        raise PartitionError(
            f"{len(labels)} examples are too few for {what or f'{needed} clients'}: "
            f"at least {needed} are needed"
        )


def _decimal(name: str, value: object) -> float:
    try:
        number = float(Decimal(str(value)))
    except InvalidOperation:
        number = float("nan")
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise PartitionError(f'{name} is {value!r}, allowed is a decimal above 0, such as "0.5"')
    return number


def _decimals(name: str, value: object) -> float | tuple[float, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_decimal(f"{name}[{i}]", item) for i, item in enumerate(value))
    return _decimal(name, value)


def _whole(least: int) -> Callable[[str, object], int]:
    def read(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise PartitionError(
                f"{name} is {value!r}, allowed is a whole number of at least {least}"
            )
        return value

    return read


def _sizes(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise PartitionError(f"{name} is {value!r}, allowed is a list of sizes, one per client")
    return tuple(_whole(1)(f"{name}[{i}]", item) for i, item in enumerate(value))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise PartitionError(f"{name} is {value!r}, allowed is a column's name")
    return value


@dataclass(frozen=True)
class _Parameter:
    field: str
    read: Callable[[str, object], Any]


_KINDS: dict[PartitionerName, tuple[Callable[..., Partitioner], dict[str, _Parameter]]] = {
    PartitionerName.IID: (Iid, {}),
    PartitionerName.DIRICHLET: (
        Dirichlet,
        {
            "alpha": _Parameter("alpha", _decimals),
            "minPartitionSize": _Parameter("min_partition_size", _whole(1)),
        },
    ),
    PartitionerName.SHARD: (
        Shard,
        {"shardsPerPartition": _Parameter("shards_per_partition", _whole(1))},
    ),
    PartitionerName.PATHOLOGICAL: (
        Pathological,
        {"classesPerPartition": _Parameter("classes_per_partition", _whole(1))},
    ),
    PartitionerName.SIZE: (Size, {"sizes": _Parameter("sizes", _sizes)}),
    PartitionerName.NATURAL_ID: (NaturalId, {"column": _Parameter("column", _text)}),
}


def make_partitioner(spec: Partitioning | None) -> Partitioner | None:
    """The partitioner that `spec.partitioning` names; None where there is none.

    Raises PartitionError for an impossible value; the job knows the names and which are required.
    """
    if spec is None:
        return None
    make, known = _KINDS[spec.name]
    where = f"spec.partitioning.parameters of {spec.name}"
    arguments = {}
    for name, value in spec.parameters.items():
        try:
            arguments[known[name].field] = known[name].read(name, value)
        except PartitionError as error:
            raise PartitionError(f"{where}: {error}") from None
    return make(**arguments)
