"""Fuzzing: every target that the register names, driven by coverage."""
