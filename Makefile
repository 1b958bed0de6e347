# Two commands for a newcomer: `make demo` and `make test`. Both create .venv and install what they need.
#
# TORCH is what pip is told to install as torch, before anything else asks for it. For a CUDA build give the
# version and index that pytorch.org names for your driver:
#     make demo TORCH="torch==2.13.0 --index-url <the index from pytorch.org>"
TORCH  ?= torch==2.13.0
PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= dev
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed-$(EXTRAS)

.PHONY: demo esr test lint bench docs notebooks clean

demo: $(STAMP)
	$(PY) -m latentlens demo

esr: $(STAMP)
	$(PY) steering/esr.py

test: $(STAMP) lint
	$(PY) -m pytest -n 2 --dist loadfile
	$(PY) -m pyright

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: $(STAMP)
	$(PY) benchmarks/capture.py

docs: $(STAMP)
	$(PY) docs/pages.py
	$(PY) -m zensical build --strict
	@echo "open build/site/index.html"

notebooks: $(STAMP)
	$(PY) notebooks/execute.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'latentlens needs Python 3.11 or newer'"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache demo_report.html
