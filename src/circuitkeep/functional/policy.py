"""Losses of reinforcement learning and of preference tuning, from log-probabilities."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

LARGEST_LOG_RATIO = 20.0
"""Log-ratios beyond this, either way, count as this: e^20 is far outside every clip range.

An exponential that overflows has no gradient but NaN, even where it is clipped away.
"""

_SMALLEST_SPREAD = 1e-4


def token_log_probs(
    logits: Float[Tensor, "row pos vocab"], tokens: Int[Tensor, "row pos"]
) -> Float[Tensor, "row pos"]:
    r"""Log-probability of each token under the logits at its place, in nats.

    .. math:: \ln p_{it} = z_{it, x_{it}} - \ln \sum_v e^{z_{itv}}

    Args:
        logits: Already shifted: those at a place predict the token of the same place.
        tokens: What was chosen.

    Returns:
        Nats, at most 0, fp32 at least.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def group_advantages(
    rewards: Float[Tensor, " row"], group_size: int, scale: bool = True
) -> Float[Tensor, " row"]:
    r"""How much better a completion is than the others of its group.

    .. math:: A_i = \frac{r_i - \bar r}{s + 10^{-4}}

    with mean and standard deviation (divided by n - 1) of the group. A group whose rewards are all
    equal has no advantage: exactly 0, not a division by 0.

    Args:
        rewards: Groups lie one after the other.
        group_size: Rows per group, at least 2.
        scale: Divide by the standard deviation; without, a group's weight is its spread.

    Raises:
        ValueError: If the rows are not whole groups of at least 2.

    Source:
        Shao et al. 2024, arXiv:2402.03300, section 4.1.2; without scale, Liu et al. 2025,
        arXiv:2503.20783.
    """
    groups = _groups(rewards, group_size)
    # The mean of equal numbers is not always that number, in floating point.
    spread = groups.std(1, keepdim=True).masked_fill(equal_groups(rewards, group_size)[:, None], 0)
    above = (groups - groups.mean(1, keepdim=True)).masked_fill(spread == 0, 0)
    return (above / (spread + _SMALLEST_SPREAD) if scale else above).flatten()


def leave_one_out_advantages(
    rewards: Float[Tensor, " row"], group_size: int
) -> Float[Tensor, " row"]:
    r"""Each reward less the mean of the others in its group: an unbiased baseline.

    .. math:: A_i = r_i - \frac{1}{G - 1} \sum_{j \ne i} r_j

    Args:
        rewards: Groups lie one after the other.
        group_size: Rows per group, at least 2.

    Returns:
        In the unit of the rewards; exactly 0 in a group of equal rewards.

    Raises:
        ValueError: If the rows are not whole groups of at least 2.

    Source:
        Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; Ahmadian et al. 2024,
        arXiv:2402.14740 (RLOO).
    """
    groups = _groups(rewards, group_size)
    above = (groups - groups.mean(1, keepdim=True)) * (group_size / (group_size - 1))
    return above.masked_fill(equal_groups(rewards, group_size)[:, None], 0).flatten()


def equal_groups(rewards: Float[Tensor, " row"], group_size: int) -> Bool[Tensor, " group"]:
    """Which groups have one and the same reward throughout, and so nothing to teach.

    Raises:
        ValueError: If the rows are not whole groups of at least 2.
    """
    groups = _groups(rewards, group_size)
    return (groups == groups[:, :1]).all(1)


def clipped_surrogate(
    log_probs: Float[Tensor, "row pos"],
    old_log_probs: Float[Tensor, "row pos"],
    advantages: Float[Tensor, " row"],
    clip: float,
) -> tuple[Float[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    r"""The clipped policy loss of each token, and where clipping takes the gradient away.

    .. math:: -\min(\rho_{it} A_i,\ \mathrm{clip}(\rho_{it}, 1 - c, 1 + c) A_i),
              \quad \rho_{it} = e^{\ln p_{it} - \ln p^\mathrm{old}_{it}}

    Args:
        log_probs: Of the tokens sampled, in nats, under the model in training.
        old_log_probs: Under the model that sampled them; a constant.
        advantages: Of the completions; 0 gives loss and gradient 0.
        clip: How far the ratio may leave 1.

    Returns:
        The loss, in the unit of the advantages; and True where the clipped branch is smaller.

    Source:
        Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    ratio = (log_probs - old_log_probs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    free = ratio * advantages[:, None]
    held = ratio.clamp(1 - clip, 1 + clip) * advantages[:, None]
    return -torch.minimum(free, held), held < free


def sampled_kl(
    log_probs: Float[Tensor, "row pos"], reference_log_probs: Float[Tensor, "row pos"]
) -> Float[Tensor, "row pos"]:
    r"""An estimate of KL(model || reference) from tokens that the model sampled.

    .. math:: e^{\delta} - \delta - 1, \quad \delta = \ln p^\mathrm{ref}_{it} - \ln p_{it}

    Unbiased over tokens sampled from the model, and never negative.

    Returns:
        Nats; 0 with gradient 0 at the reference.

    Source:
        Schulman 2020, http://joschu.net/blog/kl-approx.html, estimator k3.
    """
    delta = (reference_log_probs - log_probs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return delta.expm1() - delta


def mean_over_completions(
    values: Float[Tensor, "row pos"], mask: Bool[Tensor, "row pos"], length: int | None = None
) -> Float[Tensor, ""]:
    r"""Mean over completions of each one's mean over its tokens.

    .. math:: \frac{1}{N} \sum_i \frac{1}{L_i} \sum_{t \in M_i} x_{it}

    The mean of shards with as many completions each is the mean of the whole.

    Args:
        values: Finite everywhere; outside ``mask`` neither value nor gradient counts.
        mask: The tokens of the completions; one without tokens adds 0 and still counts.
        length: For L of every completion, so that tokens of long ones weigh no less; None for each
            one's own length.

    Source:
        Shao et al. 2024, arXiv:2402.03300, equation 3; with `length`, Liu et al. 2025,
        arXiv:2503.20783.
    """
    sums = values.masked_fill(~mask, 0).sum(1)
    return (sums / (mask.sum(1).clamp(min=1) if length is None else length)).mean()


def reinforce_loss(
    log_probs: Float[Tensor, "row pos"],
    mask: Bool[Tensor, "row pos"],
    advantages: Float[Tensor, " row"],
) -> Float[Tensor, ""]:
    r"""Whose gradient is the policy gradient, with the sign of a loss.

    .. math:: -\frac{1}{N} \sum_i A_i \sum_{t \in M_i} \ln p_{it}

    The value means nothing; with advantages of 0 the gradient is 0.

    Args:
        log_probs: Of the tokens sampled by this very model, in nats.
        mask: The tokens of the completions.
        advantages: Reward less a baseline; constants.

    Source:
        Williams 1992, "Simple statistical gradient-following algorithms for connectionist
        reinforcement learning".
    """
    return -(advantages * log_probs.masked_fill(~mask, 0).sum(1)).mean()


def preference_margin(
    chosen: Float[Tensor, " row"],
    rejected: Float[Tensor, " row"],
    reference_chosen: Float[Tensor, " row"],
    reference_rejected: Float[Tensor, " row"],
) -> Float[Tensor, " row"]:
    r"""How much more the model has come to prefer the chosen text than the reference does.

    .. math:: (\ln p(y_w) - \ln p^\mathrm{ref}(y_w)) - (\ln p(y_l) - \ln p^\mathrm{ref}(y_l))

    Args:
        chosen: Log-probability of the whole chosen text given its prompt, in nats.
        rejected: Of the rejected one.
        reference_chosen: Of the chosen one under the reference; a constant.
        reference_rejected: Of the rejected one under the reference; a constant.

    Returns:
        Nats; 0 at the reference.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290, inside the sigmoid of equation 7, without beta.
    """
    return (chosen - reference_chosen) - (rejected - reference_rejected)


def dpo_loss(margin: Float[Tensor, " row"], beta: float) -> Float[Tensor, ""]:
    r"""Direct preference optimization: the log-loss of a preference model without a reward model.

    .. math:: -\frac{1}{N} \sum_i \ln \sigma(\beta\, m_i)

    Args:
        margin: See `preference_margin`, in nats.
        beta: How strongly the reference holds the model back.

    Returns:
        Nats; ln 2 at the reference.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290, equation 7.
    """
    return -functional.logsigmoid(beta * margin).mean()


def _groups(rewards: Tensor, group_size: int) -> Tensor:
    if group_size < 2 or not len(rewards) or len(rewards) % group_size:
        raise ValueError(
            f"{len(rewards)} rewards are not whole groups of {group_size} (at least 2): a reward "
            "is compared with the others of its group"
        )
    return rewards.view(-1, group_size)
