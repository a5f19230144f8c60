"""The compatibility table: what else in a workflow this pack works with, and how.

The table is declared as data. `test_compatibility` runs every cell of it, and compares the page
docs/compatibility.md with the declarations; `python -m dev compatibility` writes the page. Read in this
order:

1. `rows`      a row of the table: a combination, its expected outcome, and how to run it.
2. `cells`     runs a cell and checks it against the run without RAS.
3. `table`     all groups of rows. Each group is a module: `guidance`, `patches`, `samplers`, `schedules`,
               `prompts`, `shapes`, `numbers`, `life_cycle`, `packs` and `models`.
4. `page`      the page, as text.

To add a row, add it to its group and run `python -m dev compatibility`. If another test already covers a row,
the row names that test instead of a run.
"""
