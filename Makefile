# Everything works in a fresh clone: each command makes .venv and installs into it by itself, the first time.
#
#   make demo                              examples/demo.py, on this machine; MODEL=openai:text-embedding-3-small uses the API
#   make demo FAST=1                       the same with a static model, without PyTorch: an eighth of the download
#   make test                              lint, types and every test; ARGS="-k cache" picks some, WORKERS=8 is for a larger machine
#   make lint | make types                 ruff | mypy and basedpyright, alone
#   make test-extras                       each extra alone, from the wheel, and none from the sdist; EXTRAS="openai bare" picks some
#   make test-versions                     the oldest and newest versions of frameworks, other Pythons; VERSIONS="oldest tests-3.13"
#   make test-fleet                        the oldest Ray that is supported; `make test` has the newest
#   make docs                              the documentation site, in build/docs; a dead link is an error
#   make dist                              the wheel and the sdist, in dist/
#   make invariants                        check that each invariant's test fails without the code that ensures it; ARGS="2 9" picks some
#   make soak                              everything at once for three minutes, against a server that fails; ARGS="--minutes 10"
#   make live PROVIDER=voyage              settle with your own key, for a cent at most, what was not tried; ARGS="--model voyage-4"
#   make bench-retrieval DATA=<folder>     ranking quality on a data set in BEIR's layout
#   make bench-speed                       speed against peers and code by hand, as ratios; ARGS="--only cold,warm --rounds 5"
#   make bench-processes                   several processes on one cache: bills, limits, budgets; ARGS="--only kills --processes 4"
#   make bench-redis                       the same with a folder each and one Redis for all; ARGS="--only warm,outages"
#   make bench-fleet                       workers on one Redis: plain processes, and Ray; ARGS="--only overhead,kills --workers 4"
#   make bench-compare BASE=<commit>       speed of a commit against the current tree; ARGS="--only cold,query --rounds 7"
#   make clean | make distclean            forget the demo's cache and build files | .venv too

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The sessions of noxfile.py do the work; nox runs in .venv.
PIP = $(BIN)/python -m pip --disable-pip-version-check
NOX = $(BIN)/nox --no-error-on-missing-interpreters

# The model of the demo and the tests is a Python package: nothing needs the model hub.
HF_HUB_OFFLINE ?= 1
export HF_HUB_OFFLINE

# Set on the command line only; a variable of the same name in the environment is somebody else's.
MODEL =
FAST =
DATA =
BASE =
PROVIDER =
ARGS =

# Processes that share out the files of the tests, which wait half of the time.
WORKERS ?= 3

# Environments that are made and tried side by side.
AT_ONCE ?= 3
VERSIONS = oldest newest
EXTRAS =

INSTALLED = $(VENV)/.installed
FAST_INSTALLED = $(VENV)-fast/.installed
BENCHMARKS_INSTALLED = $(VENV)/.installed-benchmarks

.PHONY: demo live test test-extras test-versions test-fleet lint types invariants soak bench-retrieval bench-speed bench-processes bench-redis bench-fleet bench-compare install docs dist clean distclean

demo: $(if $(FAST),$(FAST_INSTALLED),$(INSTALLED))
	@$(if $(FAST),$(VENV)-fast/bin,$(BIN))/python examples/demo.py $(if $(FAST),--fast) $(if $(MODEL),--model "$(MODEL)") $(ARGS)

test: lint types
	@WORKERS=$(WORKERS) $(NOX) --sessions suite -- $(ARGS)

lint: $(INSTALLED)
	@$(NOX) --sessions lint

types: $(INSTALLED)
	@$(NOX) --parallel 2 --sessions mypy basedpyright

test-extras: $(INSTALLED)
	@$(NOX) --parallel $(AT_ONCE) --sessions $(if $(EXTRAS),$(foreach extra,$(EXTRAS),"extra($(extra))"),extra)

test-versions: $(INSTALLED)
	@$(NOX) --parallel $(AT_ONCE) --sessions $(VERSIONS)

test-fleet: $(INSTALLED)
	@$(NOX) --sessions fleet

docs: $(INSTALLED)
	@$(NOX) --sessions docs

dist: $(INSTALLED)
	@$(NOX) --sessions build

invariants: $(INSTALLED)
	@$(BIN)/python tests/invariants/remove_invariants.py $(ARGS)

live: $(INSTALLED)
	@test -n "$(PROVIDER)" || { echo "name the provider whose key you have: make live PROVIDER=openai, or any other that is a service" >&2; exit 2; }
	@$(BIN)/python examples/live.py $(PROVIDER) $(ARGS)

soak: $(INSTALLED)
	@$(BIN)/python -m benchmarks.soak $(ARGS)

bench-retrieval: $(BENCHMARKS_INSTALLED)
	@test -n "$(DATA)" || { echo "name a data set in BEIR's layout: make bench-retrieval DATA=<folder>" >&2; exit 2; }
	@$(BIN)/python -m benchmarks.micro retrieval --data "$(DATA)" $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench-speed: $(BENCHMARKS_INSTALLED)
	@$(BIN)/python -m benchmarks.speed $(ARGS)

bench-processes: $(BENCHMARKS_INSTALLED)
	@$(BIN)/python -m benchmarks.processes $(ARGS)

bench-redis: $(BENCHMARKS_INSTALLED)
	@$(BIN)/python -m benchmarks.processes --redis $(ARGS)

bench-fleet: $(BENCHMARKS_INSTALLED)
	@$(BIN)/python -m benchmarks.fleet $(ARGS)

bench-compare: $(BENCHMARKS_INSTALLED)
	@test -n "$(BASE)" || { echo "BASE: no commit. Name the commit to compare with: make bench-compare BASE=<commit>" >&2; exit 2; }
	@$(BIN)/python -m benchmarks.compare "$(BASE)" $(ARGS)

install: $(INSTALLED)
	@:

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "rag-embedkit needs Python 3.11 or newer, and $(PYTHON) is not: name one that is, as in 'make PYTHON=python3.12'" >&2; \
		exit 1; }
	@test -e $(INSTALLED) || echo "first time: installing into $(VENV), one or two minutes"
	@test ! -e $(INSTALLED) || echo "pyproject.toml has changed: bringing $(VENV) up to date"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade pip "nox[uv]" # the pip of Python 3.11 takes far longer, and knows no dependency groups
	@$(NOX) --sessions install
	@touch $(INSTALLED)

$(FAST_INSTALLED): pyproject.toml
	@test -e $(FAST_INSTALLED) || echo "first time: installing into $(VENV)-fast, less than a minute"
	@test -x $(VENV)-fast/bin/python || $(PYTHON) -m venv $(VENV)-fast
	@$(VENV)-fast/bin/python -m pip --disable-pip-version-check install --upgrade pip "nox[uv]"
	@$(VENV)-fast/bin/nox --sessions install -- fast
	@touch $(FAST_INSTALLED)

$(BENCHMARKS_INSTALLED): benchmarks/requirements.txt $(INSTALLED)
	@$(BIN)/uv pip install --python $(BIN)/python --requirement benchmarks/requirements.txt
	@touch $(BENCHMARKS_INSTALLED)

clean:
	rm -rf .demo .nox build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV) $(VENV)-fast
