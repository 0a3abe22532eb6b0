# Each target first sets up what it needs in .venv, once; editing pyproject.toml or constraints.txt sets it up again.
MAKEFLAGS += --no-print-directory
PINS = pyproject.toml constraints.txt
ONE  = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
SIDE ?= 2
LONG = $(addprefix benchmarks/,scoreboard.py fronts.py scaling.py peers.py quality.py concept_shapes.py evaluation_peers.py)

help:            ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: .venv/.ready  ## an environment in .venv with everything needed to work
	@echo 'ready: source .venv/bin/activate'

demo: .venv/.ready   ## bundled model, real text, a trained dictionary, a report: under ten minutes
	@.venv/bin/sparsenb demo

lab: .venv/.ready    ## JupyterLab
	@.venv/bin/sparsenb lab

test: .venv/.ready-test ## the whole suite, two files of tests at a time, one thread each; ARGS='-k store' narrows it, SIDE=0 runs one by one
	@.ci/setup browser
	@echo 'running the tests'
	@$(ONE) .venv/bin/python -m pytest -n $(SIDE) --dist loadfile $(ARGS)

models: .venv/.ready ## train the bundled models from their seeds (hours)
	@.venv/bin/python -m sparsenb.bundled

bench: .venv/.ready  ## the quick scripts in benchmarks/; the others take an hour or more: sparsenb bench scoreboard
	@set -e; for f in $(filter-out $(LONG),$(wildcard benchmarks/[a-z]*.py)); do echo "$$f"; $(ONE) .venv/bin/python $$f; done

docs: .venv/.ready-docs ## a site from README and notebooks, in _docs/html
	@.venv/bin/python .ci/docs/build.py

.venv/.ready: $(PINS)
	@.ci/setup base
	@touch $@
.venv/.ready-test: .venv/.ready $(PINS)
	@.ci/setup test
	@touch $@
.venv/.ready-docs: .venv/.ready $(PINS)
	@.ci/setup docs
	@touch $@

.PHONY: help setup demo lab test models bench docs
