"""A client: a pure session per client, and the process that carries out what sessions decide."""

from fedlog.client.federated import FederatedClient
from fedlog.client.worker import Worker

__all__ = ["FederatedClient", "Worker"]
