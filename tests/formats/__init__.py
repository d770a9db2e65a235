"""Tests of the spec engine."""
