import torch

from circuitkeep.circuits import Head, Role
from circuitkeep.evals.migration import migration

ROLE = Role("induction", (Head(1, 0), Head(1, 1)))


def scores(**heads):
    found = torch.full((2, 4), 0.02)
    for name, score in heads.items():
        found[int(name[1]), int(name[3])] = score
    return found


BASE = scores(L1H0=0.9, L1H1=0.7, L1H3=0.5)


def test_a_model_has_not_migrated_from_itself():
    found = migration(ROLE, BASE, BASE)
    assert not found
    assert str(found) == "no head lost it, none took it up"


def test_heads_that_lost_it_and_took_it_up():
    found = migration(ROLE, scores(L1H0=0.1, L1H1=0.6, L0H2=0.8, L1H3=0.5), BASE)
    assert found.lost == (Head(1, 0),)
    assert found.risen == (Head(0, 2),)
    assert str(found) == "L1H0 lost it and L0H2 took it up"


def test_a_head_that_always_did_it_has_not_risen():
    # L1H3 scored .5 in the base; the bound is .4, half of the mean of .9 and .7.
    assert not migration(ROLE, scores(L1H0=0.9, L1H1=0.7, L1H3=0.9), BASE)


def test_the_bounds():
    # Half of a head's own score keeps the job; half of the role's mean, .4, takes it up.
    kept = scores(L1H0=0.46, L1H1=0.36, L0H0=0.39, L1H3=0.5)
    assert not migration(ROLE, kept, BASE)
    moved = scores(L1H0=0.44, L1H1=0.34, L0H0=0.41, L1H3=0.5)
    assert migration(ROLE, moved, BASE) == ((Head(1, 0), Head(1, 1)), (Head(0, 0),))


def test_a_score_that_is_missing_is_no_finding():
    assert not migration(ROLE, torch.full((2, 4), torch.nan), BASE)
