"""The neutral form every format is read into, and the model families' names and sizes."""
