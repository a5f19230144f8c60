"""Images of what a run did: `masks` (which tokens each step computed), `comparison` (two images side by
side), `drawing` (colours and fonts of both).

Imports: run (its trace), method.
"""
