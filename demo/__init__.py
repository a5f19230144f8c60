"""Demo models: small SD3, Lumina 2 and Flux transformers that are bundled with the pack.

The archive in ComfyUI's registry has the weights of SD3 and of the autoencoder only.
"""
