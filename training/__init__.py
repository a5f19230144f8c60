"""Programs that trained the demo models. Start with README.md.

The node pack imports nothing from this folder.
"""
