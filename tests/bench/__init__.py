"""Benches: run by hand, or held in the suite as ratios and counts that no machine's speed changes."""
