"""Pictures of what a run did: `masks` (which tokens each step computed), `comparison` (two images side by
side), `fronts` (closeness over speed-up of plans).

Imports: run (its trace), method.
"""
