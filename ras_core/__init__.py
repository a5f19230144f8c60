"""Region-Adaptive Sampling (arXiv 2502.10389) and its multirate form, independent of any user interface.

Read the packages in this order:

1. `method/`  the sampling method as functions of numbers and tensors, without a model, a run or ComfyUI.
2. `run/`     what happens in one sampler invocation: its state, its calls of the network, its trace (log).
3. `models/`  what the method must know about a network (one adapter per family).
4. `kv/`      the K/V cache: formats, memory, Triton kernels.
5. `graphs/`  captures regional calls as CUDA graphs, and decides when a graph may be replayed.
6. `host/`    the interface to ComfyUI.
7. `render/`  images of a run.

Several packages use three single modules: `rows` (the rows of a sequence inside the network), `config` (the
settings of a run) and `errors` (the exceptions). The ComfyUI nodes are in another package, `nodes`.

Imports point one way; in this line, a -> b means that a imports b:
nodes -> host -> run -> {graphs, kv, models, method} -> {rows, config, errors}, and graphs -> kv.
`tests/test_layout.py` lists what each package may import.

The following list shows the path of one latent x through a regional step with RAS KSampler and euler. Each
line names a module and what it does with x; the shape of x is (b, c, H, W) unless stated otherwise.

   1. host.patch            OUTER_SAMPLE: starts the run, then lets ComfyUI sample
   2. host.samplers         ComfyUI calls the sampler function
   3. run.sampler           starts one step: asks ComfyUI for the denoised estimate of x
   4. host.wrappers         PREDICT_NOISE: ComfyUI's guider passes x to this pack's wrapper
   5. run.network_calls     starts the evaluation: looks up the step, selects the active tokens (run.state)
   6. host.wrappers         APPLY_MODEL: ComfyUI has batched x over the branches, (bb, c, H, W)
   7. host.call             stores the arguments of the model call by name
   8. run.network_calls     passes the call to run.regional, because the evaluation is regional
   9. run.regional          replays a CUDA graph if possible; otherwise attaches hooks to the network
  10. host.call             calls ComfyUI's model; its network cuts x into rows, (bb, r, d)
  11. run.partial_forward   before the first block: gathers (bb, r, d) -> (bb, r_kept, d), by run.active_rows
  12. run.partial_forward   after the last layer: scatters (bb, r_kept, ...) -> (bb, r, ...), zeros elsewhere
  13. run.state             merge: writes the cached output at cached tokens; ComfyUI then applies CFG
  14. run.state             end_evaluation: passes x and the estimate to method.selector
  15. run.sampler           gets the estimate; passes it and x to method.integrator
  16. method.integrator     computes x at the start of the next step

The hooks of later blocks only gather position tables. NextDiT scatters the rows after its refiner blocks and
gathers them again before its main blocks, so in NextDiT the latent passes run.partial_forward four times. If
the call has a CUDA graph, run.captured passes x to graphs.network_graphs; graphs.capture copies x to the
input buffer of the graph and replays the graph.

The following list shows the path of one K/V row, from the dense call that computes it to a regional call that
reads it:

   1. run.partial_forward   attend: gets K and V from the network; each has rows (bb, r, ...)
   2. rows                  rows_first: puts rows before heads, and keeps one copy of each shared head
   3. run.active_rows       in a regional call: gives the indices of the call's rows among all rows
   4. kv.update             in a dense call, fill writes all rows; in a regional call, update writes its rows
   5. kv.plain              writes rows and returns all rows; other formats: float8, main_memory, forecast
   6. kv.arena              allocates the memory of all rows of a call
   7. kv.store              keeps the rows by branch until the next call
   8. run.grouped_attention the active tokens' queries attend to all rows, without repeating shared heads

Letters used in shapes throughout:
    - b: images in the batch of one branch
    - bb: batch size of one model call, which is the number of branches in the call times b
    - n: image tokens of the whole image
    - n_active: image tokens processed in a regional step
    - r: rows of a sequence inside the network: text, image and padding tokens together
    - r_kept: rows of a sequence that a regional call processes
    - d: width of a row
    - c, H, W: channels, height and width of the latent; T: its length in time, if it has a time axis
    - h, w: height and width of the token grid; t: its length in time
    - p: the patch size, in latent pixels

Outside rows.py, the index of a token counts image tokens only, row-major over (t,) h, w.

Words used throughout: a run is one sampler invocation; a step is one sigma interval; an evaluation is one
guided model evaluation; a call is one forward of the model; a branch is one conditioning of a call. A dense
step, evaluation or call processes all image tokens, a regional one only the active tokens; the other tokens
are called cached, because their earlier results are used.
"""
