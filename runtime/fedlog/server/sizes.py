"""What a round's records take at most: whether they fit into one message, and into memory.

A round is one announcement, one `closed` and one `committed`, which name every client that was
asked. With clients called `site/0` to `site/9999` that is about 50 bytes each, so the default of
900,000 bytes a message is enough for about 17,000 clients a round.
"""

from __future__ import annotations

import math

from fedlog.job.errors import JobError, Problem
from fedlog.job.model import FederatedJob, LateUpdates, Spec
from fedlog.wire.bulk import INLINE_BYTES

INLINE_BUDGET_BYTES = 256 * 10**6
"""Models and updates that travel inside records stay on the log for the run where it cannot be
trimmed. When they could come to more than this, models go to the model topic instead."""
CLIENTS_PER_WELCOME = 1000

_ROW_BYTES = 44  # brackets, quotes, commas; an offset of 12 digits, examples of 11, a round of 7
_FIXED_BYTES = 4096
_DIGEST_BYTES = 44  # of one chunk, in base64


def asked_per_round(spec: Spec) -> int:
    """Clients that are asked for an update in one round, over-selection included."""
    part = spec.participation
    if part.clients_per_round is not None:
        wanted = part.clients_per_round
    elif part.fraction is not None:
        wanted = math.ceil(part.fraction * spec.client_count)
    else:
        wanted = spec.client_count
    wanted = max(wanted, part.min_clients)
    return min(spec.client_count, math.ceil(wanted * part.over_selection))


def round_record_bytes(job: FederatedJob, model_bytes: int) -> int:
    """The largest record of a round without what travels inside it; an estimate from above.

    Late updates that are folded may come from as many clients again.
    """
    spec = job.spec
    asked = asked_per_round(spec)
    if spec.participation.late_updates is LateUpdates.FOLD_NEXT:
        asked = min(spec.client_count, 2 * asked)
    longest = max(len(client) for client in spec.client_ids())
    chunks = model_bytes // spec.communication.max_message_bytes + 2
    return _FIXED_BYTES + chunks * _DIGEST_BYTES + asked * (_ROW_BYTES + longest)


def check_fits_message(job: FederatedJob, model_bytes: int) -> None:
    """Raises JobError when a round has more clients than one record can name."""
    limit = job.spec.communication.max_message_bytes
    needed = round_record_bytes(job, model_bytes)
    if needed > limit:
        raise JobError(
            [
                Problem(
                    "spec.communication.maxMessageBytes",
                    f"{limit}, but the record of a round with {asked_per_round(job.spec)} clients "
                    f"takes up to {needed} bytes",
                    "",
                    f"raise it to {needed} (and the broker's message.max.bytes above that), or ask "
                    "fewer clients with participation.clientsPerRound",
                )
            ]
        )


def inline_model_bytes(job: FederatedJob, model_bytes: int) -> int:
    """The largest model that travels inside an announcement, in bytes; 0 for none."""
    spec = job.spec
    room = spec.communication.max_message_bytes - round_record_bytes(job, model_bytes)
    whole_run = spec.rounds * (1 + asked_per_round(spec)) * model_bytes
    if whole_run > INLINE_BUDGET_BYTES:
        return 0
    return max(0, min(INLINE_BYTES, room))
