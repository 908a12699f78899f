# `make` lists the targets. Every target sets up what it needs and skips what is already there.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.cmdvid-ready

# The demo: FAST=1 for a rough one in minutes, DATA=DIR for your own videos, RUN=DIR for its place,
# PROTOCOL=NAME|FILE to score by another one than the config's.
# Not from the environment, where such names may mean something else.
FAST    :=
DATA    :=
PROTOCOL :=
RUN     := runs/$(if $(DATA),own,demo)$(if $(FAST),-fast)
CMDVID  := $(BIN)/cmdvid
VERBS   := fit validate test predict encode export prepare evaluate profile slurm shapes

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo eval test test-all test-slurm slurm check format docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make the virtual environment and install cmdvid into it, once

$(READY): pyproject.toml
	@# Debian's python3 without python3-venv cannot put pip into an environment; its own pip can
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m venv --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

# The configs name runs/demo and its data set, so that each works alone. Here is all that differs
# for another RUN or DATA: where a stage writes, what it reads, and the fast demo's fewer steps.
overlay = --config configs/$(1)_shapes.yaml $(if $(FAST),--config configs/demo_fast/$(1)_shapes.yaml)
place   = --trainer.default_root_dir $(RUN)/$(1) --trainer.callbacks.dirpath $(RUN)/$(1)
latents = --model.autoencoder_ckpt $(RUN)/autoencoder/last.ckpt --data.latents $(RUN)/latents
ifdef DATA
# written anew as small shards first, for random clips of large videos cost more than training;
# many windows of each video; with nobody to judge generated clips, reconstruction is scored
prepare = $(CMDVID) prepare --index cmdvid.data.own.OwnVideos --index.root '$(DATA)' \
  --index.split $(1) --index.val_share 0.2 --short-side 64 --out $(RUN)/data/$(1)
shards  = --data.$(1) cmdvid.data.shards.Shards --data.$(1).urls $(RUN)/data/$(1)
TRAIN  := $(call shards,train) --data.train.min_clips 512 $(call shards,val)
SCORE  := --data.test null $(call shards,val) --model.judge null --model.evaluation null \
  --trainer.limit_test_batches 8
SAMPLE := $(SCORE) --trainer.limit_predict_batches 1
SHEET  := $(RUN)/videos/contact_sheet.png
else
TRAIN  := --data.train.csv $(RUN)/data/train.csv --data.val.csv $(RUN)/data/val.csv
SCORE  := --data.test.seen.csv $(RUN)/data/val.csv --data.test.heldout.csv $(RUN)/data/heldout.csv
SAMPLE := $(SCORE) --prompts configs/demo_prompts.txt
SHEET  := $(RUN)/eval/contact_sheet-seen.png
VIDEOS := --num-videos $(if $(FAST),512 --val-videos 64 --heldout-videos 64,3072 --val-videos 512 --heldout-videos 512)
endif
GENERATE = $(call overlay,generate) --ckpt $(RUN)/pipeline --trainer.default_root_dir $(RUN)

demo: setup  ## train, generate and score on the shapes (FAST=1) or on your videos (DATA=DIR)
	$(if $(DATA),$(call prepare,train),$(CMDVID) shapes --out $(RUN)/data $(VIDEOS))
	$(if $(DATA),$(call prepare,val))
	$(CMDVID) fit $(call overlay,ae) $(call place,autoencoder) $(TRAIN)
	rm -rf $(RUN)/latents
	$(CMDVID) encode --ckpt $(RUN)/autoencoder/last.ckpt --data.batch_size 16 --out $(RUN)/latents
	@echo 'content and motion train side by side, a core each; content writes to $(RUN)/content.log'
	@export OMP_NUM_THREADS=1; \
	$(CMDVID) fit $(call overlay,content) $(call place,content) $(latents) \
	  > $(RUN)/content.log 2>&1 & content=$$!; \
	trap 'kill $$content' INT TERM; \
	$(CMDVID) fit $(call overlay,motion) $(call place,motion) $(latents) \
	  || { kill $$content; exit 1; }; \
	wait $$content || { tail -n 20 $(RUN)/content.log; exit 1; }
	$(CMDVID) export --content $(RUN)/content/last.ckpt --motion $(RUN)/motion/last.ckpt \
	  --out $(RUN)/pipeline
	$(CMDVID) predict $(GENERATE) $(SAMPLE) --out $(RUN)/videos
	$(MAKE) --no-print-directory eval
	@printf '%-16s %s\n' '' '' \
	  'videos' '$(RUN)/videos' \
	  'contact sheet' '$(SHEET) (beside it as mp4)' \
	  'training' '$(BIN)/tensorboard --logdir $(RUN)' \
	  'scores' '$(RUN)/eval/report.html, report.md and report.json'

eval: setup  ## score a run again; give the FAST, DATA and RUN it was made with, and any PROTOCOL
	$(CMDVID) test $(GENERATE) $(SCORE) $(if $(PROTOCOL),--model.evaluation.protocol $(PROTOCOL))

test: setup  ## the tests without the slow ones, under ten minutes on two cores
	$(BIN)/python -m pytest

test-all: setup  ## every test
	$(BIN)/python -m pytest -m ''

test-slurm: slurm setup  ## jobs on a real Slurm, which is installed if it is not there; Debian, root
	$(BIN)/python -m pytest -v -m '' -rs --durations=15 tests/slurm

# Not a service: the tests start daemons of their own, as root, in namespaces.
SLURM := slurmctld slurmd slurm-client munge iproute2
slurm:
	@[ "$$(id -u)" = 0 ] || { echo 'only root can start the daemons of a cluster' >&2; exit 1; }; \
	PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for program in slurmctld slurmd sbatch munged ip; do \
	  command -v $$program > /dev/null || missing="$$missing $$program"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	command -v apt-get > /dev/null || { \
	  echo "not installed:$$missing; on Debian they are in: $(SLURM)" >&2; exit 1; }; \
	apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $(SLURM)

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
