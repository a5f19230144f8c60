# Each target does its own set-up; Python 3.10 or newer with pip is all that is needed. See dev/__init__.py.
# Hand arguments on with ARGS: make test ARGS='-k schedule', make demo ARGS='--families sd3'.
PYTHON ?= python3
ARGS ?=
DEV := $(PYTHON) -m dev

.PHONY: help host host-old demo serve test test-old test-browser soak lint bench-quality clean

help:
	@echo 'make host    build ComfyUI 0.30.0 under .host/ (or use COMFYUI_PATH), with this pack in it'
	@echo 'make demo    one image of each demo model dense and with RAS, masks, times: demo/output/'
	@echo 'make serve   the same ComfyUI for a browser: http://127.0.0.1:8188'
	@echo 'make test    the tests, against that ComfyUI'
	@echo 'make test-old   a shorter suite, against ComfyUI 0.3.75 (make host-old builds it)'
	@echo 'make test-browser   only those in a real browser; its screenshots: tests/browser/output/'
	@echo 'make soak    random scenarios with planted faults for 5 minutes; tests/soak/__init__.py has the invariants'
	@echo 'make lint    ruff'
	@echo 'make bench-quality  quality against cost, a short run: bench/output/quick/'
	@echo 'make clean   remove .host/ and the output folders'

host:
	@$(DEV) build

host-old:
	@$(DEV) build-old

demo serve test test-old test-browser soak lint bench-quality clean:
	@$(DEV) $@ $(ARGS)
