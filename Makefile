# make demo: the whole story on real data.  make test: everything that is checked; make test-quick: without what is
# marked slow.  make bench: every benchmark, its figures in out/bench/.  make fuzz, make faults: docs/reliability.md.
# All work on a fresh machine that has Python >= 3.10 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 4
# low_bits.py takes a folder of images, and trains: by hand
BENCHMARKS := $(patsubst benchmarks/%.py,%,$(filter-out benchmarks/timing.py benchmarks/low_bits.py,$(wildcard benchmarks/*.py)))
# for instance: make bench BENCH_OPTIONS='--rounds 5'
BENCH_OPTIONS ?=

# how many damaged files a reader, and how many kills a writer
INPUTS ?= 10000
KILLS ?= 200

.PHONY: demo test test-quick lint bench fuzz faults clean

demo: $(INSTALLED)
	$(BIN)/chipfit demo

test: $(INSTALLED)
	$(PYTEST)

test-quick: $(INSTALLED)
	$(PYTEST) -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	mkdir -p out/bench
	$(foreach name,$(BENCHMARKS),$(BIN)/python benchmarks/$(name).py --json out/bench/$(name).json $(BENCH_OPTIONS) &&) true

fuzz: $(INSTALLED)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m support.fuzzing --inputs $(INPUTS) --json out/fuzz.json

faults: $(INSTALLED)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m support.faults --kills $(KILLS) --json out/faults.json

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps pytorchcv==0.0.67  # its torchvision is not needed
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) out build dist
