"""Measurements behind the figures of the README; none of them runs in the tests."""
