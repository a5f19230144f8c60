"""The K/V cache: keys and values of all tokens, so that active ones attend to the whole image (equation 2).

Read `store` (what a run keeps, by branch), `storage` (the forms: as they are, float8, main memory),
`forecast` (a form that extrapolates), `choose` (which form fits), `arena` (memory in one block),
`float8_format` (the numbers of float8), `triton_launch` and `triton_kernels` (the same arithmetic in one
pass).

1. Before a run `choose` takes the first form that fits into memory.
2. A dense call fills the cache: `fill` for each attention.
3. A regional call writes its fresh rows and reads all rows: `update` for each attention.

Imports: rows, config, errors.
"""
