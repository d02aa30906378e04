"""The transport over Kafka: topics, and what reads and writes them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors

from fedlog.job.environment import DEFAULT_BOOTSTRAP_SERVERS
from fedlog.job.loading import JobFile
from fedlog.transport.base import TopicSpec
from fedlog.transport.errors import TransportError, UnknownTopicError
from fedlog.transport.kafka.bulk_reader import KafkaBulkReader
from fedlog.transport.kafka.connection import Connection
from fedlog.transport.kafka.reader import KafkaReader
from fedlog.transport.kafka.security import PLAINTEXT, Security
from fedlog.transport.kafka.writer import MISSING_TOPIC_S, KafkaWriter
from fedlog.transport.patience import PATIENCE_S

_DELETE_RECORDS = 21
_NOT_ALLOWED = kafka_errors.TopicAuthorizationFailedError.errno
_OFFSET_FOR_LEADER_EPOCH = 23
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25


class KafkaTransport:
    """A connection to brokers. Safe to use from several threads; what it opens is documented
    where it is.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        max_message_bytes: int = 900_000,
        replicas: int = 1,
        deadline_s: float = 30.0,
        client_id: str = "fedlog",
        security: Security = PLAINTEXT,
    ) -> None:
        """`bootstrap_servers`: "host:port[,host:port…]". `max_message_bytes`: the largest value.

        `replicas`: replication factor of topics created here. `deadline_s`: how long brokers may
        stay away before BrokerUnavailableError. `security`: encryption and identity; a broker that
        refuses them is a SecurityError at once. Connects when first used.
        """
        self._connection = Connection(
            bootstrap_servers,
            security=security,
            client_id=client_id,
            deadline_s=deadline_s,
            max_message_bytes=max_message_bytes,
        )
        self._replicas = replicas
        self._opened: set[KafkaReader | KafkaWriter | KafkaBulkReader] = set()

    @classmethod
    def of(
        cls,
        job_file: JobFile,
        servers: str | None = None,
        *,
        environment: Mapping[str, str] = os.environ,
    ) -> KafkaTransport:
        """As the job says: message size, replicas, authentication. `servers` beat the job's.
        Brokers that answered once may stay away for PATIENCE_S.

        Raises SecuritySettingsError for what authentication lacks.
        """
        spec = job_file.job.spec
        return cls(
            servers or spec.kafka.bootstrap_servers or DEFAULT_BOOTSTRAP_SERVERS,
            max_message_bytes=spec.communication.max_message_bytes,
            replicas=spec.kafka.topics.replicas,
            deadline_s=PATIENCE_S,
            security=Security.of(spec.kafka.authentication, job_file.base, environment),
        )

    def check(self) -> None:
        """Raise BrokerUnavailableError unless a broker answers now, SecurityError if it refuses."""
        self._connection.reach(patience_s=0.0)

    @property
    def can_trim(self) -> bool:
        """(T) announces DeleteRecords and drops the connection of who sends it. What it does not
        announce is OffsetForLeaderEpoch, which is as old as DeleteRecords in (K).
        """
        return {_DELETE_RECORDS, _OFFSET_FOR_LEADER_EPOCH} <= self._connection.api_keys()

    @property
    def wakes_readers(self) -> bool:
        """(T) does not; what tells it apart is said at `can_trim`."""
        return _OFFSET_FOR_LEADER_EPOCH in self._connection.api_keys()

    def create_topics(self, specs: Sequence[TopicSpec]) -> frozenset[str]:
        if not specs:
            return frozenset()
        wanted = {spec.name: self._settings(spec) for spec in specs}
        answer = self._connection.call(
            "creating topics", lambda admin: admin.create_topics(wanted, raise_errors=False)
        )
        created: set[str] = set()
        for topic in answer["topics"]:
            kind = kafka_errors.for_code(topic["error_code"])
            if kind is kafka_errors.NoError:
                created.add(topic["name"])
            elif kind is kafka_errors.InvalidReplicationFactorError:
                raise TransportError(
                    f"creating {topic['name']}: {self._replicas} replicas are more than there are "
                    "brokers; lower spec.kafka.topics.replicas"
                )
            elif kind is not kafka_errors.TopicAlreadyExistsError:
                raise self._connection.translated(
                    kind(topic.get("error_message")), f"creating {topic['name']}"
                )
        self._wait_for(wanted)
        return frozenset(created)

    def delete_topics(self, names: Iterable[str]) -> None:
        doomed = list(names)
        if not doomed:
            return
        answer = self._connection.call(
            "deleting topics", lambda admin: admin.delete_topics(doomed, raise_errors=False)
        )
        for topic in answer["topics"]:
            kind = kafka_errors.for_code(topic["error_code"])
            if kind not in (kafka_errors.NoError, kafka_errors.UnknownTopicOrPartitionError):
                raise self._connection.translated(
                    kind(topic.get("error_message")), f"deleting {topic['name']}"
                )

    def trim(self, topic: str, partition: int, before_offset: int) -> None:
        if not self.can_trim:
            raise TransportError(
                f"the broker at {self._connection.bootstrap_servers} cannot delete records: use a "
                "topic per generation"
            )
        at = TopicPartition(topic, partition)
        self._connection.call(
            f"trimming {topic}", lambda admin: admin.delete_records({at: before_offset})
        )

    def partitions(self, topic: str, timeout_s: float = 0.0) -> int | None:
        deadline = time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            answer = self._connection.call(
                f"asking for {topic}", lambda admin: admin.describe_topics([topic])
            )
            if answer and answer[0]["error_code"] == _NOT_ALLOWED:
                raise self._connection.translated(
                    kafka_errors.TopicAuthorizationFailedError(topic), f"asking for topic {topic}"
                )
            count = _ready_partitions(answer)
            left_s = deadline - time.monotonic()
            if count is not None or left_s <= 0:
                return count
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def reader(
        self,
        topic: str,
        *,
        partition: int = 0,
        start: int | None = 0,
        dense: bool = False,
        committed: bool = False,
        wait_s: float = 0.02,
    ) -> KafkaReader:
        count = self.partitions(topic, MISSING_TOPIC_S)
        if count is None or not 0 <= partition < count:
            raise UnknownTopicError(
                f"there is no topic {topic!r}; reading does not create it"
                if count is None
                else f"topic {topic!r} has {count} partitions, no {partition}"
            )
        reader = KafkaReader(
            self._connection,
            topic,
            partition,
            start=start,
            dense=dense,
            committed=committed,
            wait_s=wait_s,
            on_close=self._opened.discard,
        )
        self._opened.add(reader)
        return reader

    def bulk_reader(self, chunk_bytes: int) -> KafkaBulkReader:
        reader = KafkaBulkReader(self._connection, chunk_bytes, self._opened.discard)
        self._opened.add(reader)
        return reader

    def writer(self, *, transactional_id: str | None = None) -> KafkaWriter:
        writer = KafkaWriter(
            self._connection, self.partitions, transactional_id, self._opened.discard
        )
        self._opened.add(writer)
        return writer

    def close(self) -> None:
        """Close everything that was opened here and is still open."""
        for opened in list(self._opened):
            opened.close()
        self._connection.close()

    def _settings(self, spec: TopicSpec) -> dict[str, Any]:
        # LogAppendTime: a record from a clock an hour ahead is refused otherwise, and that ends
        # an idempotent producer. Only our own trimming deletes. max.message.bytes is the broker's.
        configs = {
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "unclean.leader.election.enable": "false",
            # A compressed batch would be unpacked by every reader, to whatever it holds; (K)
            # unpacks it once, and refuses what is too large then.
            "compression.type": "uncompressed",
            "cleanup.policy": "compact" if spec.compacted else "delete",
            # What was trimmed leaves the disk a second after (K) has seen that it may go.
            "file.delete.delay.ms": "1000",
        }
        if spec.segment_bytes is not None:
            configs["segment.bytes"] = str(spec.segment_bytes)
        if self._replicas >= 3:
            configs["min.insync.replicas"] = "2"
        return {
            "num_partitions": spec.partitions,
            "replication_factor": self._replicas,
            "configs": configs,
        }

    def _wait_for(self, names: Iterable[str]) -> None:
        for name in names:
            if self.partitions(name, self._connection.deadline_s) is None:
                raise self._connection.unavailable(f"waiting for topic {name} after creating it")


def _ready_partitions(answer: Sequence[dict[str, Any]]) -> int | None:
    """Partitions of the one topic asked for, once it and all its leaders are known."""
    if not answer or answer[0]["error_code"] != 0:
        return None
    partitions = answer[0]["partitions"]
    if any(partition["leader_id"] < 0 for partition in partitions):
        return None
    return len(partitions) or None
