"""How much of a behaviour a part of the model accounts for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def faithfulness(
    circuit: Float[Tensor, "*any"], empty: Float[Tensor, ""], model: Float[Tensor, ""]
) -> Float[Tensor, "*any"]:
    r"""Share of what the model does beyond doing nothing that a circuit does alone.

    .. math:: F(C) = \frac{m(C) - m(\emptyset)}{m(M) - m(\emptyset)}

    Args:
        circuit: Metric with everything but the circuit ablated.
        empty: Metric with everything ablated.
        model: Metric of the whole model.

    Returns:
        1 for the whole model, 0 for nothing; may lie outside of both.

    Raises:
        ValueError: If model and empty circuit score the same.

    Source:
        Mueller et al. 2025, arXiv:2504.13151, section 3.
    """
    if model == empty:
        raise ValueError(
            f"the metric is {model.item():.4g} with everything ablated as without, so there is no "
            "behaviour that a circuit could account for"
        )
    return (circuit - empty) / (model - empty)


def curve_areas(sizes: Sequence[float], values: Float[Tensor, " size"]) -> tuple[float, float]:
    r"""Area under a faithfulness curve (CPR), and between it and 1 (CMD).

    Trapezoids over the circuit's size as a fraction, as MIB computes them; with its sizes, .001
    to 1, both start at .001, not at 0.

    Args:
        sizes: Ascending fractions of the model.
        values: Faithfulness of the circuit of each size.

    Returns:
        Circuit performance ratio (higher is better) and circuit-model distance (lower is better).

    Raises:
        ValueError: If there are fewer than two sizes, they do not ascend, or do not fit `values`.

    Source:
        Mueller et al. 2025, arXiv:2504.13151.
    """
    fractions = torch.tensor(sizes, dtype=torch.float64)
    if len(fractions) != len(values) or len(fractions) < 2 or (fractions.diff() <= 0).any():
        raise ValueError(
            f"a curve needs at least two ascending sizes and a value for each, got sizes {sizes} "
            f"and {len(values)} values"
        )
    values = values.detach().cpu().double()
    under = torch.trapezoid(values, fractions)
    return under.item(), torch.trapezoid((1 - values).abs(), fractions).item()
