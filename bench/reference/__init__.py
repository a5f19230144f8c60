"""Measurements of the reference code, microsoft/RAS: `rows` sends a job (`job`) to a `worker` process, which
runs `pipelines`.
"""
