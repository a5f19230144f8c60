"""The soak: a test that plays random scenarios on tiny models until a given time is over. Some scenarios
contain planted faults.

`make soak ARGS='--minutes 30 --seed 1'` runs the soak. For each failure, one line is printed: the command
that repeats the failing scenario alone, and what was wrong. Read the modules in this order:

1. `scenario`  describes one scenario by numbers and names, drawn from a seed and the scenario's number.
2. `parts`     creates a scenario's model, prompts, patches and guider as ComfyUI's objects, and samples.
3. `foreign`   imitates code of other packs that changes a run.
4. `faults`    plants the scenario's fault in a run: an exception, an interrupt, a memory error or NaN.
5. `outside`   observes a run without using this pack's code: its evaluations, noise levels and rows.
6. `checks`    checks the invariants. Each check returns a list of sentences that say what is wrong.
7. `play`      makes all runs of one scenario, and checks them.
8. `memory`    measures whether a scenario leaks memory.
9. `summary`   plays many scenarios, and summarises the results.

The folder `results` has the summaries of runs of 30 minutes.

A dense run is a run of the same scenario without RAS. These are the invariants:

- A run with RAS has the shape and dtype of the dense run, and is finite if the dense run is finite.
- These runs are bit-identical to the dense run: a run with a sample ratio of 1, a run with RAS in which no
  step was regional, and a run of the unpatched model after all other runs.
- A repeated run has the same result as the first, also after models were unloaded or a fault has struck.
- A run with captured calls has the result of a run without them, up to rounding. A run with K/V rows in main
  memory is bit-identical to a run with these rows on the device.
- After a run, no hook is left on the network, and no K/V row in memory. After a scenario, no object of this
  pack is alive, and less than 1 MiB of tensors. A scenario that is played again needs no more memory.
- The numbers of active tokens in the trace fit the numbers of rows that were observed without this pack.
- The trace belongs to the run, and says why a step that was planned as regional ran dense.
"""
