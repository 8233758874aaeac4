.PHONY: install test check format

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
