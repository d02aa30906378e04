from __future__ import annotations

from collections import Counter

from fedlog.learning.selection.random import select_random

CLIENTS = [f"site/{i}" for i in range(10)]


def test_is_a_function_of_the_set_the_seed_and_the_round():
    chosen = select_random(CLIENTS, 4, seed=7, round=3)
    assert chosen == select_random(list(reversed(CLIENTS)), 4, seed=7, round=3)
    assert chosen == select_random(set(CLIENTS), 4, seed=7, round=3)
    assert chosen == select_random(CLIENTS + CLIENTS, 4, seed=7, round=3)
    assert len(set(chosen)) == 4
    assert set(chosen) <= set(CLIENTS)


def test_rounds_and_seeds_differ():
    draws = {
        tuple(select_random(CLIENTS, 10, seed=seed, round=round_))
        for seed in range(5)
        for round_ in range(5)
    }
    assert len(draws) == 25


def test_a_larger_count_continues_the_draw():
    assert select_random(CLIENTS, 8, seed=1, round=2)[:5] == select_random(
        CLIENTS, 5, seed=1, round=2
    )


def test_fewer_candidates_than_wanted_are_all_selected():
    assert sorted(select_random(CLIENTS[:3], 5, seed=0, round=0)) == CLIENTS[:3]
    assert select_random([], 5, seed=0, round=0) == []


def test_every_client_is_as_likely():
    rounds = 4000
    counts = Counter(
        client for r in range(rounds) for client in select_random(CLIENTS, 3, seed=5, round=r)
    )
    # Binomial(4000, 0.3): mean 1200, standard deviation 29; five of them on either side.
    assert set(counts) == set(CLIENTS)
    assert all(1055 < count < 1345 for count in counts.values())
