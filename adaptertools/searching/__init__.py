"""Searching the best weights: sample, compose or merge, score, keep the best."""
