"""Demo models: small SD3 and Lumina 2 transformers that are bundled with the pack."""
