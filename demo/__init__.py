"""Demo models: small SD3 and Lumina 2 transformers that ship with the pack."""
