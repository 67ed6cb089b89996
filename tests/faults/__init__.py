"""Scenarios that do to streamq what production does on its worst days, and check what became of every task."""
