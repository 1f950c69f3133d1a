"""Aligning a slide encoder with frozen text: the model, the losses, the loop."""
