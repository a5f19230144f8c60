"""The reference code, microsoft/RAS, beside ours: `rows` asks (`job`) a process of `worker`, which runs
`pipelines`.
"""
