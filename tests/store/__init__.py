"""Tests of reading and writing bytes."""
