"""Bytes: containers read and written by range, with no knowledge of adapters."""
