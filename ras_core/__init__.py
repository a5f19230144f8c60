"""Region-Adaptive Sampling (arXiv 2502.10389) and its multirate form, independent of any user interface.

Read the packages in this order:

1. `method/`  the method as numbers and tensors: no model, no run, no ComfyUI.
2. `run/`     one sampler invocation: its state, each call of the network, its trace.
3. `models/`  what the method must know about a network (one adapter per family).
4. `kv/`      the K/V cache: formats, memory, Triton kernels.
5. `graphs/`  regional calls as CUDA graphs, and the conditions for replaying one.
6. `host/`    the interface to ComfyUI.
7. `render/`  images of a run.

Imports point one way: nodes -> host -> run -> {graphs, kv, models, method} -> {rows, config, errors}, and
graphs -> kv. `tests/test_layout.py` lists what each package may import.

One latent through a regional step with RAS KSampler and euler, (b, c, H, W) unless stated otherwise:

    host.patch            OUTER_SAMPLE: starts the run and lets ComfyUI sample
    host.samplers         ComfyUI calls the sampler function
    run.sampler           one step: asks for the denoised estimate of x
    host.wrappers         PREDICT_NOISE, from ComfyUI's guider
    run.network_calls     starts the evaluation: looks up its step, selects its active tokens (run.state)
    host.wrappers         APPLY_MODEL: x is now batched over the branches, (bb, c, H, W)
    host.call             keeps the arguments by name
    run.network_calls     a regional evaluation, so
    run.regional          tries a CUDA graph; without one, attaches the hooks
    host.call             calls ComfyUI's model; its network cuts x into rows, (bb, r, d)
    run.partial_forward   before the first block: (bb, r, d) -> (bb, r_kept, d), by run.active_rows and rows
    run.partial_forward   after the final layer: (bb, r_kept, ...) -> (bb, r, ...), zeros at cached tokens
    run.state             merge: cached output at cached tokens; ComfyUI then combines the branches by cfg
    run.state             end_evaluation: shows x and the estimate to method.selector, returns to run.sampler
    method.integrator     x at the start of the next step

The hooks of later blocks only gather position tables. NextDiT scatters after its refiners and gathers again
before its main blocks, so there the latent passes run.partial_forward four times. With CUDA graphs,
run.captured passes x to graphs.network_graphs; graphs.capture copies it to its input buffer and replays.

One K/V row, from a dense call that computes it to a regional call that reads it:

    run.partial_forward   attend: the network has computed K and V; the row is one of (bb, r, ...)
    rows                  rows_first: rows before heads, one copy of each shared head
    kv.update             dense call: fill. Regional call: update, by the indices of run.active_rows
    kv.plain              the format (or kv.float8, kv.main_memory, kv.forecast): writes rows, returns all
    kv.arena              memory of all rows of a call
    kv.store              keeps the rows by branch until the next call
    run.grouped_attention the active tokens' queries attend to all rows, without repeating shared heads

Letters used in shapes throughout:
    b         images in the batch of one branch
    bb        rows of one model call: number of branches in it, times b
    n         image tokens of the whole image
    n_active  image tokens processed in a regional step
    r         rows of a sequence inside the network: text, image and padding tokens together
    r_kept    rows of a sequence that a regional call processes
    d         width of a row
    c, H, W   channels and size of the latent; h, w: the token grid; p: the patch size; T, t: over time
An index is always in token space (row-major over (t,) h, w) outside rows.py.

Words: one sampler invocation is a run, one sigma interval a step, one guided model evaluation an
evaluation, one model forward a call, one conditioning of a call a branch.
"""
