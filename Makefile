# `make` lists the targets. Every target sets up what it needs and skips what is already there.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.cmdvid-ready

# The demo: FAST=1 for a rough one in minutes, DATA=DIR for your own videos, RUN=DIR for its place.
RUN     ?= runs/demo
FAST    ?=
DATA    ?=
VIDEOS  := $(or $(DATA),$(RUN)/data)
OVERLAY  = $(if $(FAST),--config configs/demo_fast/$(1)_shapes.yaml)
RUNDIR   = --trainer.default_root_dir $(RUN)/$(1)
VERBS   := fit validate test predict encode export shapes

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo eval test test-all check format docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make the virtual environment and install cmdvid into it, once

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: setup  ## train, generate and score on the shapes (FAST=1) or on your videos (DATA=DIR)
	$(if $(DATA),,test -d $(VIDEOS) || $(BIN)/cmdvid shapes --out $(VIDEOS) --num-videos 6144)
	$(BIN)/cmdvid fit --config configs/ae_shapes.yaml $(call OVERLAY,ae)
	$(BIN)/cmdvid encode --ckpt $(RUN)/autoencoder/last.ckpt --out $(RUN)/latents
	$(BIN)/cmdvid fit --config configs/content_shapes.yaml $(call OVERLAY,content)
	$(BIN)/cmdvid fit --config configs/motion_shapes.yaml $(call OVERLAY,motion)
	$(BIN)/cmdvid export --content $(RUN)/content/last.ckpt --motion $(RUN)/motion/last.ckpt --out $(RUN)/pipeline
	$(BIN)/cmdvid predict --ckpt $(RUN)/pipeline --prompts configs/demo_prompts.txt --out $(RUN)/videos
	$(MAKE) eval

eval: setup  ## score the last run again
	$(BIN)/cmdvid test --config configs/generate_shapes.yaml $(call OVERLAY,generate)

test: setup  ## the tests without the slow ones, under ten minutes on two cores
	$(BIN)/python -m pytest

test-all: setup  ## every test
	$(BIN)/python -m pytest -m ''

check: setup  ## lint, format and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## write docs/cli.md from what the commands say of themselves
	@mkdir -p docs
	@{ echo '# The command line'; echo; echo 'Written by `make docs` from `--help`.'; \
	  for verb in '' $(VERBS); do \
	    printf '\n## cmdvid %s\n\n```text\n' "$$verb" | sed 's/ $$//'; \
	    $(BIN)/cmdvid $$verb --help || exit 1; printf '```\n'; \
	  done; } > docs/cli.md.new && mv docs/cli.md.new docs/cli.md

clean:  ## remove caches and the environment; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
