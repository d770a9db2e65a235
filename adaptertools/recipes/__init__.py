"""Recipes: steps of composing, converting and merging, written down and run again."""
