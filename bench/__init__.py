"""Programs that measure the method. Start `bench/quality.py`; the rest is imported as `ras_pack.bench`."""
