"""The tour: what is stored is what a run gave, and it runs."""

import ast
import importlib
import re
from importlib.util import find_spec
from itertools import groupby

import nbformat
import pytest

from tests.helpers.paths import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


@pytest.fixture
def tour():
    return nbformat.read(TOUR, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_kinds(cell):
    """The kinds of what a cell shows: stream names, and the richest form of everything else."""
    kinds = []
    for output in cell.outputs:
        if output.get("name") == "stderr":  # what libraries say of the machine at hand
            continue
        rich = [form for form in ("image/png", "text/markdown") if form in output.get("data", {})]
        kinds.append(output.get("name") or [*rich, "text/plain"][0])
    return [kind for kind, _ in groupby(kinds)]  # prints come in one piece or in several


def table(notebook):
    """The rows of the comparison, cells stripped."""
    forms = [output.get("data", {}) for cell in code(notebook) for output in cell.outputs]
    lines = next(form["text/markdown"] for form in forms if "text/markdown" in form).splitlines()
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def check_results(notebook):
    """What must be true of every run of the tour, whatever the machine."""
    assert [kind for cell in code(notebook) for kind in output_kinds(cell)] == [
        "stdout", "stdout", "image/png", "text/markdown", "image/png", "stdout",
    ]  # fmt: skip
    header, _, *rows = table(notebook)
    assert header[4:8] == ["Clean [95% CI]", "Transfer [95% CI]", "Adaptive [95% CI]", "Gain under adaptive [95% CI]"]
    assert len(rows) == 4  # undefended and defended at two eps
    for row in rows:
        measured = [float(cell.split()[0]) for cell in row[4:7] if re.match(r"\d", cell)]
        assert len(measured) == (3 if "R-Adapt" in row[0] else 2)
        assert all(0 <= score <= 100 for score in measured)
        assert row[3] == "32"
        assert "10 steps" in row[2]


def test_the_stored_outputs_are_whole_in_order_and_name_no_machine(tour):
    nbformat.validate(tour)
    assert [cell.execution_count for cell in code(tour)] == list(range(1, len(code(tour)) + 1))
    check_results(tour)
    text = TOUR.read_text()
    assert not re.search(r'/root/|/home/|/Users/|/tmp/|"output_type": "error"|"stderr"', text)
    assert len(text) < 300_000


def test_every_cell_compiles_and_imports_names_that_exist(tour):
    for cell in code(tour):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}"), ast.unparse(node)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_tour_runs_and_shows_what_it_says(tour, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the kernel's: machines that run tests have other work, too
    monkeypatch.setenv("PYTHONPATH", str(TOUR.parents[1]))
    for cell in code(tour):
        cell.outputs = []
    NotebookClient(tour, timeout=1000, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    check_results(tour)
    assert not list(tmp_path.iterdir())  # it leaves nothing where it runs
