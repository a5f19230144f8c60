"""Images of a run: `masks` (which tokens each step computed), `comparison` (a dense and a RAS image),
`drawing` (colours and fonts).

Imports: run (its trace), method.
"""
