"""Pictures of what a run did: `masks` (which tokens each step computed), `comparison` (two images side by
side).

Imports: run (its trace), method.
"""
