"""Kafka as the log: `KafkaTransport`.

Facts about the brokers are marked (T) for Tansu, the embedded one, and (K) for Apache Kafka.
"""

from __future__ import annotations

from fedlog.transport.kafka.transport import KafkaTransport

__all__ = ["KafkaTransport"]
