"""Tests of the two pattern languages and bounded matching."""
