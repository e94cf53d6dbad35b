"""What pictures and texts are compared by: features of pretrained networks."""

from konomi.evaluation.encoders.load import load_encoder, load_encoders

__all__ = ["load_encoder", "load_encoders"]
