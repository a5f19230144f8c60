"""The K/V cache: keys and values of all tokens, so that active tokens attend to the whole image (equation 2
of the paper, arXiv 2502.10389).

Read `formats` first: the registry of formats, one for each setting of `kv_cache`; `spec` defines the fields
of an entry. Each format has a class for the rows of one attention:

- `plain` keeps rows unchanged and is the base class of the others.
- `float8` keeps rows as float8 (constants in `float8_format`).
- `main_memory` keeps rows in main memory, from which an offloader copies them to the device.
- `forecast` extrapolates cached rows along their last change; `extrapolation` computes how far.
- `quadratic` extrapolates cached rows along their last two changes.

A forecast is an extrapolated row, and a fresh row is one that the present call has computed. The error of a
fresh row's forecast is known; `spread` corrects the forecasts of cached rows by these errors. `gains` fits
the factors, 0 to 1, by which extrapolated changes and corrections are multiplied.

`choose` picks a run's format, `store` keeps the run's rows separately for each branch, `arena` allocates
their memory, and `update` fills the cache in dense calls and updates it in regional ones.

If `triton_check` finds that the pack's Triton kernels work, they process float8 rows and forecasts in as few
passes over memory as possible. `triton_kernels` lists all kernels and explains their arguments. The kernels
are in `triton_float8`, `triton_forecasts` and `triton_spread`; the functions that these modules share are in
`triton_rows`. `triton_launch` launches the kernels, and `triton_spread_launch` those of `triton_spread`.

1. Before a run with `kv_cache` = "auto", `choose` picks the first format whose cache fits into memory.
2. A dense call fills the cache: it calls `update.fill` in each attention.
3. A regional call overwrites the rows of active tokens and reads the rows of all tokens: it calls
   `update.update` in each attention.

To add a format, write a file with a subclass of `plain.KVRows` and a `spec.KVFormat`, and add it to
`formats.FORMATS`. tests/kv/test_kv_formats.py has a complete int8 format as an example; `float8` is an
example of a format with Triton kernels.

Imports: rows, config, errors.
"""
