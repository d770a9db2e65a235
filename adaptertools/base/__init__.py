"""Base checkpoints: read, planned, merged into, published, verified."""
