"""Pure tensor maths: no state, no models, only torch."""

from circuitkeep.functional.divergences import (
    coarse_log_probs,
    cosine_distance,
    mean_over_answers,
    mean_over_queries,
    mean_over_rows,
    next_token_kl,
    pattern_js,
    pattern_kl,
    pattern_squared_error,
    relative_squared_error,
)
from circuitkeep.functional.hypervolume import hypervolume
from circuitkeep.functional.inference import (
    holm,
    matched_heads,
    matched_null_p,
    mean_interval,
    mean_p,
    random_null_p,
    student_tail,
)
from circuitkeep.functional.scores import head_score, head_score_per_row, target_attention
from circuitkeep.functional.statistics import mean_ratio_interval

__all__ = [
    "coarse_log_probs",
    "cosine_distance",
    "head_score",
    "head_score_per_row",
    "holm",
    "hypervolume",
    "matched_heads",
    "matched_null_p",
    "mean_interval",
    "mean_over_answers",
    "mean_over_queries",
    "mean_over_rows",
    "mean_p",
    "mean_ratio_interval",
    "next_token_kl",
    "pattern_js",
    "pattern_kl",
    "pattern_squared_error",
    "random_null_p",
    "relative_squared_error",
    "student_tail",
    "target_attention",
]
