"""The soak: a test that plays random scenarios on tiny models until a given time is over. Some scenarios
contain planted faults.

`make soak ARGS='--minutes 30 --seed 1'` runs the soak. For each failure, one line is printed: the command
that repeats the failing scenario alone, and what was wrong. Read the modules in this order:

1. `scenario`  describes one scenario by numbers and names, drawn from a seed and the scenario's number.
2. `parts`     creates ComfyUI's objects for a scenario (model, prompts, patches, guider), and samples with
them. 3. `foreign`   imitates code of other packs that changes a run.
4. `faults`    plants the scenario's fault in a run: an exception at some call, an interrupt, a memory error,
NaN. 5. `outside`   observes a run without using this pack's code: its evaluations, noise levels and rows.
6. `checks`    checks the invariants. Each check returns a list of sentences that say what is wrong.
7. `play`      makes all runs of one scenario, and checks them.
8. `summary`   plays many scenarios, and summarises the results.

A dense run is a run of the same scenario without RAS. These are the invariants:

- A run with RAS has the shape and dtype of the dense run.
- Three runs are bit-identical to the dense run: a run with a sample ratio of 1, a run with RAS in which no step
  was regional, and a run of the unpatched model after all other runs.
- A repeated run has the same result as the first, also after models were unloaded or a fault has struck.
- Runs with captured calls, and runs with K/V rows in main memory, have the same result as runs without.
- After a run, no hook is left on the network and no K/V row in memory, and the memory of the process stays flat.
- Numbers of rows in the trace are those that were observed without this pack.
- The trace belongs to the run, and says why a step that was planned as regional ran dense.
"""
