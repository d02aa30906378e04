"""The estimate of what the embedded broker holds."""

import pytest

from fedlog.job.model import FederatedJob
from fedlog.local.errors import NotEnoughMemoryError
from fedlog.local.memory import broker_bytes, check_fits
from fedlog.server.sizes import asked_per_round

MB = 1_000_000


def spec(rounds=1, topics=None, **participation):
    return FederatedJob.model_validate(
        {
            "metadata": {"name": "m"},
            "spec": {
                "task": {"entrypoint": "fedlog.tasks.noop:task"},
                "rounds": rounds,
                "clients": [{"name": "a", "replicas": 10}],
                "participation": participation,
                "kafka": {"topics": topics or {}},
            },
        }
    ).spec


@pytest.mark.parametrize(
    ("participation", "asked"),
    [
        pytest.param({}, 10, id="all clients by default"),
        pytest.param({"clientsPerRound": 4}, 4, id="clientsPerRound"),
        pytest.param({"clientsPerRound": 4, "overSelection": "1.3"}, 6, id="over-selection"),
        pytest.param({"fraction": "0.25"}, 3, id="a fraction is rounded up"),
        pytest.param({"fraction": "0.01", "minClients": 5}, 5, id="at least the quorum"),
        pytest.param({"overSelection": "2"}, 10, id="never more than there are"),
    ],
)
def test_clients_asked_per_round(participation, asked):
    assert asked_per_round(spec(**participation)) == asked


def test_three_rounds_of_a_model_and_its_updates():
    assert broker_bytes(spec(clientsPerRound=4), 100 * MB) == 1_500 * MB


def test_with_all_every_round_is_held():
    """50 rounds of a model and 4 updates, and the last version with as much again."""
    job = spec(rounds=50, topics={"retain": "All"}, clientsPerRound=4)
    assert broker_bytes(job, 100 * MB) == 25_500 * MB
    with pytest.raises(NotEnoughMemoryError, match=r"all 50 rounds \(topics.retain: All\)"):
        check_fits(job, 100 * MB, 8_000 * MB)


def test_what_travels_inside_records_is_held_for_the_whole_run():
    needed = broker_bytes(spec(rounds=1000, clientsPerRound=4), 10_000)
    assert needed == 1000 * 4 * 10_000 + 2 * 1001 * 10_000
    with pytest.raises(NotEnoughMemoryError, match=r"all 10000 rounds .* lower rounds"):
        check_fits(spec(rounds=10_000), 60_000, 4_000 * MB)


def test_what_fits_is_let_through_with_its_estimate():
    assert check_fits(spec(clientsPerRound=4), 100 * MB, 2_000 * MB) == 1_500 * MB


def test_what_does_not_fit_is_refused_with_the_figures_and_the_cures():
    with pytest.raises(NotEnoughMemoryError) as caught:
        check_fits(spec(), 400 * MB, 8_000 * MB)
    text = str(caught.value)
    for expected in ("400.0 MB", "10 updates", "13.2 GB", "8.0 GB", "--broker", "clientsPerRound"):
        assert expected in text
