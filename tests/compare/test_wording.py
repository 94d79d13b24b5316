from dataclasses import replace

from circuitkeep.compare import wording

NAN = float("nan")


def test_interval():
    assert wording.percent_interval((-0.04, 0.081)) == "[-4, 8]"
    assert wording.percent_interval((NAN, 0.1)) == ""


def test_summary_states_what_was_kept_and_what_it_cost(report):
    assert wording.summary(report, report.checkpoints[2]) == (
        "keeps 99% of the induction behaviour (identity 97%, causal 98%), "
        "at -3.788 nats on key-value map and +0.027 nats on repeats."
    )


def test_summary_of_an_undefined_retention(report):
    result = replace(report.checkpoints[0].circuits["induction"], behaviour_retention=NAN)
    checkpoint = replace(report.checkpoints[0], circuits={"induction": result}, capability={})
    base = replace(report.base, capability={})
    assert wording.summary(replace(report, base=base), checkpoint) == (
        "keeps an undefined part of the induction behaviour (identity 35%, causal 2%)."
    )


def test_moves_name_the_circuit_only_where_there_are_several(report):
    first = report.checkpoints[0]
    said = wording.moves(report, first)
    assert said.startswith("previous token: L0H2 lost it and L0H3 took it up; induction: L1H0, ")
    assert wording.moves(report, report.checkpoints[1]) == ""
    two = report.circuits | {"ioi": report.circuits["induction"]}
    first = replace(first, circuits={**first.circuits, "ioi": first.circuits["induction"]})
    said = wording.moves(replace(report, circuits=two), first)
    assert said.count("induction, previous token: ") == said.count("ioi, induction: ") == 1


def test_scores_from_to(report):
    base, first = (each.circuits["induction"] for each in (report.base, report.checkpoints[0]))
    assert wording.scores_from_to(("L1H0", "L0H1"), "induction", first, base) == [
        "L1H0 0.95 → 0.33",
        "L0H1 0.05 → 0.05",
    ]
