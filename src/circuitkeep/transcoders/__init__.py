"""Cross-layer transcoders: what stands for a model's MLPs in attribution graphs."""

from circuitkeep.transcoders.transcoder import CrossLayerTranscoder, TranscoderConfig

__all__ = ["CrossLayerTranscoder", "TranscoderConfig"]
