"""The server process: thin around the round engine, the strategies and the log."""

from fedlog.server.federated import FederatedServer

__all__ = ["FederatedServer"]
