"""Pure functions on tensors: what an update does to a block of rows of a weight, and its size."""
