"""Images about runs: `masks` (which tokens each step computed), `comparison` (a dense image and a RAS image),
`fronts` (closeness and speed-up of plans), `drawing` (colours and fonts).

Imports: run (its trace), method.
"""
