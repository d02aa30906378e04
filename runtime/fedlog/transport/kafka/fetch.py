"""One fetch of one partition, and who leads it: for what the library's consumer cannot say."""

from __future__ import annotations

from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.protocol.consumer import FetchRequest, IsolationLevel
from kafka.protocol.metadata import MetadataRequest

_LAST_VERSION = 12  # the last one that names topics by name


async def leader_of(client: KafkaNetClient, at: TopicPartition) -> int:
    """The node to fetch from. Raises UnknownTopicOrPartitionError; creates nothing."""
    request = MetadataRequest(
        topics=[MetadataRequest.MetadataRequestTopic(name=at.topic)],
        allow_auto_topic_creation=False,
        include_cluster_authorized_operations=False,
        include_topic_authorized_operations=False,
    )
    response = await client._manager.send(request)
    for topic in response.topics:
        if topic.error_code:
            raise kafka_errors.for_code(topic.error_code)(at.topic)
        for partition in topic.partitions:
            if partition.partition_index == at.partition:
                leader: int = partition.leader_id
                if leader < 0:
                    raise kafka_errors.LeaderNotAvailableError(at.topic)
                return leader
    raise kafka_errors.UnknownTopicOrPartitionError(f"{at.topic}/{at.partition}")


async def fetch(
    client: KafkaNetClient,
    leader: int,
    at: TopicPartition,
    offset: int,
    *,
    max_bytes: int,
    wait_ms: int,
) -> Any:
    """The answer for the partition: error_code, high_watermark, records.

    At least one batch comes where there is one, however large. (K) sends no more than `max_bytes`
    beside it, (T) up to one batch more. (T) answers nothing at all with `wait_ms` 0.
    """
    topic = FetchRequest.FetchTopic
    partition = topic.FetchPartition(
        partition=at.partition,
        current_leader_epoch=-1,
        fetch_offset=offset,
        last_fetched_epoch=-1,
        partition_max_bytes=max_bytes,
    )
    request = FetchRequest(
        max_wait_ms=wait_ms,
        min_bytes=1,
        max_bytes=max_bytes,
        isolation_level=IsolationLevel.READ_UNCOMMITTED,
        session_id=0,
        session_epoch=-1,
        topics=[topic(topic=at.topic, partitions=[partition])],
        forgotten_topics_data=[],
        rack_id="",
        max_version=_LAST_VERSION,
    )
    response = await client._manager.send(request, node_id=leader)
    if response.error_code:
        raise kafka_errors.for_code(response.error_code)(f"fetching {at.topic}/{at.partition}")
    if not response.responses:
        raise kafka_errors.KafkaTimeoutError(f"an empty answer for {at.topic}/{at.partition}")
    return response.responses[0].partitions[0]
