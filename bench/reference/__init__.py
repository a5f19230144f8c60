"""Measurements of the reference code, microsoft/RAS.

`rows` sends a `Job` (module `job`) to a process of its own (`worker`), which samples with the pipelines in
`pipelines`.
"""
