"""The documentation names what there is, and what it tells a reader to type is taken by the programs."""

import functools
import importlib.util
import inspect
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from fedjax8 import codecs, compare, evaluate, plot, sweep, train, trees, words
from fedjax8.__main__ import COMMANDS
from fedjax8.components import SEAMS, build_component
from fedjax8.config import base_config, check_call, is_component, load_config, override, validate
from fedjax8.errors import UserError
from fedjax8.lookup import component_names

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
PAGES |= {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
HOWTO = [name for name in PAGES if name.startswith("docs/howto/") and name != "docs/howto/index.md"]
CONSTRUCTED = ("uplink", "downlink", "partition", "participation", "executor")
"""Components that need no data and no model to be built."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str, program: str) -> list[list[str]]:
    """Arguments of every call of `python -m fedjax8.NAME`, of `fedjax8 NAME`, or of the script for it, in the shell
    blocks of a page."""
    names = rf"python -m {re.escape(program)}|{program.replace('.', ' ')}"
    names += r"|scripts/train\.sh" if program == "fedjax8.train" else ""
    found = []
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").split("\n"):
            for call in re.split(r"&&|;|\bdo ", line):
                match = re.search(rf"(?:^|\s|/)(?:{names})(?![\w.])(.*)", call)
                if match:
                    found.append(shlex.split(match[1], comments=True))
    return found


def calls(program: str) -> list:
    return [
        pytest.param(arguments, id=f"{name.removeprefix('docs/')}-{i}")
        for name, text in PAGES.items()
        for i, arguments in enumerate(commands(text, program))
    ]


@functools.cache
def model_of(name: str):
    return SEAMS["model"].finder(name)


def check_component(config, field: str) -> None:
    """Finds a component's factory, and checks the settings given to it; builds it where that needs nothing else."""
    value, seam = config[field], SEAMS[field]
    if field in CONSTRUCTED:
        build_component(f"config.{field}", value, seam)
        return
    settings = dict(value)
    factory = seam.finder(settings.pop("name"))
    for name, inner in settings.items():
        if is_component(inner):
            settings[name] = build_component(f"config.{field}.{name}", inner, SEAMS.get(name, seam))
    supplied = {"local", "facts", "plan", "model", "data_dir", "num_classes", "vocabulary"} - set(settings)
    supplied |= {"learning_rate"} - set(settings) if field == "algorithm" else set()
    check_call(f"config.{field}", factory, settings, [name for name in supplied if takes(factory, name)])


def takes(factory, name: str) -> bool:
    return name in inspect.signature(factory).parameters


@pytest.mark.parametrize("arguments", calls("fedjax8.train"))
def test_every_command_line_of_train_is_one_that_it_takes(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    rest, pairs = train.split_overrides(arguments)
    file = None
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        assert argument.startswith("--") and name in flags.FLAGS, argument
        if equals:
            flags.FLAGS[name].parser.parse(value.split(",") if name == "seeds" else value)
        file = value if name == "config" else file
    config = load_config(None if file == "FILE.py" else file)
    override(config, pairs)
    validate(config)
    for field in [name for name in config if is_component(config[name])]:
        check_component(config, field)


@pytest.mark.parametrize("program", [compare, evaluate, plot, sweep], ids=["compare", "evaluate", "plot", "sweep"])
def test_every_flag_of_these_programs_that_is_shown_is_known(program):
    shown = [argument for text in PAGES.values() for call in commands(text, program.__name__) for argument in call]
    given = {argument.partition("=")[0] for argument in shown if argument.startswith("--")}
    assert given
    known = "".join(f"--{name} " for name in flags.FLAGS) if program is sweep else ""  # they go to every run
    assert [flag for flag in sorted(given) if flag not in program.__doc__ + known and "--config" not in flag] == []


@pytest.mark.parametrize(
    ("page", "package"),
    [("codecs", "fedjax8.codecs"), ("algorithms", "fedjax8.algorithms"), ("adapters", "fedjax8.adapters")],
)
def test_every_component_has_a_heading_in_its_page(page, package):
    headings = set(re.findall(r"^#+ `(\w+)`$", PAGES[f"docs/{page}.md"], re.MULTILINE))
    missing = set(component_names(package)) - headings
    assert missing == set(), f"docs/{page}.md needs a heading `name` with equation, guarantee, reference and command"


@pytest.mark.parametrize(
    ("page", "package"),
    [
        ("data", "fedjax8.data.sources"),
        ("data", "fedjax8.data.partitions"),
        ("participation", "fedjax8.participation"),
        ("time", "fedjax8.systems"),
        ("tasks", "fedjax8.tasks"),
        ("tasks", "fedjax8.tasks.metrics"),
        ("robustness", "fedjax8.algorithms.aggregators"),
        ("robustness", "fedjax8.attacks"),
        ("robustness", "fedjax8.dropouts"),
        ("command_line", "fedjax8.callbacks"),
    ],
)
def test_every_component_is_named_in_its_page(page, package):
    named = set(re.findall(r"`(\w+)`", PAGES[f"docs/{page}.md"]))
    assert set(component_names(package)) - named == set()


def test_the_table_of_codecs_has_the_sizes_of_real_messages():
    rows = re.findall(
        r"^\| \[`(\w+)`\]\([^)]*\) \|[^|]*\| ([\d,]+)(?: at most)? \|", PAGES["docs/codecs.md"], re.MULTILINE
    )
    tree = {"update": {"kernel": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}}
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = {}
    for name, _ in rows:
        codec = getattr(codecs, name)()
        message, _ = jax.eval_shape(codec.encode, key, jax.eval_shape(codec.init, tree), tree)
        found[name] = trees.num_bytes(message)
    around_others = {"error_feedback", "delta", "skip", "chain", "per_path"}
    assert set(found) == set(component_names("fedjax8.codecs")) - around_others - {"count_sketch"}
    with pytest.raises(UserError, match="no smaller than the 1000000 values"):  # as its row says
        codecs.count_sketch().init(tree)
    assert found == {name: int(size.replace(",", "")) for name, size in rows}


def test_config_files_that_are_shown_give_configs():
    shown = [block for text in PAGES.values() for block in blocks(text, "python") if "def get_config" in block]
    assert shown
    for block in shown:
        names: dict = {}
        exec(compile(block, "docs", "exec"), names)
        config = names["get_config"]()
        validate(config)
        assert config != base_config()
        for field in CONSTRUCTED:
            check_component(config, field)


@pytest.mark.parametrize("page", ["data", "privacy"])
def test_python_that_needs_no_training_runs_as_shown(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGES[f"docs/{page}.md"], "python"):
        exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out


def test_all_other_python_parses():
    programs = [compile(block, name, "exec") for name, text in PAGES.items() for block in blocks(text, "python")]
    assert all(program.co_code for program in programs) and programs


def test_files_that_pages_name_and_link_to_are_there():
    missing = []
    for name, text in PAGES.items():
        named = re.findall(
            r"(?<![\w/.])((?:configs|scripts|examples|tests|fedjax8|docs)/[\w/]+\.(?:py|sh|md|png))", text
        )
        links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
        folder = (ROOT / name).parent
        missing += [(name, file) for file in named if not (ROOT / file).exists()]
        missing += [(name, link) for link in links if not (folder / link).exists()]
    assert missing == []


def test_every_paper_on_a_page_is_a_link_to_it():
    papers = [
        (name, number, link)
        for name, text in PAGES.items()
        for number, link in re.findall(r"arXiv (\d{4}\.\d{4,5})(?:\]\(([^)]*)\))?", text)
    ]
    assert papers
    assert [paper for paper in papers if paper[2] != f"https://arxiv.org/abs/{paper[1]}"] == []


def test_pages_are_in_american_spelling():
    stems = ("learnt", "behaviour", "colour", "favour", "neighbour", "centre", "labelled", "labelling", "modelling")
    verbs = ("optimi", "normali", "generali", "quanti", "initiali", "personali")
    british = "|".join((*stems, *(f"{verb}s[ei]" for verb in verbs)))
    found = [(name, word) for name, text in PAGES.items() for word in re.findall(british, text, re.IGNORECASE)]
    assert found == []


def test_every_equation_is_closed_and_has_pairs_of_delimiters():
    for name, text in PAGES.items():
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        assert len(re.findall(r"^\$\$$", prose, re.MULTILINE)) % 2 == 0, name
        for equation in re.findall(r"\$\$(.*?)\$\$", prose, re.DOTALL) + re.findall(r"(?<!\$)\$([^$]+)\$", prose):
            bare = re.sub(r"\\[{}]", "", equation)
            for opening, closing in (
                (r"\{", r"\}"),
                (r"\\left(?![a-z])", r"\\right(?![a-z])"),
                (r"\\begin\{", r"\\end\{"),
            ):
                assert len(re.findall(opening, bare)) == len(re.findall(closing, bare)), (name, equation)


def entries(page: str) -> set[str]:
    """Pages that the tables of contents on a page lead to, as names in PAGES."""
    listed = re.findall(r"^(?:[^<\n]*<)?([\w/*]+)>?$", "\n".join(blocks(PAGES[page], r"\{toctree\}")), re.MULTILINE)
    folder = (ROOT / page).parent
    return {path.relative_to(ROOT).as_posix() for entry in listed for path in folder.glob(f"{entry}.md")}


def test_every_page_can_be_reached_from_the_first():
    reached = entries("docs/index.md")
    assert "docs/howto/index.md" in reached
    reached |= entries("docs/howto/index.md")
    wanted = {name for name in PAGES if name.startswith("docs/") and not name.startswith("docs/api/")}
    assert wanted - {"docs/index.md"} <= reached


@pytest.mark.parametrize("name", [*HOWTO, "docs/install.md", "docs/configs.md"])
def test_every_how_to_page_begins_with_a_command_that_there_is(name):
    found = re.findall(r"(?:^|\s)fedjax8 (\w+)", "\n".join(blocks(PAGES[name], "bash")))
    assert found and set(found) <= set(COMMANDS)
    assert PAGES[name].index("```bash") < 700


@pytest.mark.parametrize("page", ["multilabel", "own_data", "task_and_metric"])
def test_data_made_as_shown_are_taken_by_the_first_command(page, tmp_path, monkeypatch, capsys):
    if page == "own_data":
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    text = PAGES[f"docs/howto/{page}.md"]
    exec(compile(blocks(text, "python")[0], page, "exec"), {})
    assert train.main(["train", *commands(text, "fedjax8.train")[0], "--dry_run=fast"]) == 0
    assert "bytes" in capsys.readouterr().out and not (tmp_path / "runs").exists()


SEARCHED = {
    "howto/early_stopping": "early stopping, validation, best checkpoint, patience, plateau, hyperparameter",
    "howto/language_models": "perplexity, language model, next token, gpt, lstm, fine-tuning, lora",
    "howto/schedules": "learning-rate schedule, learning rate, warm-up, cosine, decay, server optimizer",
    "howto/personalization": "personalization, per-client, fairness, fedper, fedrep, fine_tune, baseline",
    "howto/multilabel": "multi-label, sigmoid, binary, macro_f1",
    "howto/task_and_metric": "regression, loss, metric, auc, calibration, mae",
    "howto/own_data": "csv, parquet, hugging face, leaf, tff, torchvision, numpy, npz, image_folder, dirichlet, "
    "non-iid, larger than memory",
    "howto/sweeps": "sweep, grid, seeds, latex, csv, pdf, figure, slurm, hyperparameter, tag",
    "howto/tensorboard": "tensorboard, weights & biases, wandb, writer, mlflow",
    "howto/link": "simulated time, slow network, straggler, bandwidth, lte, latency, how long",
    "time": "simulated time, slow network, straggler, bandwidth, mobile, deadline, latency, wait",
    "howto/watching": "progress, running, watch, checkpoint, stopping, memory",
    "howto/moving": "flower, fedjax, pfl-research, strategy, fraction_fit, local_epochs, compressor, num_supernodes",
    "loading": "checkpoint, load, resume, go on, evaluate, fine-tune, export, publish, safetensors",
    "command_line": "checkpoint, resume, early_stopping, schedule, tensorboard, seed, exit status, sigterm",
    "install": "cuda, gpu, tpu, windows, wsl, pip install, wheel, macos",
    "scaling": "slurm, tpu, gpu, several hosts, memory, larger than memory, million",
    "privacy": "differential privacy, epsilon, dp_sgd, dp_fedavg",
    "adapters": "quantization, lora, float8, fine-tuning, qat, ptq",
    "codecs": "quantization, compression, sparsif, error_feedback, fp8",
    "robustness": "byzantine, straggler, dropout, deadline, krum, attack",
    "participation": "sample, poisson, cohort, over",
    "data": "non-iid, skew, dirichlet, csv, natural client, validation, held-out",
    "tasks": "perplexity, macro_f1, auc, regression, multilabel, calibration",
    "faq": "nan, gpu, resume, reproduc, error bars, pytorch",
}
"""What users type into a search, by the page that must come up."""


@pytest.mark.parametrize("page", SEARCHED)
def test_pages_have_the_words_that_users_search_for(page):
    text = " ".join(PAGES[f"docs/{page}.md"].lower().split())
    assert [word for word in SEARCHED[page].split(", ") if word not in text] == []


def test_every_page_of_the_how_to_has_words_to_be_found_by():
    assert {f"docs/{page}.md" for page in SEARCHED} >= set(HOWTO)


def test_the_page_on_moving_has_every_word_of_other_frameworks_that_flags_answer():
    text = PAGES["docs/howto/moving.md"]
    fields = {
        word: ours
        for words_there, ours in re.findall(r"^\| (`[^|]*) \| `--config\.([\w.]+)`[^|]*\|$", text, re.MULTILINE)
        for word in re.findall(r"`(\w+)`", words_there)
    }
    assert fields == words.FIELDS
    rows = re.findall(r"^\| ([\w., ]+) \| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert {(word, ours.replace("`", "")) for _, word, ours in rows} == {
        pair for table in words.COMPONENTS.values() for pair in table.items()
    }


@pytest.mark.slow
def test_sphinx_builds_the_pages_without_a_warning(tmp_path):
    if any(importlib.util.find_spec(package) is None for package in ("sphinx", "myst_nb", "jupytext")):
        pytest.skip("needs pip install 'fedjax8[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(tmp_path)]
    own = {"FEDJAX8_DOCS_RUN": "0"}  # notebooks are run by tests/test_notebooks.py
    done = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "codecs.html").read_text()
    assert "FP8 messages" in page
    assert 'href="#module-fedjax8.codecs.topk"' in page and 'href="#fedjax8.codecs.topk.topk"' in page  # of the table
    assert 'href="../_modules/fedjax8/codecs/topk.html#topk"' in page
    search = (tmp_path / "searchindex.js").read_text()
    assert all(word in search for word in ("perplex", "tensorboard", "howto/early_stopping"))
    made = {page.stem for page in (tmp_path / "notebooks").glob("*.html")}
    assert made == {file.stem for file in (ROOT / "examples").glob("*.py") if "# %%" in file.read_text()}
    assert "use_style" in (tmp_path / "notebooks" / "first_steps.html").read_text()


def test_every_notebook_is_named_in_the_first_page_with_a_link_to_its_page():
    notebooks = {file.stem for file in (ROOT / "examples").glob("*.py") if "# %%" in file.read_text()}
    links = re.findall(r"\{doc\}`(\w+) <notebooks/(\w+)>`, `examples/(\w+)\.py`", PAGES["docs/index.md"])
    assert {name for name, *_ in links} == notebooks
    assert [link for link in links if len(set(link)) > 1] == []


def test_scripts_in_cells_are_written_as_notebooks_once(tmp_path):
    pytest.importorskip("jupytext")
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (source := tmp_path / "examples").mkdir()
    (source / "program.py").write_text("print(1)\n")
    (source / "cells.py").write_text("# %% [markdown]\n# # Title\n\n# %%\nprint(1)\n")
    (target := tmp_path / "notebooks").mkdir()
    (target / "gone.ipynb").write_text("{}")
    (made,) = module.write_notebooks(source, target)
    assert [path.name for path in target.iterdir()] == ["cells.ipynb"]
    cells = json.loads(made.read_text())["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == [
        ("markdown", "# Title"),
        ("code", "print(1)"),
    ]
    before = made.stat().st_mtime_ns
    assert module.write_notebooks(source, target) == [made] and made.stat().st_mtime_ns == before
