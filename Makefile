# make demo: the whole story on real data.  make test: everything that is checked.
# Both work on a fresh machine that has Python >= 3.10 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint bench clean

demo: $(INSTALLED)
	$(BIN)/chipfit demo

test: $(INSTALLED)
	$(BIN)/pytest -q -n auto --maxprocesses 4

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/witmem_layers.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps pytorchcv==0.0.67  # its torchvision is not needed
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) out build dist
