"""The gradient under every strategy; the whole table is `circuitkeep bench strategies`."""

import pytest

from circuitkeep import penalties
from circuitkeep.bench.strategies import StrategiesSuite, all_cells, measure_strategies
from circuitkeep.bench.strategies_cells import (
    MODELS,
    PENALTIES,
    SETTINGS,
    STRATEGIES,
    Cell,
    Outcome,
)
from circuitkeep.bench.strategies_table import as_markdown, put_into

PATTERNS = "patterns only (the pass may stop early)"
QUICK = [
    *(Cell("llama", PATTERNS, strategy) for strategy in STRATEGIES),
    *(Cell("llama", "resumed from a checkpoint", name) for name in ("ddp", "fsdp", "fsdp2")),
    Cell("gpt2", "two circuits", "fsdp"),
    Cell("gpt2", "empty share, patterns only", "fsdp2"),
    Cell("gpt2", "accumulation", "ddp unused"),
    Cell("gpt2", "manual, two optimizers", "ddp static"),
    Cell("gpt2", "16-mixed, grad scaler", "fsdp"),
    Cell("llama", "checkpointing by torch's wrapper", "fsdp2"),
    Cell("llama", "uneven share: 3 probe rows", "tp"),
    Cell("bridge", "plain", "fsdp2"),
]
OTHERS = [f"penalty: {name}" for name in PENALTIES if f"penalty: {name}" in SETTINGS]
OF_WEIGHTS = tuple(
    f"penalty: {name}"
    for name in ("weights", "composition", "OV transforms", "weights and patterns")
)
# Every penalty, and those of weights where FSDP leaves the layers whole.
QUICK += [
    Cell("llama", setting, strategy)
    for setting in OTHERS
    for strategy in ("ddp", "fsdp", "fsdp2")
    if strategy == "ddp" or setting not in OF_WEIGHTS
]
QUICK += [Cell("gpt2", setting, "fsdp whole") for setting in OF_WEIGHTS]
REFUSED = {
    Cell("gpt2", "accumulation", "ddp static"): "pytorch #143580",
    Cell("gpt2", "clipping by norm", "fsdp"): "gradient_clip_algorithm='value'",
    Cell("gpt2", "manual optimization", "fsdp whole"): "ModelParallelStrategy",
    Cell("gpt2", "EMA and validation", "fsdp2"): "WeightAveraging",
    Cell("bridge", "the model wrapped by itself", "fsdp"): "wrap its layers",
    Cell("llama", "heads shared out", "tp"): "2 of the model's 4 heads",
    **{
        Cell("llama", setting, strategy): "CompositionDrift, OVTransformDrift), train by DDP"
        for setting in OF_WEIGHTS
        for strategy in ("fsdp", "fsdp2")
    },
}
# What torch and Lightning cannot do themselves, with or without a penalty.
ELSEWHERE = {
    ("gpt2", "step returns None"),
    ("llama", "step returns None"),
    ("bridge", "step returns None"),
    ("llama", "clipping by norm"),
    ("bridge", "LoRA"),
    ("bridge", "checkpointing by torch's wrapper"),
    ("bridge", "wrapper, patterns only"),
}


@pytest.fixture(scope="module")
def measured():
    return {outcome.cell: outcome for outcome in measure_strategies([*QUICK, *REFUSED])}


@pytest.mark.parametrize("cell", QUICK, ids=str)
def test_the_gradient_is_that_of_one_process(measured, cell):
    outcome = measured[cell]
    assert outcome.kind == "equal", outcome
    assert outcome.difference <= SETTINGS[cell.setting].tolerance
    # A penalty that was lost would be seen.
    assert outcome.share is None or outcome.share > 0.1


@pytest.mark.parametrize("cell", REFUSED, ids=str)
def test_what_cannot_be_right_is_refused(measured, cell):
    assert measured[cell].kind == "refused", measured[cell]
    assert REFUSED[cell] in measured[cell].message


def test_every_penalty_is_measured():
    measured = {type(term) for make in PENALTIES.values() for term in make().terms.values()}
    exported = {getattr(penalties, name) for name in penalties.__all__}
    known = {x for x in exported if isinstance(x, type) and issubclass(x, penalties.Penalty)}
    assert measured == known - {penalties.Penalty, penalties.Sum}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_cell(model):
    for outcome in measure_strategies(all_cells([model])):
        assert outcome.kind in ("equal", "refused", "elsewhere"), outcome
        if outcome.kind == "elsewhere":
            assert (model, outcome.cell.setting) in ELSEWHERE, outcome


def test_a_name_that_there_is_not():
    with pytest.raises(ValueError, match="'ddq': choose among 'single', 'ddp'"):
        StrategiesSuite(strategies=["ddq"])


def test_the_page():
    outcomes = [
        Outcome(Cell("gpt2", "plain", "ddp"), "equal", 2.5e-7, 0.9),
        Outcome(Cell("gpt2", "accumulation", "ddp"), "refused", message="CircuitPreservation: no"),
        Outcome(Cell("gpt2", "bf16-mixed", "ddp"), "differs", 0.25, 0.9, "too much"),
    ]
    table = as_markdown(outcomes)
    assert "3 cells: 1 equal, 1 refused at the start, 1 that differ." in table
    assert "Largest difference in float32: 2.5e-07." in table
    assert "| plain | equal 2e-07 |" in table
    assert "| accumulation | **refused** [1] |" in table
    assert "| bf16-mixed (tolerance 0.05) | **differs** 2e-01 [2] |" in table
    assert table.endswith("1. no\n2. too much\n")
    page = "a\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nb\n"
    assert put_into(page, "new\n") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no place for the table"):
        put_into("a", "new")
