"""Tests of base checkpoints, what is written beside them, receipts and verdicts."""
