# Each target makes the virtual environment it needs, and again whenever the dependencies change.
#   PYTHON  the interpreter it is made with (3.11 or newer)
#   VENV    where it is kept
PYTHON ?= python3
VENV ?= .venv

RUN := $(VENV)/.installed
TEST := $(VENV)/.installed-test
DEV := $(VENV)/.installed-dev
NOTEBOOK := $(VENV)/.installed-notebook
PIP_INSTALL := '$(VENV)/bin/python' -m pip install --disable-pip-version-check \
	--prefer-binary --constraint constraints.txt

# Installs this folder with the extras $(1), by uv: one that is on the PATH, else its wheel. pip, which
# takes many times as long, does it where uv cannot be had or fails, as where only pip knows the index.
define install
	@if uv=$$(command -v uv) || { $(PIP_INSTALL) --only-binary uv uv && uv='$(VENV)/bin/uv'; }; then \
	  "$$uv" pip install --python '$(VENV)/bin/python' --constraint constraints.txt \
	    --editable '.$(1)' && exit; \
	fi; \
	echo 'uv cannot be had or has failed: pip installs instead, which takes some minutes.'; \
	$(PIP_INSTALL) --editable '.$(1)'
endef

NOTEBOOKS := experiments/walkthrough experiments/your_own_loss
VERSION_OF := -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])'

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint bench notebook clean environment

help:
	@echo 'make demo      train ten seeds of DQN on CartPole-v1; table, figure, film: results/demo'
	@echo 'make test      run the tests'
	@echo 'make lint      check style and types'
	@echo 'make bench     measure the training speed'
	@echo 'make notebook  run the two tutorials as notebooks: experiments/*.ipynb, .html and .md'
	@echo 'make clean     remove the virtual environment and all caches (results stay)'
	@echo
	@echo 'Each sets itself up in $(VENV) on first use. Another interpreter or place:'
	@echo '  make demo PYTHON=python3.13 VENV=.venv313'

demo: $(RUN)
	@echo 'Training ten seeds of DQN on CartPole-v1; results go to results/demo.'
	@$(VENV)/bin/python experiments/cartpole.py --num-seeds 10 --output results/demo --overwrite

test: $(TEST)
	@echo 'Running the tests in two processes.'
	@$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

lint: $(DEV)
	@echo 'Checking style (ruff) and types (mypy).'
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

bench: $(RUN)
	@echo 'Measuring the training speed; this takes some minutes.'
	@$(VENV)/bin/python experiments/benchmarks/throughput.py

notebook: $(NOTEBOOK)
	@echo 'Running the tutorials as notebooks; this takes about three minutes.'
	@for name in $(NOTEBOOKS); do \
	  $(VENV)/bin/jupytext --quiet --to notebook --execute --run-path . $$name.py && \
	  $(VENV)/bin/jupyter-nbconvert --log-level ERROR --to html $$name.ipynb && \
	  $(VENV)/bin/jupyter-nbconvert --log-level ERROR --to markdown $$name.ipynb && \
	  echo "written: $$name.ipynb, $$name.html and $$name.md" || exit 1; \
	done

clean:
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find purejaxdqn experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -f '$(VENV)/pyvenv.cfg' ]; then rm -rf '$(VENV)'; fi

$(RUN): pyproject.toml constraints.txt | environment
	@echo 'Installing purejaxdqn into $(VENV); this takes about a minute.'
	$(call install,)
	@touch $(RUN)

$(TEST): pyproject.toml constraints.txt | environment
	@echo 'Installing purejaxdqn and what its tests need into $(VENV); this takes about a minute.'
	$(call install,[test])
	@touch $(RUN) $(TEST)

$(DEV): pyproject.toml constraints.txt | environment
	@echo 'Installing purejaxdqn and its development tools into $(VENV); this takes about a minute.'
	$(call install,[dev])
	@touch $(RUN) $(TEST) $(DEV)

$(NOTEBOOK): pyproject.toml constraints.txt | environment
	@echo 'Installing purejaxdqn and what runs notebooks into $(VENV); this takes about a minute.'
	$(call install,[notebook])
	@touch $(RUN) $(NOTEBOOK)

# Makes the virtual environment when there is none. One made with another interpreter than the PYTHON
# that was asked for is refused, because it would silently be used instead.
environment:
	@if [ -x '$(VENV)/bin/pip' ] && [ '$(origin PYTHON)' = file ]; then exit 0; fi; \
	if ! asked=$$('$(PYTHON)' $(VERSION_OF) 2>/dev/null); then \
	  echo "No working Python was found as '$(PYTHON)': install Python 3.11 or newer," \
	    "or name one: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.13" >&2; \
	  exit 1; \
	fi; \
	if ! '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "purejaxdqn needs Python 3.11 or newer, but '$(PYTHON)' is Python $$asked." \
	    "Name a newer one: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.13" >&2; \
	  exit 1; \
	fi; \
	if [ ! -x '$(VENV)/bin/pip' ]; then \
	  echo "Making a virtual environment with Python $$asked in $(VENV)."; \
	  '$(PYTHON)' -m venv '$(VENV)'; \
	elif found=$$('$(VENV)/bin/python' $(VERSION_OF)); [ "$$asked" != "$$found" ]; then \
	  echo "$(VENV) holds Python $$found, but PYTHON=$(PYTHON) is $$asked:" \
	    "run 'make clean VENV=$(VENV)' first, or name another place with VENV=." >&2; \
	  exit 1; \
	fi
