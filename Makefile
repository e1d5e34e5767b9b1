# make brats-seg   set up everything, then train, evaluate and report on the embedded sample
# make test        set up everything, then run the tests
# make metaworld   an environment of its own, .venv-metaworld, since Meta-World pins another MuJoCo than constraints.txt
# Variables: EXTRAS (which domains), TORCH_INDEX (where torch comes from; default: pip's own index), PYTHON, VENV.

PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= medical,timeseries,robotics,astro,nets,scale,export,dev
TORCH_INDEX ?=
CONSTRAINTS ?= constraints.txt
BIN    := $(VENV)/bin
comma  := ,
STAMP  := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))$(if $(TORCH_INDEX),-$(shell echo $(TORCH_INDEX) | cksum | cut -c-8))
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet
INDEX  := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)
TORCH_PIN := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)

.PHONY: setup metaworld brats-seg test check full bench clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer wanted; install it and call make PYTHON=python3.x"; exit 3; }
	@echo "[1/4] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/4] $(TORCH_PIN) from $(or $(TORCH_INDEX),pip's index)"
	@$(if $(TORCH_INDEX),$(BIN)/python -m pip uninstall --quiet --yes torch)
	@$(PIP) $(INDEX) "$(TORCH_PIN)"
	@echo "[3/4] the pinned rest for: $(EXTRAS) (a few minutes the first time)"
	@$(PIP) -c $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	@echo "[4/4] check"
	@$(BIN)/pipelines doctor
	@touch $@

metaworld:
	@mkdir -p .venv-metaworld
	@sed '/^mujoco/d' constraints.txt > .venv-metaworld/constraints.txt
	@$(MAKE) --no-print-directory setup VENV=.venv-metaworld EXTRAS=metaworld,dev CONSTRAINTS=.venv-metaworld/constraints.txt

brats-seg: setup
	$(BIN)/pipelines run brats-seg

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

full: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --slow
	$(BIN)/pipelines run brats-seg --preset default --resume no

bench: setup
	$(BIN)/pipelines bench brats-seg

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
