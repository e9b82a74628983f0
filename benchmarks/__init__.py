"""Timed scripts that print ratios and record them under results/recorded; never tests, never part of the install."""
