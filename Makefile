# Each target sets up what it needs; nothing has to be installed by hand beyond Python 3.11-3.13.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= quickstart
TEXT   ?= stories
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
FLOOR  := .venv-floor
FLOOR_TESTS := $(addprefix tests/,cli/test_pipeline_cli.py test_attention.py test_compute.py test_leases.py \
	test_object_store.py features/test_codecs.py features/test_encoder.py features/test_packing_objects.py \
	features/test_store.py features/test_stream.py features/test_text.py \
	model/test_autoencoder.py model/test_denoiser.py model/test_diffusion.py model/test_layers.py \
	model/test_objective.py model/test_self_conditioning_bf16.py model/test_timesteps.py \
	sampling/test_euler_maruyama.py stages/test_evaluate.py stages/test_export.py \
	stages/test_extract_features.py stages/test_train_stage.py test_private_names.py \
	training/test_checkpoint.py training/test_ema_optim.py training/test_footprint.py)

# Processes of tests import the sources again and again: they find them compiled, also where the environment forbids it.
test test-floor test-slow: export PYTHONDONTWRITEBYTECODE :=

CHECK_PYTHON := $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"ldlm is tested on Python 3.11-3.13 and this is {v[0]}.{v[1]}: call make PYTHON=python3.12")'

.PHONY: install quickstart test test-floor test-gpu test-slow bench lint clean

install: $(STAMP)  ## the environment that all other targets use

quickstart: $(STAMP)  ## the whole pipeline in about ten minutes on two cores; TEXT=python or TEXT=FILE for another text
	$(BIN)/ldlm quickstart --output $(OUT) --text "$(TEXT)"

test: $(STAMP)  ## the test suite
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile -m "not slow and not gpu"

test-floor: $(FLOOR)/.installed  ## the core tests with the lowest versions that pyproject.toml allows
	$(FLOOR)/bin/python -m pytest -n logical --maxprocesses 8 --dist loadfile -m "not slow and not gpu" $(FLOOR_TESTS)

test-gpu: $(STAMP)  ## what needs a GPU
	$(BIN)/python -m pytest -m gpu

test-slow: $(STAMP)  ## the long fault sweeps and trainings
	$(BIN)/python -m pytest -n logical --maxprocesses 8 -m "slow and not gpu"

bench: $(STAMP)  ## measure this machine and write benchmarks/results
	$(BIN)/python -m benchmarks --output benchmarks/results

lint: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) $(FLOOR) build *.egg-info

# The stamps are written last, so an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "installing into $(VENV) with the versions of constraints.txt (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(FLOOR)/.installed: pyproject.toml tests/floor.py
	@$(CHECK_PYTHON)
	@echo "installing into $(FLOOR) the lowest versions that are allowed (once; several GB where torch's are for CUDA)"
	@$(PYTHON) -m venv $(FLOOR)
	@$(PYTHON) tests/floor.py > $(FLOOR)/floor.txt
	@$(FLOOR)/bin/pip install --quiet --constraint $(FLOOR)/floor.txt --editable '.[test]'
	@touch $@
