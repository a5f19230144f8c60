"""Region-Adaptive Sampling (arXiv 2502.10389) and its multirate form, apart from any user interface.

Where to read, in this order:

1. `method/`  what the paper and this pack do, as numbers and tensors: no model, no run, no ComfyUI.
2. `run/`     one sampler invocation: its state, what happens in each call of the network, its trace.
3. `models/`  what a network has to state to take part (one adapter a family).
4. `kv/`      the K/V cache: forms, memory, Triton kernels.
5. `graphs/`  regional calls as CUDA graphs, and what has to hold before one is replayed.
6. `host/`    everything that bears ComfyUI's names.
7. `render/`  images of what a run did.

Imports point one way: nodes -> host -> run -> {graphs, kv, models, method} -> {rows, config, errors}, and
graphs -> kv. `tests/test_layout.py` holds what each package may import.

Letters used in shapes throughout:
    b         images in the batch of one branch
    bb        rows of one model call: branches in it times b
    n         image tokens of the whole image
    n_active  image tokens processed in a regional step
    r         rows of a sequence inside the network: text, image and padding tokens together
    d         width of a row
    c, H, W   channels and size of the latent; h, w: the token grid; p: the patch size; T, t over time
An index is always in token space (row-major over (t,) h, w) outside rows.py.

Words: one sampler invocation is a run, one sigma interval a step, one guided model evaluation an
evaluation, one model forward a call, one conditioning of a call a branch.
"""
