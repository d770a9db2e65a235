"""compose, held against dense sums in fp64."""
