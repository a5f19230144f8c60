"""Draws images that show what a run did or what a calibration found: `frames` (which tokens each step
computed), `masks` (a summary of that), `comparison` (the images of a dense run and of a RAS run), `fronts`
(the quality of each plan over its speed-up), `notice` (a text message, if there is nothing to draw),
`drawing` (colours and fonts).

Imports: run (its trace), method.
"""
