"""What pictures and texts are compared by: features of pretrained networks."""
