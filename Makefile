# Whetstone. Every target below is `python -m pipeline|verifiers|benchmarks ...` in .venv, which is made on first use.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed.json
DEMO := configs/demo/pipeline.yaml
REAL := configs/real/pipeline.yaml

CONFIG ?=
RUN ?=
SET ?=
ARGS ?=
FLAVOUR ?=
# of the command line alone: WSL, for one, has a NAME in its environment, the machine's
NAME :=
OTHER :=
DIR :=
UPGRADE :=
# processes of `make test`, where a file stays on one, and stages at once of `make demo`
WORKERS ?= 2
MODEL :=
# another model in place of CONFIG's
SPACE := $() $()
OF_MODEL = $(if $(MODEL),$(SPACE)"model.path=$(MODEL)")

export HF_HUB_DISABLE_TELEMETRY ?= 1
export DO_NOT_TRACK ?= 1
export VLLM_NO_USAGE_STATS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# threads that wait asleep: spinning ones made a run beside another busy process 50 times slower
export OMP_WAIT_POLICY ?= PASSIVE
# but not before they have looked for work for some microseconds
export GOMP_SPINCOUNT ?= 1000
# packages are installed uncompiled; without a cache every start would compile them again (12 s)
unexport PYTHONDONTWRITEBYTECODE

# MODEL, or the real pretrained model, fetched once
OR_FETCHED = model="$(MODEL)"; [ -n "$$model" ] || model=$$($(PY) -m benchmarks.real_model fetch)

# "order name summary" of every kind of stage, read from the classes that define them
KINDS := awk '/^    summary="/ { split($$0, text, "\""); summary = text[2]; order = 75 } \
  /^    order=/ { order = substr($$1, 7) + 0 } \
  /^    kind: str = "/ && summary { split($$0, name, "\""); print order, name[2], summary; summary = "" }' \
  pipeline/config/*_schema.py | sort -n
STAGES := $(shell $(KINDS) | cut -d " " -f 2)
OF_CONFIG := $(STAGES) pipeline plan
OF_RUN := report watch lineage chat serve export push lm-eval

# $(call needs,NAME,targets,example): one line and exit 2, before anything is installed, when NAME= was not given
needs = $(foreach goal,$(filter $(2),$(MAKECMDGOALS)),\
  $(if $(strip $($(1))),,$(error make $(goal) needs $(1)=...; for example: make $(goal) $(3))))
$(call needs,CONFIG,$(OF_CONFIG),CONFIG=$(DEMO))
$(call needs,RUN,$(OF_RUN) diff,RUN=runs/demo)
$(call needs,OTHER,diff,RUN=$(RUN) OTHER=runs/demo2)
$(call needs,NAME,recipe,NAME=davinci-002)
$(call needs,NAME,verifier,NAME=my_task)
$(call needs,NAME,tool,NAME=my_tool)

##@ Start here

demo: $(STAMP) ## run the whole chain on a tiny embedded model; writes runs/demo/ and its report
	HF_HUB_OFFLINE=1 $(PY) -m pipeline run $(DEMO) workers=$(WORKERS) $(SET)

demo-real: $(STAMP) ## the same chain on a real pretrained model, fetched once; MODEL=path-or-Hub-id takes another
	$(OR_FETCHED) && $(PY) -m pipeline run $(REAL) model.path="$$model" $(SET)

test: $(STAMP) ## run the tests in WORKERS=2 processes; ARGS="-k name" chooses
	HF_HUB_OFFLINE=1 $(PY) -m pytest -q --durations=15 -m "not long and not real" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: $(STAMP) ## the tests that take minutes each: learning over seeds, ten thousand sandboxed runs, several processes
	HF_HUB_OFFLINE=1 $(PY) -m pytest -q --durations=15 -m long $(ARGS)

test-real: $(STAMP) ## the tests on a real pretrained model, fetched once; MODEL=path takes another
	$(OR_FETCHED) && MODEL="$$model" HF_HUB_OFFLINE=1 $(PY) -m pytest -q --durations=15 -m real $(ARGS)

check: $(STAMP) ## format, lint, types and the fast tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	HF_HUB_OFFLINE=1 $(PY) -m pytest -q -m "not slow and not long and not stages and not gpu and not real" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

help: ## this list
	@$(KINDS) | awk 'BEGIN { FS = ":.*## " } \
	  NR == FNR { stages[++count] = $$0; next } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^##@ One stage/ { for (i = 1; i <= count; i++) { split(stages[i], word, " "); \
	    printf "  make %-16s %s\n", word[2], substr(stages[i], length(word[1] word[2]) + 3) } } \
	  /^[a-z_-]+( [a-z_-]+)*:.*## / { n = split($$1, names, " "); for (i = 1; i <= n; i++) \
	    printf "  make %-16s %s\n", names[i], $$2 }' - $(firstword $(MAKEFILE_LIST))
	@printf '\n'; printf '%s\n' \
	  'CONFIG=file.yaml names the pipeline, SET="a.b=c d=e" changes keys of it, MODEL=path-or-Hub-id its model;' \
	  'RUN=runs/NAME names what a run left.' \
	  'Each target prints the error of its command. Exit codes: python -m pipeline ends with 0 done, 2 your mistake,' \
	  '3 stopped by an alarm of the run; make shows it as "Error N" and itself ends with 2 for any of them.'

##@ One stage: make sft CONFIG=configs/demo/pipeline.yaml SET="sft.steps=100"

$(STAGES): $(STAMP)
	$(PY) -m pipeline $@ $(CONFIG)$(OF_MODEL) $(SET)

##@ Pipelines

pipeline: $(STAMP) ## all stages of CONFIG in their order; what is done and unchanged is skipped
	$(PY) -m pipeline run $(CONFIG)$(OF_MODEL) $(SET)

plan: $(STAMP) ## what CONFIG would run, what it would cost, and every mistake in it; starts nothing
	$(PY) -m pipeline $@ $(CONFIG)$(OF_MODEL) $(SET)

recipe: $(STAMP) ## a historical pipeline on the demo task: NAME=davinci-002
	$(PY) -m pipeline $@ $(NAME) $(SET)

##@ What a run left: make report RUN=runs/demo

report: ## write RUN's HTML report
watch: ## show RUN in the terminal while it is running: curves, distance to each alarm, newest samples
lineage: ## draw RUN's tree from base model to final
chat: ## talk to the model of RUN
serve: ## serve the model of RUN through vLLM's OpenAI-compatible server
export: ## merge adapters, write the model and its card
lm-eval: ## EleutherAI's harness on the model of RUN; SET="tasks=gsm8k"
push: ## upload the exported model of RUN; SET="repo=me/model"
$(OF_RUN): $(STAMP)
	$(PY) -m pipeline $@ $(RUN) $(SET)

diff: $(STAMP) ## what differs between RUN and OTHER in config, data, versions and metrics
	$(PY) -m pipeline $@ $(RUN) $(OTHER)

##@ Verifiers

verifier: $(STAMP) ## start a new verifier: NAME=my_task [DIR=my_verifiers]
	$(PY) -m verifiers new $(NAME) $(if $(DIR),--dir $(DIR))

check-verifiers: $(STAMP) ## hold every verifier against its examples and the hostile set; NAME=one [DIR=my_verifiers]
	$(PY) -m verifiers check $(NAME) $(if $(DIR),--dir $(DIR))

tool: $(STAMP) ## start a new tool for agents: NAME=my_tool [DIR=my_tools]
	$(PY) -m verifiers tool new $(NAME) $(if $(DIR),--dir $(DIR))

check-tools: $(STAMP) ## hold every tool against its examples and hostile calls; NAME=one [DIR=my_tools]
	$(PY) -m verifiers tool check $(NAME) $(if $(DIR),--dir $(DIR))

##@ Measure

bench: $(STAMP) ## side-by-side measurements against stock TRL and bare vLLM; NAME=step for one
	$(PY) -m benchmarks $(NAME) $(ARGS)

gpu-check: $(STAMP) ## every stage for a few steps in bf16, on a machine with a GPU
	$(PY) -m pipeline $@ $(SET)

chaos: $(STAMP) ## kill every stage at seeded instants, resume, compare the hashes
	HF_HUB_OFFLINE=1 $(PY) -m pipeline $@ $(or $(CONFIG),$(DEMO)) $(SET)

##@ The project

install: ## make .venv and install; FLAVOUR=cpu, cuda or core instead of what the machine suggests
	@$(MAKE) $(PY)
	@$(PY) requirements/install.py --again $(addprefix --flavour=,$(FLAVOUR))

doctor: $(STAMP) ## what is installed, what is missing, what is off, one line each
	@$(PY) -m pipeline.cli.doctor

fmt: $(STAMP) ## format and sort imports
	$(VENV)/bin/ruff check --fix-only --select I .
	$(VENV)/bin/ruff format .

lint: $(STAMP) ## ruff
	$(VENV)/bin/ruff check .

types: $(STAMP) ## mypy
	$(VENV)/bin/mypy

lock: $(PY) ## remake requirements/*.txt; UPGRADE=1 takes newer versions
	$(PY) requirements/make_locks.py $(if $(UPGRADE),--upgrade)

clean: ## remove caches and build leftovers; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(PY):
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "no Python 3.11 or later found; install one, or name it: make PYTHON=/path/to/python"; exit 2; fi; \
	if ! $$found -m venv $(VENV) >/dev/null 2>&1; then rm -rf $(VENV); \
	  echo "$$found cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; fi

$(STAMP): $(wildcard requirements/*.txt) requirements/install.py pyproject.toml | $(PY)
	@$(PY) requirements/install.py $(addprefix --flavour=,$(FLAVOUR))

.PHONY: demo demo-real test test-long test-real check help $(OF_CONFIG) $(OF_RUN) recipe diff \
  verifier check-verifiers tool check-tools bench gpu-check chaos install doctor fmt lint types lock clean
