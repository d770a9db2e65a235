"""Tests of the algebra, against a naive dense reference in fp64."""
