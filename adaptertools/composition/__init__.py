"""Composing: adapters into one adapter, defined on what they do to the weights (ΔW)."""
