"""The published policies, one small file each, run by the same scheduler as ours.

What belongs here: a policy that a paper or a product describes, true to its formulas. Each file opens with
its intent, what it reads, when it loses, and where it departs from its source and why. Ours stands one folder up.
"""
