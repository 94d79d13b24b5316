"""Shares, prices and paired differences, against numbers known beforehand."""

import pytest

from circuitkeep.compare.paired import CircuitRows
from circuitkeep.sweeps.analyse import analyse
from circuitkeep.sweeps.collect import grouped

PRICE = "val/loss_nats"


def analysed(sweep, price=PRICE):
    runs, base, measured = sweep
    groups = grouped(runs, dict.fromkeys([run.name for run in runs], ""))
    results, per_run = analyse(groups, base, measured, price)
    return {result.label.removeprefix("penalty.weight="): result for result in results}, per_run


def test_what_was_kept_and_what_it_cost(sweep):
    results, _ = analysed(sweep)
    for weight, share in (("0", 0.31), ("1", 0.81), ("10", 0.61)):
        for kind in ("identity", "causal", "behaviour"):
            kept = results[weight].circuits["ind"][kind]
            assert kept.share.mean == pytest.approx(share, abs=1e-6)
            assert kept.share.low < share < kept.share.high
            assert (kept.share.seeds, kept.share.prompts) == (3, 40)
    guarded = results["1"]
    difference = guarded.circuits["ind"]["behaviour"].difference
    assert difference.mean == pytest.approx(0.5, abs=1e-6)
    assert guarded.price_difference.mean == pytest.approx(0.1)
    assert guarded.price.mean == pytest.approx(1.11)
    assert guarded.capability["capability/wiki/loss_nats"].mean == pytest.approx(2.11)
    plain = results["0"]
    assert plain.unregularized
    assert plain.price_difference is None
    assert plain.circuits["ind"]["behaviour"].difference is None


def test_pairs_take_away_what_seeds_share(sweep):
    results, _ = analysed(sweep)
    kept = results["1"].circuits["ind"]["causal"]
    width = kept.share.high - kept.share.low
    assert kept.difference.high - kept.difference.low < width / 2


def test_the_effect_size_is_that_of_the_seeds(make_run, make_rows):
    runs, measured = [], {}
    for weight, shares in {"0": (0.2, 0.2, 0.2), "1": (0.3, 0.4, 0.5)}.items():
        for seed, share in enumerate(shares):
            run = make_run(weight, seed, 1.0)
            runs.append(run)
            measured[run.name] = {"ind": make_rows(share, noise=0)}
    results, _ = analysed((runs, {"ind": make_rows(1.0, noise=0)}, measured))
    # Differences 0.1, 0.2 and 0.3: mean 0.2, standard deviation 0.1.
    kept = results["1"].circuits["ind"]["behaviour"]
    assert kept.effect_size == pytest.approx(2, rel=1e-4)


def test_p_values_are_corrected_over_settings_and_circuits(sweep):
    runs, base, measured = sweep
    base["two"] = base["ind"]
    for name, rows in measured.items():
        rows["two"] = measured[name.replace("10", "1")]["ind"]
    results, _ = analysed((runs, base, measured))
    raw = {
        (weight, circuit): results[weight].circuits[circuit]["behaviour"]
        for weight in ("1", "10")
        for circuit in base
    }
    largest = max(raw.values(), key=lambda kept: kept.difference.p)
    smallest = min(raw.values(), key=lambda kept: kept.difference.p)
    assert smallest.p_holm == pytest.approx(min(1, 4 * smallest.difference.p))
    assert largest.p_holm >= largest.difference.p


def test_the_front_leaves_out_what_is_beaten(sweep):
    results, _ = analysed(sweep)
    assert results["0"].front == ("ind",)
    assert results["1"].front == ("ind",)
    assert results["10"].front == ()


def test_only_shared_seeds_are_paired(sweep, make_run, make_rows):
    runs, base, measured = sweep
    runs = [run for run in runs if run.name != "w0s2"]
    results, per_run = analysed((runs, base, measured))
    kept = results["1"].circuits["ind"]["behaviour"]
    assert kept.share.seeds == 3
    assert kept.difference.seeds == 2
    assert len(per_run) == 8
    assert per_run[0].retention["ind"]["behaviour"] == pytest.approx(0.3, abs=1e-6)


def test_a_base_without_the_behaviour_has_no_share(sweep):
    runs, base, measured = sweep
    rows = base["ind"]
    base = {"ind": CircuitRows(rows.identity, rows.causal, 0 * rows.behaviour)}
    results, _ = analysed((runs, base, measured))
    kept = results["1"].circuits["ind"]["behaviour"]
    assert kept.share.mean != kept.share.mean
    assert kept.p_holm != kept.p_holm
    assert results["1"].front == ()


def test_an_unknown_price_names_the_nearest(sweep):
    with pytest.raises(ValueError, match="did you mean 'val/loss_nats'"):
        analysed(sweep, "val/loss")
