"""Images of a run: `masks` (which tokens each step computed), `comparison` (a dense and a RAS image),
`fronts` (closeness over speed-up of plans), `drawing` (colours and fonts).

Imports: run (its trace), method.
"""
