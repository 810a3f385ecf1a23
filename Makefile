# Everything runs in .venv, which is made here: only Python 3.11+ and make must be installed.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LINKS  := $(VENV)/links
TEST_PROCESSES ?= 2

# The thread pools of two processes on the same cores make each other several times slower.
export OMP_NUM_THREADS ?= 1
# Without bytecode on disk every process that a test starts compiles all modules again: twice the time.
unexport PYTHONDONTWRITEBYTECODE
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export DO_NOT_TRACK = 1

.PHONY: install hooks demo docs experts test lint format types contracts unit slow soak ray bench bench-check bench-long clean

install: $(STAMP)

# --no-compile: Python compiles a module when it is first imported; compiling all of them takes a minute.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)" -e ".[dev]"
	@touch $@

demo: $(STAMP)
	OMP_NUM_THREADS=2 $(BIN)/python tests/demo/run.py

# The documentation site, in build/site. --strict: a link or an anchor that does not exist is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

# Trains for about an hour of one core, once; then merges and evaluates what is not measured yet. .experts keeps it all.
EXPERTS := tests/benchmarks/real_experts
experts: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$$(grep ^gguf $(EXPERTS)/requirements-experts.txt)"
	$(BIN)/python $(EXPERTS)/training.py
	$(BIN)/python $(EXPERTS)/measure.py
	$(BIN)/python $(EXPERTS)/report.py --write docs/real-experts.md docs/sides.md
	$(BIN)/python $(EXPERTS)/data_free.py

test: lint types contracts unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

# The import graph is read from a folder of links: in an editable install `eigenmerge` is deployments/face alone.
contracts: $(STAMP)
	@mkdir -p $(LINKS)/eigenmerge
	@for name in core tasks flows deployments; do ln -sfn "$(CURDIR)/$$name" "$(LINKS)/eigenmerge/$$name"; done
	PYTHONPATH=$(LINKS) $(BIN)/lint-imports

# Checks of every commit (.pre-commit-config.yaml). pre-commit is not needed for anything else.
hooks: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pre-commit
	$(BIN)/pre-commit install

unit: $(STAMP)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m "not slow and not soak and not benchmark"

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak --timeout 7200

# `make test` does not install Ray, which takes 440 MB.
ray: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	$(BIN)/python -m pytest -m slow tests/integration/test_ray.py

# Beside mergekit (MERGEKIT_YAML, or mergekit-yaml on the PATH) and the published algorithm; on two idle cores a quarter
# of an hour. `make bench ONLY=layers` measures one group: merges, layers, kept, reading or planning; none: only the page.
PEERS := tests/benchmarks/peers
bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks.peers $(addprefix --only ,$(ONLY)) --json $(PEERS)/figures.json --page docs/benchmarks.md

# Fails where a ratio to mergekit, to the published algorithm or of a second filter to the first run is 20% worse.
bench-check: $(STAMP)
	$(BIN)/python -m tests.benchmarks.peers $(addprefix --only ,$(ONLY)) --check $(PEERS)/figures.json

# Longer measurements: the tests that measure, and how merges grow with experts, layers and width.
bench-long: $(STAMP)
	$(BIN)/python -m pytest -m benchmark --timeout 3600 -s
	$(BIN)/python tests/benchmarks/growth/growth.py --json tests/benchmarks/growth/growth.json --page docs/growth.md

clean:
	rm -rf $(VENV) .demo build *.egg-info
