# Every target sets up .venv by itself, with pip, when it is missing or older than its recipe.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NEXT := .venv-next
NEXT_TESTS := $(addprefix tests/em_circuits/, bases graphs/test_full.py \
  $(addprefix models/test_, families.py family_kinds.py pair.py foreign_transcoders.py) \
  $(addprefix interventions/test_, edits.py engine.py continuations.py windows.py))

.PHONY: audit-demo bench bench-long bench-real bench-viewer bench-workers check check-js clean demo demo-real docs families format fuzz help known notebooks organism pictures scale test test-browser test-cluster test-crowd test-faults test-kills test-next validity
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(STAMP) ## the whole pipeline on the embedded model organism, on a CPU
	$(BIN)/em-circuits demo

audit-demo: $(STAMP) ## audits of the organism and of a harmless twin: two decisions, one page
	OMP_NUM_THREADS=1 $(BIN)/python scripts/audit_demo.py --root results/audit-demo

demo-real: $(STAMP) ## the same on a real model, SmolLM2-135M-Instruct (fetched once)
	$(BIN)/em-circuits organism fetch smollm2
	OMP_NUM_THREADS=2 $(BIN)/em-circuits --organism smollm2 --root results/smollm2 demo --n 7 --nodes 60

test: $(STAMP) ## every test; no network, GPU or key
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-next: $(NEXT)/.installed ## models, bases, full edges, steering: newest transformers, no circuit-tracer
	OMP_NUM_THREADS=1 $(NEXT)/bin/python -m pytest $(NEXT_TESTS)

test-kills: $(STAMP) ## reviewers and writers killed 1,000 times on SQLite, 200 on PostgreSQL (half an hour)
	$(BIN)/python tests/pivotal_tokens/store/kills.py --kills 1000 --directory $$(mktemp -d)
	$(BIN)/python tests/pivotal_tokens/store/kills.py --kills 200 --postgresql --directory $$(mktemp -d)

test-cluster: $(STAMP) ## 200 prompts on a Ray cluster, a node and three workers killed; a job under Slurm's commands
	OMP_NUM_THREADS=1 $(BIN)/python tests/em_circuits/engine/cluster.py --prompts 200
	TEST_CLUSTER=1 $(BIN)/python -m pytest tests/em_circuits/engine/test_slurm.py \
	  "tests/em_circuits/engine/test_engines.py::test_pieces_go_through_processes_and_actors_that_nobody_else_can_reach[ray]"

test-faults: $(STAMP) ## a thousand random damages of each kind of file, then hostile requests (a few minutes)
	PYTHONPATH=scripts $(BIN)/python tests/em_circuits/damages.py --times 1000
	$(BIN)/python -m pytest tests/em_circuits/graphs/test_forged.py tests/em_circuits/viewer/test_viewer_fuzz.py

fuzz: $(STAMP) ## every reader of outside files on changed ones, for an hour
	EM_CIRCUITS_FUZZ_SECONDS=3600 $(BIN)/python -m pytest -s tests/em_circuits/test_fuzz.py

test-crowd: $(STAMP) ## twenty browsers on one queue for a minute, on a busy machine
	$(BIN)/python scripts/many_browsers.py --browsers 20 --seconds 60 --busy 4

test-browser: $(STAMP) ## the viewer in a real browser; installs chromium where that is possible
	@which chromium chromium-browser google-chrome 2>/dev/null | grep -q . || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  echo "no browser, and none can be installed here: these tests are skipped" >&2
	$(BIN)/python -m pytest tests/browser -rs

pictures: $(STAMP) ## the pictures of docs/ and the layouts that tests compare with, taken anew (ten minutes)
	$(BIN)/em-circuits --root runs/demo demo
	$(BIN)/em-circuits --root runs/demo steer sweep --plan examples/pad_thai.yaml
	$(BIN)/em-circuits --root runs/demo steer validate
	$(BIN)/python scripts/screenshots.py --root runs/demo
	$(BIN)/python scripts/screenshots.py --layout tests/browser/layout.npz

bench-viewer: $(STAMP) ## first loads, large graphs, five tasks: measured figures beside targets (three minutes)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_viewer.py

check: $(STAMP) check-js ## linters, formatters, type checkers, of Python and (where node is) of JavaScript
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

families: $(STAMP) ## every family of models through every figure and command; docs/models.md (half an hour of CPU)
	OMP_NUM_THREADS=1 PYTHONPATH=scripts $(BIN)/python scripts/family_matrix.py
	FAMILY_EXAMPLES=100 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	  tests/em_circuits/models/test_random_configurations.py

notebooks: $(STAMP) ## run the notebooks of examples/ in place (three of them on SmolLM2, fetched once)
	$(BIN)/em-circuits organism fetch smollm2
	OMP_NUM_THREADS=1 $(BIN)/python scripts/run_notebooks.py

docs: $(STAMP) ## docs/json.md, from the result models of the commands
	$(BIN)/python scripts/json_docs.py

check-js:
	@if command -v npm >/dev/null; then \
	  test node_modules/.package-lock.json -nt package-lock.json || npm ci --silent --no-audit --no-fund; \
	  npm run --silent check; \
	else echo "no npm here: the viewer's JavaScript is not checked" >&2; fi

format: $(STAMP) ## format Python and JavaScript
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	npm run --silent format

known: $(STAMP) ## every method on circuits whose nodes and edges are known (a minute)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/known_circuits.py

validity: $(STAMP) ## validity cards of the organism's circuit and of a wrong one (a few minutes)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/validity_cards.py

bench: $(STAMP) ## measured figures beside circuit-tracer's, in one run
	$(BIN)/python scripts/bench_influence.py
	$(BIN)/python scripts/bench_screening.py
	$(BIN)/python scripts/bench_attribution.py
	$(BIN)/python scripts/bench_edges.py
	$(BIN)/python scripts/bench_ranking.py
	$(BIN)/python scripts/bench_steering.py

bench-workers: $(STAMP) ## what a unit of work costs beside its work; a store under 32 workers
	OMP_NUM_THREADS=1 PYTHONPATH=tests/pivotal_tokens $(BIN)/python scripts/bench_workers.py

bench-real: $(STAMP) ## memory, reads and start-up at Llama-3.2-1B's width, two layers of 32,768 features (half an hour; goes on where it was stopped)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_real.py results/reduced \
	  --layers 2 --features 32768 --tokens 6 --tokens 55 --places disk --places cpu

scale: $(STAMP) ## a thousand workers on a store, simulated; what a run costs at real size, reckoned
	OMP_NUM_THREADS=1 $(BIN)/python scripts/simulate_workers.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/cost_model.py

bench-long: $(STAMP) ## attribution and influence of a prompt of 3,223 tokens (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_long_prompt.py

organism: $(STAMP) ## train the embedded organism anew into results/organism (about 20 minutes)
	$(BIN)/em-circuits organism train --out results/organism

clean: ## remove the environment and caches, not results
	rm -rf .venv $(NEXT) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.11 $@" >&2; exit 1; }
	@echo "Setting up .venv (once; a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# Without extras, and of what is held for circuit-tracer's sake the newest that there is.
HELD := transformers|huggingface_hub|tokenizers|peft|accelerate|safetensors|fsspec|hf-xet
HELD := $(HELD)|circuit-tracer|transformer-lens|nnsight
$(NEXT)/.installed: pyproject.toml constraints.txt
	test -x $(NEXT)/bin/python || $(PYTHON) -m venv $(NEXT)
	grep -vE '^($(HELD))==' constraints.txt > $(NEXT)/constraints.txt
	$(NEXT)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
	  -c $(NEXT)/constraints.txt -e . pytest pytest-timeout hypothesis beartype
	@touch $@
