# Needs Python 3.10 or newer and make. Every target installs what it needs into .venv, once.

PYTHON := python3
# every extra that the CI machine can use
EXTRAS := pusht,serve,openpi,data,train,ray,s3,wandb,trackio,evaluation,metaworld,rl,sb3,dev
SEEDS := 20000:20020
# PyPI's torch for Linux brings gigabytes of CUDA: without an NVIDIA card, take the CPU build where it can be reached.
TORCH_INDEX := https://download.pytorch.org/whl/cpu
CPU_TORCH = $(shell command -v nvidia-smi >/dev/null || { \
	$(PYTHON) -c "import urllib.request as u; u.urlopen('$(TORCH_INDEX)/torch/', timeout=3)" 2>/dev/null \
	&& echo --extra-index-url $(TORCH_INDEX); })

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(CPU_TORCH)
INSTALL = .venv/bin/python $(PIP_INSTALL)

.DEFAULT_GOAL := help
.PHONY: help demo play test lint train-demo eval-demo maniskill libero vp2

help:  ## list what there is to make
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/core.stamp  ## imagine a held-out episode with the shipped model, beside the truth
	.venv/bin/ivideogpt demo

play: .venv/serve.stamp  ## play the shipped model in the browser
	.venv/bin/ivideogpt serve

train-demo: .venv/pusht.stamp  ## train the PushT model again, from simulator to checkpoint
	IVIDEOGPT=.venv/bin/ivideogpt PYTHON=.venv/bin/python runs/pusht.sh

eval-demo: .venv/pusht.stamp  ## measure the shipped model on fresh episodes (SEEDS=20000:20020)
	.venv/bin/ivideogpt evaluate pusht-64 --protocol pusht --seeds $(SEEDS)

test: .venv/all.stamp  ## run the test suite, a process for each of up to four cores
	.venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

maniskill: .venv-maniskill/done.stamp  ## install ManiSkill into .venv-maniskill (2 GB), and say whether it can draw here
	.venv-maniskill/bin/python -m ivideogpt.envs.maniskill

libero: .venv-libero/done.stamp  ## install LIBERO into .venv-libero (3 GB)
	@echo "run: .venv-libero/bin/ivideogpt collect libero_spatial/0 --episodes 5 --out stores/libero"

vp2: .venv-vp2/done.stamp  ## install RoboDesk and robosuite, for planning as in VP2, into .venv-vp2 (3 GB)
	@echo "run: .venv-vp2/bin/ivideogpt plan robodesk/push_red --agents simulator,repeat-last-frame --budget small"

lint: .venv/all.stamp  ## check style, format and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

.venv/core.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (minutes, the first time)"
	$(INSTALL) --editable .
	@touch $@

.venv/pusht.stamp: .venv/core.stamp
	$(INSTALL) --editable '.[pusht,data]'
	@touch $@

.venv/serve.stamp: .venv/core.stamp
	$(INSTALL) --editable '.[serve]'
	@touch $@

# the Makefile too: it names the extras
.venv/all.stamp: .venv/core.stamp Makefile
	$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch .venv/pusht.stamp .venv/serve.stamp $@

$(addprefix .venv-,$(addsuffix /done.stamp,maniskill libero vp2)): .venv-%/done.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	@echo "installing into .venv-$* (minutes, the first time)"
	.venv-$*/bin/python $(PIP_INSTALL) --editable '.[data,train,rl,$*]' pytest pytest-timeout pytest-xdist
	@touch $@
