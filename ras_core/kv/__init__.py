"""The K/V cache: keys and values of all tokens, so that active tokens attend to the whole image (equation 2).

Read `formats` first: the registry of formats, one for each setting of `kv_cache`; `spec` defines the fields
of an entry. Each format has a class for the rows of one attention: `plain` (unchanged; the base of the
others), `float8` with `float8_format` (its constants), `main_memory` (with an offloader), `forecast` with
`extrapolation` (extrapolates rows along their last change), `quadratic` (along their last two changes).
`spread` corrects the forecasts of cached rows by the errors of the forecasts of fresh rows, and `gains` fits
the factors, 0 to 1, on forecasts and corrections. `choose` picks a format,
`store` keeps a run's rows by branch, in memory from an `arena`, and `update` fills and updates them.
`triton_launch` and `triton_kernels` process float8 and forecast rows in one pass over memory, if
`triton_check` finds that they work.

1. Before a run `choose` picks the first format that fits into memory.
2. A dense call fills the cache: `update.fill` for each attention.
3. A regional call writes its fresh rows and reads all rows: `update.update` for each attention.

To add a format, write a file with a subclass of `plain.KVRows` and a `spec.KVFormat`, and add it to
`formats.FORMATS`. tests/kv/test_kv_formats.py has a complete int8 format; `float8` is one with kernels.

Imports: rows, config, errors.
"""
