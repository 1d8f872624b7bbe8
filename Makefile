# Everything runs in .venv, made on first use from setup.cfg and constraints.txt.
PYTHON ?= python3
VENV := .venv
DEMO := demo

SHELL := /bin/sh
.SHELLFLAGS := -euc
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
.DEFAULT_GOAL := help
.PHONY: help install demo lint format test test-slow test-faults test-ray test-slurm test-deepspeed bench bench-cache bench-sources bench-precompute bench-precompute-gpu \
  bench-train-prior bench-train-prior-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed  ## make .venv and install the project, its demo and its tests into it

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else "PYTHON: found %d.%d, wanted 3.10 to 3.12; try make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --constraint constraints.txt torch
	pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	@touch $@

demo: install  ## pictures → cache → train → draw, on the CPU in a few minutes
	data-tools demo-data $(DEMO)/data
	python -m tests.pocket $(DEMO)/models --captions $(DEMO)/data
	precompute --data $(DEMO)/data --cache $(DEMO)/shards \
	  --prior-model $(DEMO)/models/prior --decoder-model $(DEMO)/models/decoder --resolution 128
	data-tools inspect $(DEMO)/shards
	train-prior --cache $(DEMO)/shards --output-dir $(DEMO)/runs/prior \
	  --max-train-steps 300 --validation-fraction 0.1 --validation-steps 100 --learning-rate 3e-4
	train-decoder --cache $(DEMO)/shards --output-dir $(DEMO)/runs/decoder --prior-model $(DEMO)/runs/prior \
	  --max-train-steps 120 --train-batch-size 8 --validation-fraction 0.1 --validation-steps 40
	python -m tests.demo $(DEMO)

lint: install  ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

format: install  ## let ruff rewrite the files
	ruff check --fix .
	ruff format .

test: install  ## all tests that need neither a GPU nor minutes
	pytest --numprocesses auto --dist worksteal -m 'not gpu and not slow and not faults and not ray and not slurm and not deepspeed'

test-ray: install  ## a pool of Ray actors, on simulated clusters that lose actors and nodes
	pip install --quiet --constraint constraints.txt --editable '.[ray]'
	pytest -m ray

test-slurm: install  ## array jobs on a Slurm of two virtual nodes, which it installs if it may (root, apt-get)
	@python -m tests.slurm.cluster >/dev/null 2>&1 || { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -q -y --no-install-recommends slurm-wlm munge; } || python -m tests.slurm.cluster
	pytest -m slurm

test-deepspeed: install  ## ZeRO on two ranks of the CPU
	pip install --quiet --constraint constraints.txt --editable '.[deepspeed]'
	pytest -m deepspeed

test-slow: install  ## long tests: parity in all combinations, FSDP of every kind, two ranks at a hub
	pytest --numprocesses auto --dist worksteal -m slow

test-faults: install  ## the long fault tests: killed writers, every damage, full disks
	pytest -m faults

bench: bench-cache bench-sources bench-precompute bench-train-prior  ## all measurements that run here

bench-cache: install  ## the cache's reader and writer against memmap, webdataset and zarr-python (needs 6 GB of disk)
	python -m tests.benchmarks.cache

bench-sources: install  ## decoding and preprocessing of pictures against plain PIL
	python -m tests.benchmarks.sources

bench-precompute: install  ## precompute against its bare encoders and against a loop of datasets.map, on the CPU
	python -m tests.benchmarks.precompute

bench-precompute-gpu: install  ## precompute with encoders of the published sizes, on a CUDA GPU
	python -m tests.benchmarks.precompute_gpu

bench-train-prior: install  ## train-prior against the reference with its encoders in the loop, on the CPU
	python -m tests.benchmarks.train_prior

bench-train-prior-gpu: install  ## the same with models of the published sizes, on a CUDA GPU
	python -m tests.benchmarks.train_prior_gpu

clean:  ## remove .venv and what the demo made
	rm -rf $(VENV) $(DEMO) *.egg-info
