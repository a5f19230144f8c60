"""The method of Region-Adaptive Sampling (arXiv 2502.10389), apart from any user interface.

Letters used in shapes throughout the package:
    b         images in the batch of one branch
    bb        rows of one model call: branches in it times b
    n         image tokens of the whole picture
    n_active  image tokens processed in a regional step
    r         rows of a sequence inside the network: text, image and padding tokens together
    d         width of a row
    c, H, W   channels and size of the latent; h, w: the token grid; p: the patch size
An index is always in token space (row-major over h, w) outside rows.py.

Words: one sampler invocation is a run, one sigma interval a step, one guided model evaluation an evaluation,
one model forward a call, one conditioning of a call a branch.
"""
