"""Errors of telemetry.

FedlogError
└── TelemetryError
    ├── RunFolderError     a run folder that is missing, unreadable or incomplete
    └── StatusServerError  the status port cannot be served
"""

from __future__ import annotations

from fedlog.errors import FedlogError


class TelemetryError(FedlogError):
    """Something that a run says about itself cannot be said or read."""


class RunFolderError(TelemetryError):
    """A run folder, or a file of one, cannot be used."""


class StatusServerError(TelemetryError):
    """The status port cannot be served."""
