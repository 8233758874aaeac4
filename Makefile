.PHONY: install test check format claim faults

install:
	pip install -c constraints.txt -e '.[dev]'

test:
	pytest

check:
	ruff check .
	ruff format --check .

format:
	ruff check --fix .
	ruff format .

claim:
	python benchmarks/claim.py --output results/claim

faults:
	python benchmarks/faults.py
