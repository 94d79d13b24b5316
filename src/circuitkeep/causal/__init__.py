"""What heads are good for: ablation of the named heads, jointly."""

from circuitkeep.causal.ablation import ablation_effect, mean_outputs

__all__ = ["ablation_effect", "mean_outputs"]
