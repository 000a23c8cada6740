# make demo: the whole story on real data.  make test: everything that is checked; make test-quick: without what is
# marked slow.  make bench: every benchmark, its figures in out/bench/.  make fuzz, make faults: docs/reliability.md.
# make cross: the exported C on RISC-V and MIPS under qemu; as root it installs the compilers (Debian).
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

.PHONY: demo test test-quick cross lint bench fuzz faults clean

demo: $(INSTALLED)
	$(BIN)/chipfit demo

test: $(INSTALLED)
	$(PYTEST)

test-quick: $(INSTALLED)
	$(PYTEST) -m "not slow"

CROSS := gcc-riscv64-linux-gnu gcc-mipsel-linux-gnu gcc-mips-linux-gnu libc6-dev-riscv64-cross libc6-dev-mipsel-cross \
	libc6-dev-mips-cross qemu-user gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc clang cppcheck

cross: $(INSTALLED)
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(CROSS); fi
	$(PYTEST) tests/export/c

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
