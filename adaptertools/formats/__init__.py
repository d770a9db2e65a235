"""The spec engine: format specs loaded, detected, and read into the neutral form."""
