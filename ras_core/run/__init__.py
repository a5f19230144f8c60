"""One run: everything that happens during one invocation of a sampler.

Read the modules in this order:

- `state` is the state of a run, and `evaluation` the state of one evaluation.
- `network_calls` handles each evaluation and each call of a network.
- `joining` finds the evaluations in which a prompt joins the run, which are dense.
- `call` is one call, and the interface that `host/` implements for it.
- `dense`, `regional` and `captured` are the three ways to run a call.
- `partial_forward` makes the three interventions in a call, gather, attention and scatter; `context` has the
  inputs and settings of the call.
- `active_rows` finds the rows of active tokens.
- `coverage` checks whether the interventions reached every block.
- `other_code` and `observation` find code of other packs that may need the rows of all tokens.
- `foreign` recognises caches of other packs inside the network.
- `sampler` integrates all steps of a schedule with the multirate integrator (method/integrator.py).
- `steps` finds the step of each evaluation; `passes` counts the calls of the sampler in a run.
- `recorder` collects the data of the trace during a run.
- `trace` reports on a run after it has ended, `live` while it is sampling.
- `tools` lists the objects that a run gets from `host/`.
- `references` notices that reference images have changed, which only dense calls process.
- `noise_levels` predicts each evaluation's noise level, so that the CPU need not read it from the device.
- `timing` takes timestamps on the device.
- `grouped_attention` is for networks whose query heads share K/V heads: it does not repeat the K/V heads.
- `torch_compile` runs networks eagerly that torch.compile has compiled.

Each evaluation takes four steps:

1. When it starts, its step is looked up. If this step is regional, its active tokens are selected.
2. Each call of the network runs dense (and fills the K/V cache), regional, or regional as the replay of a
   CUDA graph.
3. After a regional call, its fresh output and the cached output are merged for each branch, before guidance.
4. The evaluation ends: the selector observes the guided estimate, and the trace gets an entry.

`Trace.summary` writes the line that is logged at the end of a run.

Imports: graphs, kv, models, method, rows, config, errors. ComfyUI calls this package through `host/`.
"""
