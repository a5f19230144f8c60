"""Demo models: small SD3, Lumina 2 and Flux transformers that are bundled with the pack."""
