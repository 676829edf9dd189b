"""README.md and docs: every example runs, every table, file, link and option that they name is right.

The Python blocks of a page run from the first to the last in one namespace. A ``text`` block that follows a block of
Python or a command directly is its output. GluonCV's published weights cannot be downloaded in a test, so
``pretrained=True`` gives random weights.
"""

import argparse
import contextlib
import importlib
import io
import json
import pathlib
import re
import shlex
import shutil

import mxnet as mx
import pytest
from gluoncv import model_zoo

import multitrainer
import multitrainer_cli
from multitrainer import images, symbolic
from multitrainer_cli import arguments
from support import moved, snapshot

ROOT = pathlib.Path(__file__).parent.parent
README, COMMAND = ROOT / "README.md", ROOT / "docs" / "command.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MARKDOWN = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "src" / "multitrainer" / "README.md"]
ELSEWHERE = ["command.md", "detection.md", "segmentation.md"]  # they need a run, or images: test_vision_pages.py
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


def page_id(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """Return the blocks of a language, each with the output that is shown for it, or ''."""
    return [(code, shown) for kind, code, shown in BLOCK.findall(page.read_text()) if kind == language]


def commands(page):
    """Return the arguments of every call of ``multitrainer`` on a page."""
    lines = [line for code, _ in blocks(page, "sh") for line in code.splitlines()]
    calls = [re.split(r"[|&>]", line.partition("multitrainer ")[2])[0] for line in lines]
    return [shlex.split(call) for call in calls if call.split(" ")[0].replace("-", "_") in arguments.SUBCOMMANDS]


def run(page):
    """Run the Python of a page; return its names, and pairs of what is shown and what was printed."""
    scope, outputs = {}, []
    for code, shown in blocks(page, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), scope)
        if shown:
            outputs.append((shown, printed.getvalue()))
    return scope, outputs


@pytest.fixture
def _random_weights(monkeypatch, tmp_path):
    """Work in an empty folder, and take random weights for published ones."""
    build = model_zoo.get_model

    def with_random_weights(name, pretrained=False, **kwargs):
        net = build(name, **kwargs)
        if pretrained:
            net.initialize(mx.init.Xavier())
        return net

    monkeypatch.setattr(model_zoo, "get_model", with_random_weights)
    monkeypatch.setattr(model_zoo.mobilenet, "ReLU6", model_zoo.mobilenet.ReLU6)  # a page replaces it
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_random_weights")
class TestExamples:
    @pytest.mark.parametrize(
        "page", [page for page in PAGES if blocks(page, "python") and page.name not in ELSEWHERE], ids=page_id
    )
    def test_a_page_runs_and_prints_what_it_shows(self, page):
        _, outputs = run(page)
        for shown, printed in outputs:
            assert printed == shown

    def test_the_page_of_the_command_loads_a_run(self, finished_run, images, capsys):
        shutil.copytree(str(finished_run), "runs/finetune")
        shutil.copy(str(images / "red" / "000.jpg"), "photo.jpg")
        scope, _ = run(COMMAND)
        assert scope["classes"] == ["blue", "green", "red"]
        assert abs(scope["probabilities"].sum() - 1) < 1e-5

    def test_the_frozen_layers_of_the_readme_do_not_move(self):
        scope, outputs = run(README)
        assert len(outputs) == 2
        net, step = scope["net"], scope["train_step"]
        assert scope["trainer"].learning_rates == {"features": 0.0, "output": 0.01}
        before = snapshot(net)
        step(mx.nd.random.normal(shape=(4, 3, 64, 64)), mx.nd.array([0, 1, 2, 3]))
        assert moved(before, snapshot(net)) == set(net.output.collect_params().keys())

    def test_the_guide_draws_and_logs(self):
        run(ROOT / "docs" / "guide.md")
        assert pathlib.Path("rates.png").exists()
        assert list(pathlib.Path("runs").glob("events*"))

    def test_groups_prints_what_the_page_shows(self, capsys):
        shown = [text for code, text in blocks(ROOT / "docs" / "command.md", "sh") if text]
        (call,) = [call for call in commands(COMMAND) if call[0] == "groups"]
        assert multitrainer_cli.main(call) == 0
        assert [capsys.readouterr().out] == shown
        assert pathlib.Path("groups.png").exists()


class TestCommands:
    def test_the_two_commands_of_the_readme_are_those_of_ci(self):
        (see, _), (test, _), *_ = blocks(README, "sh")
        assert see == (
            "python3 -m venv .venv && .venv/bin/pip install -e '.[finetune]' && .venv/bin/multitrainer finetune\n"
        )
        assert test == "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox\n"
        assert test in (ROOT / ".ci" / "run").read_text()

    @pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=page_id)
    def test_options_exist(self, page):
        for call in commands(page):
            multitrainer_cli.build_parser().parse_args(call)

    def test_every_option_is_on_the_page_of_the_command(self):
        (subcommands,) = [
            a for a in multitrainer_cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)
        ]
        parsers = subcommands.choices.values()
        options = {option for parser in parsers for action in parser._actions for option in action.option_strings}
        named = set(re.findall(r"`(--[a-z-]+)", COMMAND.read_text()))
        assert options - {"-h", "--help"} == named


class TestNames:
    def test_the_readme_is_short(self):
        assert len(README.read_text().split()) <= 1500

    @pytest.mark.parametrize(
        ("name", "most"), [("CONTRIBUTING.md", 60), ("src/multitrainer/README.md", 40)], ids=["contributing", "map"]
    )
    def test_other_readmes_are_short(self, name, most):
        assert len((ROOT / name).read_text().splitlines()) <= most

    @pytest.mark.parametrize("page", MARKDOWN, ids=page_id)
    def test_files_exist(self, page):
        text = page.read_text()
        for path in re.findall(r"`((?:tests|benchmarks|src|docs)/[\w/.]+)`", text):
            assert (ROOT / path).exists(), path
        for link in re.findall(r"\]\(([^)]+)\)", text):
            if not link.startswith(("https://", "#")):
                assert (page.parent / link.partition("#")[0]).exists(), link

    @pytest.mark.parametrize("page", MARKDOWN, ids=page_id)
    def test_headings_that_are_linked_to_exist(self, page):
        for path, heading in re.findall(r"\]\(([\w/.]*\.md)?#([\w-]+)\)", page.read_text()):
            text = ((page.parent / path) if path else page).read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}

    def test_every_page_is_in_the_sites_navigation(self):
        site = (ROOT / "mkdocs.yml").read_text()
        assert re.findall(r"^  - [^:]+: (\w+\.md)$", site, re.MULTILINE)
        assert all(f": {page.name}\n" in site for page in PAGES[1:])

    def test_every_public_name_is_in_the_reference(self):
        pattern = r"^::: multitrainer(?:_cli)?\.(?:\w+\.)*(\w+)$"
        documented = re.findall(pattern, (ROOT / "docs/reference.md").read_text(), re.M)
        names = [*multitrainer.__all__, *symbolic.__all__, *images.__all__, "DistributedMultiLRTrainer", "main"]
        assert sorted(documented) == sorted(names)


class TestTables:
    """The tables are those of benchmarks/results, whatever somebody wrote by hand."""

    @pytest.fixture
    def tables(self, monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("tables")

    @pytest.fixture
    def copy(self, tmp_path):
        copied = tmp_path / "performance.md"
        copied.write_text((ROOT / "docs" / "performance.md").read_text())
        return copied

    def test_have_the_figures_of_the_results(self, tables, capsys):
        assert set(PAGES) == set(tables.pages())
        assert tables.main(["--check"]) == 0, capsys.readouterr().out

    def test_every_result_has_its_table(self):
        measured = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
        shown = {name for page in PAGES for name in re.findall(r"<!-- benchmark: (\w+) -->", page.read_text())}
        assert measured - {"what_stock_does"} == shown - {"headline", "helps"}

    def test_a_figure_changed_by_hand_is_found_and_put_back(self, tables, copy, capsys):
        about = json.loads((ROOT / "benchmarks" / "results" / "distributed.json").read_text())
        figure = f"{about['rows'][0]['milliseconds']:.0f} ms"
        text = copy.read_text()
        assert figure in text
        copy.write_text(text.replace(figure, "1 ms"))
        assert tables.main(["--check", str(copy)]) == 1
        assert "-| `dist_sync`" in capsys.readouterr().out
        assert tables.main([str(copy)]) == 0
        assert copy.read_text() == text

    def test_the_headline_is_a_summary_of_the_other_tables(self, tables):
        performance = (ROOT / "docs" / "performance.md").read_text()
        rows = [line.split(" | ") for line in tables.headline().splitlines()[2:]]
        assert len(rows) == 5
        for what, stock, *_ in rows:
            if "saving" not in what:  # with fewer digits
                assert f" {stock} " in performance or f" {stock}, " in performance, what

    @pytest.mark.parametrize("marker", ["<!-- benchmark: distributed -->", "<!-- end -->"])
    def test_a_marker_without_a_counterpart_is_an_error(self, tables, copy, marker):
        copy.write_text(copy.read_text().replace(marker, "", 1))
        with pytest.raises(ValueError, match="do not pair up"):
            tables.main([str(copy)])

    def test_results_that_are_missing_are_named(self, tables, copy):
        copy.write_text("<!-- benchmark: nothing -->\n<!-- end -->\n")
        with pytest.raises(FileNotFoundError, match=r"run benchmarks/nothing.py --json .*nothing.json"):
            tables.main([str(copy)])
