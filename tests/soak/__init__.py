"""The soak: random scenarios on tiny models, with planted faults, until the time is over.

`make soak ARGS='--minutes 30 --seed 1'` runs it. A scenario that fails prints one line, the command that
repeats it alone. Read in this order:

1. `scenario`  one scenario as plain values, drawn from a seed and a number.
2. `parts`     ComfyUI's objects for a scenario: model, prompts, patches, guider; and its sampling run.
3. `faults`    what is planted in a run: exceptions at any call, interrupts, memory errors, NaN.
4. `outside`   what happens in a run, counted without this pack: evaluations, noise levels, rows.
5. `checks`    the invariants, each as a function that returns what is wrong.
6. `play`      the runs of one scenario, and their checks.
7. `summary`   many scenarios, and the summary.

The invariants: shape and dtype are those of the dense run; ratio 1, a run without a regional step and the
unpatched model equal the dense run to the last bit; the same seed gives the same result, also after unloads
and faults; captured calls and other cache formats give the result of plain ones; no hook and no K/V row is
left after a run, and memory stays flat; token counts equal those counted outside; the trace belongs to the
run, and says why a step that was planned as regional ran dense.
"""
