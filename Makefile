# Two commands: `make demo` and `make test`. Both make the environment they need.
PYTHON ?= python3
VENV ?= .venv
# Where the tests take their order and their random numbers from; another seed tries others.
SEED ?= 289434586
# How long `make fuzz` begins new programs.
SECONDS ?= 3600
# What `make detection`, `make power`, `make guide` and `make mutants` are called with, such as --seeds 5 --networks 3 --jobs 4.
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

TSC := --allowJs --checkJs --noEmit --strict --skipLibCheck --target es2022 --module esnext --moduleResolution bundler --lib es2023,dom,dom.iterable

.PHONY: help demo test test-trainers test-integrations coverage fuzz inject mutants lint format bench gpu detection power public-faults guide docs test-docs test-package test-versions golden pictures clean profile

help:
	@echo "make demo      install, then train three small networks and see what is found"
	@echo "make test      install, then run the whole test suite"
	@echo "make test-integrations  install the libraries of docs/integrations.md beside, and test their adapters"
	@echo "make coverage  run the suite and the tests of test-trainers, and fail below 95 % of the lines or of the branches"
	@echo "make test-trainers  the same of Transformers, Ignite and fastai only, as continuous integration does"
	@echo "make fuzz      compose random trainings, and compare them with and without bnmonitor (SECONDS=3600, SEED=...)"
	@echo "make inject    raise an error at every line of bnmonitor that a short training passes"
	@echo "make mutants   change the code that matters most at one place after the other: does a test fail each time?"
	@echo "make lint      ruff and mypy, and tsc for the types of the viewer where it is installed"
	@echo "make docs      write the generated pages (rules, kinds of layers, rooms, symptoms) and build the site"
	@echo "make test-docs  run what the documentation shows, the recipes and the site too, which need more packages"
	@echo "make test-package   build the wheel and the sdist, install them where bnmonitor is not, and use them"
	@echo "make test-versions  use bnmonitor with the oldest and the newest of what it needs, as far as it installs here"
	@echo "make golden    write the expected texts of the terminal anew, and show what changed"
	@echo "make bench     measure what bnmonitor costs"
	@echo "make gpu       what holds on a GPU: exactness, waits, launches, graphs, streams, cost (in at most 12 minutes)"
	@echo "make profile   show where the time of a check goes, by rule, operation and function"
	@echo "make detection inject faults, train sound networks, and write down what was found"
	@echo "make power     measure how small a fault the rules find, and what it costs"
	@echo "make public-faults  play published faults again, and write down what is said"
	@echo "make guide     measure what is said of batch normalization, and write the pages of the guide"
	@echo "make pictures  make the pictures of the README, and those that the tab is compared with, anew (needs chromium)"

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "bnmonitor needs Python 3.10 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }

$(VENV)/demo.stamp: $(BIN)/pip pyproject.toml constraints.txt
	@echo "installing bnmonitor and what the demo needs into $(VENV) ..."
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(BIN)/pip pyproject.toml constraints.txt
	@echo "installing bnmonitor and what its tests need into $(VENV) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp
	@$(BIN)/bnmonitor demo

# Two workers halve the time on two cores. A file stays with one of them, so that its trainings in several processes run
# once; their order is another each time, and the seed that gives it again is in the first lines of the output.
test: $(VENV)/dev.stamp
	@$(BIN)/python -m pytest -n 2 --dist loadfile --randomly-seed=$(SEED)

# An environment of its own: these libraries bring a hundred others, and some of them hold others back.
INTEGRATIONS := $(VENV)-integrations
$(INTEGRATIONS)/stamp: pyproject.toml constraints.txt
	@echo "installing the libraries whose trainers bnmonitor has adapters for into $(INTEGRATIONS) ..."
	@$(PYTHON) -m venv $(INTEGRATIONS)
	@$(INTEGRATIONS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[integrations,dev]'
	@touch $@

# The environment of the suite, and beside it the three libraries that are quick to install.
TRAINERS := $(VENV)-trainers
$(TRAINERS)/stamp: $(VENV)/dev.stamp
	@echo "installing Transformers, Ignite and fastai into $(TRAINERS) ..."
	@$(PYTHON) -m venv $(TRAINERS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(TRAINERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/suite.pth"
	@$(TRAINERS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[trainers]'
	@touch $@

TRAINERS_TESTS := $(patsubst %,tests/integrations/test_%.py,huggingface ignite fastai)
test-trainers: $(TRAINERS)/stamp
	@OMP_NUM_THREADS=1 $(TRAINERS)/bin/python -m pytest --randomly-seed=$(SEED) $(TRAINERS_TESTS)

test-integrations: $(INTEGRATIONS)/stamp $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/python -m pytest tests/integrations --randomly-seed=$(SEED)
	@OMP_NUM_THREADS=1 BNMONITOR_EVERY_SCRIPT=1 $(BIN)/python -m pytest tests/scripts --randomly-seed=$(SEED)

$(VENV)/coverage.stamp: $(VENV)/dev.stamp
	@echo "installing what measures coverage into $(VENV) ..."
	@$(PIP) --editable '.[coverage]'
	@touch $@

# coverage starts the tests, not the other way around: the plugin of pytest is imported before any other could measure it.
# The environment of the trainers has coverage from that of the suite.
coverage: $(VENV)/coverage.stamp $(TRAINERS)/stamp
	@rm -rf build/coverage
	@$(BIN)/python -m coverage run -m pytest -n 2 --dist loadfile --randomly-seed=$(SEED)
	@OMP_NUM_THREADS=1 $(TRAINERS)/bin/python -m coverage run -m pytest --randomly-seed=$(SEED) $(TRAINERS_TESTS)
	@$(BIN)/python -m coverage combine -q
	@$(BIN)/python -m coverage report
	@$(BIN)/python -m coverage json -q -o build/coverage/report.json
	@$(BIN)/python -m tests.coverage_totals build/coverage/report.json --least 95

fuzz: $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seconds=$(SECONDS) --first=$(SEED)

inject: $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.inject

$(VENV)/mutants.stamp: $(VENV)/dev.stamp
	@echo "installing what makes mutants into $(VENV) ..."
	@$(PIP) --editable '.[mutants]'
	@touch $@

mutants: $(VENV)/mutants.stamp
	@$(BIN)/python -m tests.mutants $(ARGS)

lint: $(VENV)/dev.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@if command -v tsc >/dev/null; then tsc $(TSC) bnmonitor/viewer/*.js; else echo "tsc is not installed: the types of the viewer were not checked"; fi

format: $(VENV)/dev.stamp
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

$(VENV)/docs.stamp: $(VENV)/dev.stamp
	@echo "installing what builds the site into $(VENV) ..."
	@$(PIP) --editable '.[docs]'
	@touch $@

docs: $(VENV)/docs.stamp
	@$(BIN)/python docs/gen_rules.py
	@$(BIN)/python docs/gen_kinds.py
	@$(BIN)/python docs/gen_architecture.py
	@$(BIN)/python docs/gen_symptoms.py
	@$(BIN)/python -m sphinx -W --keep-going -q -E -b html -d build/doctrees docs build/site
	@echo "the site is in build/site: open build/site/index.html"

$(VENV)/recipes.stamp: $(VENV)/docs.stamp
	@echo "installing what the recipes of the documentation use into $(VENV) ..."
	@$(PIP) --editable '.[recipes]'
	@touch $@

$(VENV)/package.stamp: $(VENV)/dev.stamp
	@echo "installing what builds and checks packages into $(VENV) ..."
	@$(PIP) --editable '.[package]'
	@touch $@

test-docs: $(VENV)/recipes.stamp
	@$(BIN)/python -m pytest -q tests/test_docs.py tests/test_docs_code.py tests/test_site.py tests/symptoms

test-package: $(VENV)/package.stamp
	@$(BIN)/python -m tests.packaging.install $(ARGS)

test-versions: $(VENV)/package.stamp
	@$(BIN)/python -m tests.packaging.versions $(ARGS)

golden: $(VENV)/dev.stamp
	@GOLDEN=write $(BIN)/python -m pytest -q tests/sinks/test_console.py
	@git diff --stat tests/sinks/golden

$(VENV)/bench.stamp: $(VENV)/dev.stamp
	@echo "installing what bnmonitor is compared with into $(VENV) ..."
	@$(PIP) --editable '.[bench]'
	@touch $@

$(VENV)/deepspeed.stamp: $(VENV)/dev.stamp
	@echo "installing DeepSpeed, so that its tests run, into $(VENV) ..."
	@$(PIP) --no-build-isolation --editable '.[deepspeed]'
	@touch $@

bench: $(VENV)/bench.stamp
	@$(BIN)/python benchmarks/overhead.py
	@$(BIN)/python benchmarks/scaling.py
	@$(BIN)/python benchmarks/rules.py
	@$(BIN)/python benchmarks/recalibrate.py
	@$(BIN)/python benchmarks/report.py

gpu: $(VENV)/dev.stamp
	@$(BIN)/python benchmarks/gpu.py $(ARGS)

profile: $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/check_profile.py $(ARGS)

detection: $(VENV)/dev.stamp
	@$(BIN)/python benchmarks/detection.py $(ARGS)

power: $(VENV)/dev.stamp
	@$(BIN)/python benchmarks/detection.py --part power $(ARGS)

public-faults: $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/public_faults/run.py

guide: $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.guide $(ARGS)

pictures: $(VENV)/dev.stamp
	@$(BIN)/python docs/gen_pictures.py
	@PICTURES=write $(BIN)/python -m pytest -q tests/tensorboard_plugin/test_pictures.py

clean:
	rm -rf $(VENV) $(VENV)-integrations $(VENV)-trainers build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bnmonitor_demo
