"""Images of what a run did: `masks` (which tokens each step computed), `comparison` (two images next to each
other), `fronts` (closeness over speed-up of plans), `drawing` (colours and fonts of all).

Imports: run (its trace), method.
"""
