"""Costs, measured by hand: what the tests assert of them is in the tests."""
