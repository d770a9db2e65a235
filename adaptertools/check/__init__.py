"""Looking without touching: what a file is, and everything that is wrong with it."""
