"""Lists of components, settings and configs, and the answers of `--list`, `--help=NAME` and `--version`."""

import inspect

import pytest
from absl import flags

from fedjax8 import listing, train, version
from fedjax8.config import FIELDS, base_config, override
from fedjax8.errors import UserError
from fedjax8.shipped import shipped_configs


@pytest.mark.parametrize("kind", listing.kinds())
def test_every_component_of_a_kind_is_listed_with_its_settings(kind):
    said = listing.kind_listing(kind)
    package = listing.kinds()[kind]
    names = listing.components_of(package)
    assert names
    lines = said.splitlines()
    for name in names:
        assert name in lines
        about = lines[lines.index(name) + 1].strip()
        assert len(about) > 10, name
        takes = inspect.signature(listing.factory(package, name)).parameters
        for setting, parameter in takes.items():
            if setting not in listing.SUPPLIED and parameter.default is not parameter.empty:
                assert f"{setting}={parameter.default!r}"[:40] in " ".join(said.split()), (name, setting)


def test_settings_shown_for_a_component_can_be_set():
    said = listing.listing("fp8")
    shown = [line.strip() for line in said.splitlines() if line.startswith("  --config.uplink.")]
    assert "--config.uplink.rounding='stochastic'" in shown
    config = base_config()
    override(config, [tuple(line.removeprefix("--config.").partition("=")[::2]) for line in shown])
    assert config.uplink.rounding == "stochastic" and len(config.uplink) == 1 + len(shown)


def test_a_field_stands_for_the_kind_of_its_components_and_a_name_may_have_several():
    assert listing.listing("uplink") == listing.listing("codecs") == listing.listing("config.downlink")
    assert listing.listing("algorithm.aggregate") == listing.listing("aggregators")
    said = listing.listing("uniform")
    assert "--config.uplink.name=uniform" in said and "--config.participation.name=uniform" in said


def test_overview_fields_and_configs_are_whole():
    assert all(kind in listing.listing(None) for kind in listing.kinds())
    assert all(f"config.{name}" in listing.listing("fields") for name in FIELDS)
    assert all(name in listing.listing("configs") for name in shipped_configs())
    assert "--config=fp8:cifar10,lenet,dirichlet,uq" in listing.listing("fp8")
    assert "optax" in listing.listing("optimizers")
    with pytest.raises(UserError, match=r"no kind or component 'codex'.*did you mean 'codecs'"):
        listing.listing("codex")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--version", version.__version__),
        ("--list=attacks", "sign_flip"),
        ("--help=uniform", "--config.uplink.bits=8"),
        ("-help=uniform", "--config.uplink.bits=8"),
    ],
)
def test_train_answers_and_runs_nothing(argument, said, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["train", argument])
    assert stop.value.code == 0
    assert said in capsys.readouterr().out
    flags.FLAGS["list"].unparse(), flags.FLAGS["version"].unparse()


def test_an_unknown_flag_of_train_is_one_line():
    with pytest.raises(UserError, match=r"^no flag --rounds; did you mean --config\.rounds=3\?$"):
        train.main(["train", "--rounds=3"])


def test_what_the_program_supplies_is_no_setting_and_lists_are_set_by_place():
    shown = listing.listing("early_stopping")
    assert "--config.callbacks.0.patience=5" in shown
    assert "measures=" not in shown and "part=" not in shown
    assert "--config.task.metrics.0.k=5" in listing.listing("top_k")
