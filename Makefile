.PHONY: install test test-all check format claim faults site

install:
	pip install -c constraints.txt -e '.[dev]'

test:
	pytest

test-all:
	pytest
	pytest -n 2 -m slow

check:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .

claim:
	python benchmarks/claim.py --output results/claim

faults:
	python benchmarks/faults.py

site:
	typer hard_positives.cli utils docs --name hard-positives --title Commands --output docs/commands.md
	zensical build --clean --strict
