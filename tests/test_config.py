"""Settings: overrides, checks, and objects built from them. Every mistake is one sentence that helps."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.build import SEAMS, build, build_component, build_optimizer
from fedjax8.config import (
    base_config,
    component,
    from_plain,
    in_float32,
    load_config,
    override,
    parse_value,
    plain,
    validate,
)
from fedjax8.errors import UserError


def configured(*assignments):
    config = base_config()
    override(config, assignments)
    return config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.1", 0.1),
        ("1e-3", 1e-3),
        ("(5, 5)", (5, 5)),
        ("true", True),
        ("none", None),
        ("e4m3fn", "e4m3fn"),
        ("a b", "a b"),
    ],
)
def test_flag_texts_are_literals_or_themselves(text, value):
    assert parse_value(text) == value


def test_a_setting_of_a_component_can_be_given_though_the_config_does_not_name_it():
    config = configured(("uplink.format", "e5m2"))
    assert config.uplink.to_dict() == {"name": "fp8", "format": "e5m2"}


def test_naming_another_component_drops_the_settings_of_the_old_one_whatever_the_order():
    config = configured(("partition.shards_per_client", "3"), ("partition.name", "shards"))
    assert config.partition.to_dict() == {"name": "shards", "shards_per_client": 3}


def test_a_component_called_none_is_not_the_value_none():
    assert configured(("uplink.name", "none")).uplink.name == "none"


def test_an_integer_is_taken_for_a_float():
    assert configured(("client.optimizer.learning_rate", "1")).client.optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("rond", "3", "no field config.rond.*did you mean 'rounds'"),
        ("clint.epochs", "3", "no field config.clint.*did you mean 'client'"),
        ("client.epoch", "3", "no field config.client.epoch.*did you mean 'epochs'"),
        ("rounds", "many", "config.rounds must be of type int, like 60"),
        ("rounds", "1.5", "config.rounds must be of type int, like 60"),
        ("seed.x", "1", "config.seed is 0"),
        ("client.optimizer.learning_rate", "none", "must be of type float"),
        ("uplink", "fp8", "--config.uplink.name=fp8"),
        ("client", "3", "section"),
    ],
)
def test_a_mistyped_override_says_what_is_allowed(path, text, message):
    with pytest.raises(UserError, match=message):
        configured((path, text))


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("rounds", "0", "config.rounds is 0, but must be at least 1"),
        ("client.batch_size", "0", "config.client.batch_size is 0"),
        ("cohort_size", "51", "between 1 and the number of clients, 50"),
        ("num_clients", "5000", "5000"),
        ("num_clients", "0", "names no clients"),
        ("uplink.name", "fp9", "no 'fp9' in codecs: allowed are .*chain.*did you mean 'fp8'"),
        ("uplink.formt", "e5m2", "config.uplink: fp8 has no setting 'formt'.*did you mean 'format'"),
        ("uplink.format", "e4m3", "config.uplink.*e4m3"),
        ("uplink.min_ndim", "x", "config.uplink.min_ndim must be int"),
        ("partition.concentration", "-1.0", "config.partition: concentration is -1.0"),
        ("algorithm.name", "fedaverage", "did you mean 'fedavg'"),
        ("algorithm.payload", "everything", "config.algorithm: payload must be one of"),
        ("algorithm.local", "3", "config.algorithm: fedavg has no setting 'local'"),
        ("client.optimizer.name", "sdg", "no optimizer 'sdg' in optax; did you mean 'sgd'"),
        ("client.optimizer.learning_rat", "1", "did you mean 'learning_rate'"),
        ("augment", "turn", "config.augment is 'turn', but must be one of crop, flip"),
        ("feed", "streem", "config.feed is 'streem', but must be one of .*did you mean 'streamed'"),
        ("on_nan", "ignore", "config.on_nan is 'ignore', but must be one of drop, error"),
        ("client.weight_decay", "-0.1", "config.client.weight_decay is -0.1, but must be at least 0"),
        ("data.name", "imagenet", "no 'imagenet' in sources"),
        ("data.name", "nowhere.module:factory", "cannot load 'nowhere.module:factory'"),
        ("model.name", "lenet5", "config.model does not fit rows of shape"),
        ("model.hidden", "(0.5,)", "config.model.hidden must be"),
        ("executor.name", "chunked", None),
        ("algorithm.server_optimizer.name", "fedyogi", "fedavg has no setting 'server_optimizer'"),
        ("uplink.name", "fedjax8.models.mlp:mlp", "gives a Model, but a Codec is needed"),
        ("client.optimizer.name", "constant_schedule", "constant_schedule needs value"),
        ("uplink.name", ":x", "cannot load ':x'"),
        ("augment", "flip", None),
        ("seed", str(2**32), "must be at most"),
    ],
)
def test_a_config_that_cannot_run_is_one_sentence(path, text, message):
    config = configured((path, text))
    if message is None:
        assert build(config).simulation.data.num_clients == 50
        return
    with pytest.raises(UserError, match=message) as caught:
        build(config)
    assert "\n" not in str(caught.value)


def test_where_several_are_wanted_one_text_is_answered_by_how_to_write_them():
    message = r"must be Sequence\[str\]; got 'age, dose'; try \"--config.data.features=\('age', 'dose'\)\""
    with pytest.raises(UserError, match=message):
        build(configured(("data.name", "csv"), ("data.features", "age, dose")))


def test_missing_data_names_the_places_looked_in_and_how_to_get_it(tmp_path):
    config = configured(("data.name", "mnist"))
    with pytest.raises(UserError, match=r"fedjax8\.fetch mnist"):
        build(config, str(tmp_path))


def test_unknown_and_missing_fields_of_a_config_file_are_named():
    config = base_config()
    config.cohort = 3
    with pytest.raises(UserError, match=r"no field config\.cohort.*cohort_size"):
        validate(config)
    config = base_config()
    del config.rounds
    with pytest.raises(UserError, match=r"config\.rounds is missing"):
        validate(config)


def test_a_config_file_can_take_an_argument(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fedjax8.config import base_config\n"
        "def get_config(seed='1'):\n"
        "    config = base_config()\n"
        "    config.seed = int(seed)\n"
        "    return config\n"
    )
    assert load_config(str(file)).seed == 1
    assert load_config(f"{file}:7").seed == 7
    with pytest.raises(UserError, match="ValueError"):
        load_config(f"{file}:seven")


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1\n", "defines no get_config"), ("def get_config(:\n", "SyntaxError"), (None, "no file")],
)
def test_a_broken_config_file_is_a_user_error(tmp_path, text, message):
    file = tmp_path / "broken.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(file))


def test_nested_components_are_built():
    codec = build_component(
        "config.uplink",
        component("per_path", rules={"*bias": component("none")}, default=component("fp8", min_ndim=0)),
        SEAMS["uplink"],
    )
    assert codec.unbiased
    chained = component("chain", codecs=[component("none"), component("fp8", rounding="nearest")])
    assert not build_component("config.uplink", chained, SEAMS["uplink"]).unbiased


def test_a_component_of_ones_own_is_found_by_module_and_name():
    config = configured(("uplink.name", "fedjax8.codecs.fp8:fp8"), ("uplink.format", "e5m2"))
    assert build_component("config.uplink", config.uplink, SEAMS["uplink"]).unbiased


def test_a_config_may_ask_for_more_clients_than_rows():
    config = configured(("num_clients", "100000"), ("partition.name", "windows"), ("partition.largest", "20"))
    clients = build(config).simulation.data
    assert clients.num_clients == 100_000 and clients.sizes.max() == 20


def test_the_split_depends_on_the_seed_alone():
    first, again, other = (build(configured(("seed", s))).simulation.data.order for s in ("0", "0", "1"))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_seeds_share_a_split_that_has_a_seed_of_its_own():
    def made(seed, split):
        pairs = [("seed", seed), ("split_seed", split), ("validation", "0.2")]
        experiment = build(configured(*pairs))
        assert experiment.simulation.seed == int(seed)
        return experiment.simulation.data.order, experiment.validation["x"]

    fixed, other, run_seed = made("3", "7"), made("4", "7"), made("7", "-1")
    for one in (other, run_seed):  # the split of --config.seed=7 too: it is the seed of today's splits
        np.testing.assert_array_equal(fixed[0], one[0])
        np.testing.assert_array_equal(fixed[1], one[1])
    assert not np.array_equal(fixed[0], made("3", "-1")[0])


def test_the_plain_config_is_json_ready():
    import json

    assert json.loads(json.dumps(plain(base_config())))["model"] == {"name": "mlp", "hidden": [128]}


def test_a_component_inside_a_component_is_made_by_naming_it():
    config = configured(
        ("algorithm.name", "fedopt"),
        ("algorithm.server_optimizer.name", "fedyogi"),
        ("algorithm.server_optimizer.tau", "0.01"),
    )
    assert config.algorithm.server_optimizer.to_dict() == {"name": "fedyogi", "tau": 0.01}
    assert build(config).simulation.data.num_clients == 50


def test_a_component_in_a_list_is_reached_by_its_place():
    config = base_config()
    config.uplink = component("chain", codecs=[component("none"), component("fp8")])
    override(config, [("uplink.codecs.1.format", "e5m2")])
    assert config.uplink.codecs[1].format == "e5m2"


def test_a_string_where_a_component_belongs_is_told_so():
    config = configured(("algorithm.name", "fedopt"), ("algorithm.server_optimizer", "fedyogi"))
    with pytest.raises(UserError, match=r"--config\.algorithm\.server_optimizer\.name=fedyogi"):
        build(config)
    config = configured(("uplink.name", "chain"), ("uplink.codecs", "('none', 'fp8')"))
    with pytest.raises(UserError, match=r"config\.uplink: a codec is needed"):
        build(config)


def test_scaffold_takes_the_clients_step_size_and_refuses_other_optimizers():
    assert build(configured(("algorithm.name", "scaffold"))).simulation.data.num_clients == 50
    for path, text in (("client.optimizer.name", "adam"), ("client.weight_decay", "0.1")):
        config = configured(("algorithm.name", "scaffold"), (path, text), ("client.optimizer.learning_rate", "0.1"))
        with pytest.raises(UserError, match="needs plain SGD"):
            build(config)


def test_objects_may_stand_in_a_config_of_a_run_without_files():
    import optax

    config = base_config()
    config.algorithm = component("fedopt", server_optimizer=optax.sgd(1.0))
    assert build(config).simulation.data.num_clients == 50
    with pytest.raises(UserError, match=r"component\(name"):
        plain(config)


def test_random_changes_of_rows_without_pixels_are_refused():
    config = configured(("data.name", "synthetic"), ("data.shape", "(20,)"), ("augment", "flip"))
    with pytest.raises(UserError, match="does not fit rows of shape"):
        build(config)


FRONTS = pathlib.Path(__file__).parents[1] / "configs"


def test_a_bare_name_is_a_config_of_the_package_and_a_path_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "from fedjax8.config import base_config\ndef get_config(argument='7'):\n    config = base_config()\n"
    for name in ("digits_fp8", "mine"):
        pathlib.Path(f"{name}.py").write_text(f"{own}    config.rounds = int(argument)\n    return config\n")
    assert load_config("digits_fp8").rounds == load_config("fedjax8://digits_fp8").rounds == 60
    assert load_config("digits_fp8.py").rounds == load_config("./digits_fp8.py").rounds == 7
    assert load_config("mine.py:9").rounds == 9
    assert load_config("fp8:cifar10,lenet,iid,uq").data.name == "cifar10"
    with pytest.raises(UserError, match=r"for the file mine.py here give --config=./mine.py"):
        load_config("mine")
    with pytest.raises(UserError, match=r"allowed are .*fp8.* did you mean 'fashion_mnist_fp8'"):
        load_config("fedjax8://fashion_mnist")
    with pytest.raises(UserError, match=r"no file 'configs/fp8.py'.*did you mean --config=fp8:cifar10,lenet,iid,uq"):
        load_config("configs/fp8.py:cifar10,lenet,iid,uq")


def test_every_config_of_the_package_has_its_front():
    assert [f.name for f in SHIPPED] == sorted(f.name for f in FRONTS.glob("*.py"))


@pytest.mark.parametrize(
    "file", sorted((pathlib.Path(__file__).parents[1] / "fedjax8" / "configs").glob("[!_]*.py")), ids=lambda f: f.stem
)
def test_every_shipped_config_is_valid_and_says_how_to_run_it(file):
    config = load_config(str(file))
    validate(config)
    assert f"--config={file.stem}" in file.read_text()
    by_name, by_front = load_config(file.stem), load_config(str(FRONTS / file.name))
    assert plain(by_name) == plain(by_front) == plain(load_config(f"fedjax8://{file.stem}")) == plain(config)
    quantized = config.adapter.name == "qat" and config.uplink.name == config.downlink.name == "fp8"
    plain_run = config.adapter.name != "qat" and config.uplink.name == config.downlink.name == "none"
    assert quantized if file.stem.endswith("fp8") else plain_run


def test_fp8_and_float32_configs_of_a_data_set_differ_in_nothing_else():
    folder = pathlib.Path(__file__).parents[1] / "fedjax8" / "configs"
    for name in ("digits", "fashion_mnist"):
        fp8, float32 = (plain(load_config(str(folder / f"{name}_{kind}.py"))) for kind in ("fp8", "float32"))
        assert {key for key in fp8 if fp8[key] != float32[key]} == {"adapter", "uplink", "downlink"}


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "lars"])
def test_clips_biases_and_norms_do_not_decay(optimizer):
    made = build_optimizer(component(optimizer, learning_rate=0.1, weight_decay=0.5))
    params = {"kernel": jnp.ones((2, 2)), "kernel_clip": jnp.float32(1), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    updates, _ = made.update(jax.tree.map(jnp.zeros_like, params), made.init(params), params)
    moved = {name for name, update in updates.items() if np.any(np.asarray(update) != 0)}
    assert moved == {"kernel"}


def mistakes_of(*assignments):
    """What a run with these flags would be told, each mistake by itself."""
    from fedjax8.errors import Mistakes

    config = base_config()
    with pytest.raises(UserError) as caught, Mistakes() as mistakes:
        mistakes.attempt(override, config, assignments)
        mistakes.attempt(build, config)
    return caught.value.mistakes


def test_all_mistakes_of_a_config_are_told_together_each_once():
    found = mistakes_of(
        ("rond", "3"),
        ("rounds", "many"),
        ("eval_every", "0"),
        ("cohort_size", "51"),
        ("partition.concentration", "-1.0"),
        ("model.hiden", "(8,)"),
        ("model.hidden", "(0.5,)"),
        ("client.optimizer.learning_rate", "none"),
        ("uplink.name", "fp9"),
        ("downlink.format", "e4m3"),
        ("algorithm.payload", "everything"),
        ("augment", "('turn', 'flop')"),
    )
    expected = {
        "no field config.rond": "did you mean 'rounds'",
        "config.rounds must be of type int": "got 'many'",
        "config.eval_every is 0": "at least 1",
        "config.cohort_size is 51": "the number of clients, 50",
        "config.partition": "concentration is -1.0",
        "config.model: mlp has no setting 'hiden'": "did you mean 'hidden'",
        "config.model.hidden must be": "(0.5,)",
        "config.client.optimizer.learning_rate must be of type float": "got None",
        "config.uplink.name: no 'fp9' in codecs": "did you mean 'fp8'",
        "config.downlink": "e4m3",
        "config.augment is 'turn'": "crop, flip",
        "config.augment is 'flop'": "did you mean 'flip'",
    }
    for start, words in expected.items():
        (mistake,) = [m for m in found if m.startswith(start) and words in m]
        assert "\n" not in mistake
    # The algorithm is built over the model, which could not be, so what it would refuse is not known yet.
    assert len(found) == len(expected)


def test_what_is_built_from_a_mistake_is_not_a_second_mistake():
    """Without rounds there is no accounting, without a model no algorithm, without data no split: one thing each."""
    assert len(mistakes_of(("rounds", "0"), ("privacy.name", "dp_sgd"), ("privacy.noise_multiplier", "1.0"))) == 1
    assert len(mistakes_of(("model.name", "mlpp"))) == 1
    assert len(mistakes_of(("data.name", "digit"), ("partition.name", "by_key"), ("num_clients", "0"))) == 1
    # A value of the wrong type does not leave the old one to be judged: ten of five clients would be too many.
    assert len(mistakes_of(("cohort_size", "few"), ("num_clients", "5"))) == 1
    assert len(mistakes_of(("client.optimizer.learning_rate", "x"), ("algorithm.name", "scaffold"))) == 1


def test_settings_that_contradict_each_other_are_told_beside_others():
    found = mistakes_of(
        ("algorithm.name", "scaffold"),
        ("client.optimizer.name", "adam"),
        ("client.optimizer.learning_rate", "0.1"),
        ("num_clients", "5"),
    )
    assert len(found) == 2
    assert "config.cohort_size is 10, but must be between 1 and the number of clients, 5" in found[0]
    assert "needs plain SGD" in found[1]


def test_components_inside_components_are_checked_all():
    codecs = [component("none", x=1), component("fp9"), component("fp8", format="e4m3")]
    adapters = [component("qat"), component("lora", rnk=4)]
    config = base_config()
    config.uplink, config.adapter = component("chain", codecs=codecs), component("chain", adapters=adapters)
    with pytest.raises(UserError) as caught:
        build(config)
    places = [mistake.split(": ")[0] for mistake in caught.value.mistakes]
    assert sorted(places) == sorted(
        ["config.uplink.codecs.0", "config.uplink.codecs.1.name", "config.uplink.codecs.2", "config.adapter.adapters.1"]
    )


def test_choices_are_those_that_the_program_knows():
    from fedjax8.config import CHOICES
    from fedjax8.engine.feeding import MODES

    assert set(CHOICES["config.feed"]) == set(MODES)


@pytest.mark.parametrize("text", ["sys.exit(0)", "exit()", "def get_config():\n    raise SystemExit"])
def test_a_config_file_that_exits_is_a_user_error(tmp_path, text):
    file = tmp_path / "config.py"
    file.write_text(f"import sys\n{text}\n")
    with pytest.raises(UserError, match=r"config\.py failed with SystemExit"):
        load_config(str(file))


def test_a_config_file_is_found_in_the_home_directory(tmp_path, monkeypatch):
    (tmp_path / "config.py").write_text(
        "from fedjax8.config import base_config\ndef get_config(name='x'):\n    config = base_config()\n"
        "    config.uplink.name = name\n    return config\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config("~/config.py:mine").uplink.name == "mine"
    with pytest.raises(UserError, match="no home directory '~nobody-of-that-name'; give the whole path"):
        load_config("~nobody-of-that-name/config.py")


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("rounds", str(10**30), "config.rounds is 1000000000000000000000000000000, but must be at most 2147483647"),
        ("client.batch_size", str(10**12), "config.client.batch_size is 1000000000000, but must be at most 1073741824"),
        ("client.epochs", str(10**12), "config.client.epochs is 1000000000000, but must be at most"),
        ("client.steps", str(2**31), "config.client.steps is 2147483648, but must be at most 2147483647"),
        ("cohort_size", str(10**12), "config.cohort_size is 1000000000000, but must be at most"),
        ("num_clients", str(10**12), "config.num_clients is 1000000000000, but must be at most"),
        ("client.weight_decay", "inf", "config.client.weight_decay is inf, but must be at most 3.403e\\+38"),
        ("client.optimizer.learning_rate", "inf", "learning_rate is inf, but must be at most"),
        ("client.optimizer.learning_rate", "1e300", "learning_rate is 1e\\+300, but must be at most"),
        ("client.optimizer.learning_rate", "-1", "learning_rate is -1.0, but must be at least 0"),
        ("client.optimizer.learning_rate", "nan", "must be of type float, like 0.1; got 'nan'"),
    ],
)
def test_numbers_beyond_what_can_be_counted_are_refused(path, text, message):
    with pytest.raises(UserError, match=message):
        validate(configured((path, text)))


def test_a_learning_rate_in_a_file_that_is_not_a_number_is_refused():
    config = base_config()
    config.client.optimizer.learning_rate = float("nan")
    with pytest.raises(UserError, match="learning_rate is nan, but must be at least 0"):
        validate(config)


def test_epochs_that_make_too_many_steps_are_refused():
    """Some client has more than 10 rows, so that 2^31 - 1 epochs of batches of 10 are too many."""
    with pytest.raises(UserError, match=r"2147483647 epochs of up to .* steps a round; at most 2147483647"):
        build(configured(("client.epochs", str(2**31 - 1))))


# A config in a run's own config.json.


def through_json(config, folder):
    """What `load_config` reads of what a run with that config writes."""
    from fedjax8.running.workdir import write_json

    write_json(folder / "config.json", {"config": plain(config), "versions": {"python": "3"}})
    return load_config(str(folder / "config.json"))


SHIPPED = sorted((pathlib.Path(__file__).parents[1] / "fedjax8" / "configs").glob("[!_]*.py"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.stem)
def test_every_shipped_config_survives_json(file, tmp_path):
    config = load_config(str(file))
    again = through_json(config, tmp_path)
    validate(again)
    assert plain(again) == plain(config)
    for name in config:
        assert type(again[name]) is type(config[name]) or {type(again[name]), type(config[name])} == {tuple, list}


def test_what_json_cannot_say_comes_back_from_a_runs_config(tmp_path):
    """Tuples, components in lists, in mappings and in components, the order of rules, infinity, None."""
    config = base_config()
    rules = {"*z": component("none"), "*a": component("topk", share=0.5), "*": component("fp8", clip="max")}
    config.uplink = component("per_path", rules=rules, default=component("delta", codec=component("fp8")))
    config.adapter = component("chain", adapters=(component("qat", gradients=None), component("lora", rank=4)))
    config.model = component("mlp", hidden=(8, 4))
    config.algorithm = component("fedavg", aggregate=component("norm_bound", bound=float("inf")))
    config.augment = ("crop",)
    again = through_json(config, tmp_path)
    assert again == config
    assert list(again.uplink.rules) == ["*z", "*a", "*"]
    assert again.uplink.rules["*a"].name == "topk" and again.uplink.default.codec.name == "fp8"
    assert again.model.hidden == (8, 4) and again.augment == ("crop",)
    assert again.algorithm.aggregate.bound == float("inf") and again.adapter.adapters[0].gradients is None
    override(again, [("model.hidden", "(3,)"), ("client.optimizer.learning_rate", "1"), ("rounds", "7")])
    assert again.model.hidden == (3,) and again.client.optimizer.learning_rate == 1.0 and again.rounds == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*: No such file"),
        ('{"config": {"seed": 1', "is damaged: no JSON object"),
        ("[1, 2]", "is damaged: no JSON object"),
        ('{"rounds_done": 3}', r"holds no config; give the config\.json"),
        ('{"config": 3, "seed": 1}', r"holds no config"),
    ],
)
def test_a_config_json_that_is_none_is_refused(text, message, tmp_path):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=f"--config: .*{message}"):
        load_config(str(file))


def test_a_config_json_of_another_version_says_which_fields_it_lacks_or_has_too_many(tmp_path):
    import json

    found = plain(base_config())
    del found["on_nan"], found["client"]["epochs"]
    found |= {"colour": 3, "uplink": {}, "rounds": "many", "client": found["client"] | {"epoch": 1}}
    (tmp_path / "config.json").write_text(json.dumps({"config": found}))
    with pytest.warns(UserWarning, match=r"lacks client.epochs, on_nan, as one of another version; defaults are taken"):
        config = load_config(str(tmp_path / "config.json"))
    assert (config.on_nan, config.client.epochs) == ("drop", 2)
    with pytest.raises(UserError) as error:
        validate(config)
    for words in ("no field config.colour", "config.uplink must be a component", "config.rounds must be of type int"):
        assert sum(words in mistake for mistake in error.value.mistakes) == 1
    assert "no field config.client.epoch: allowed are" in str(error.value)


def test_a_run_from_the_config_json_of_another_gives_the_same_numbers(tmp_path):
    sizes = ("model.hidden", "(4,)"), ("num_clients", "4"), ("cohort_size", "2"), ("client.epochs", "1")
    config = in_float32(configured(*sizes, ("executor.name", "loop")))

    def numbers(experiment):
        run = experiment.simulation
        state, line = run.run_round(run.init())
        return line, jax.tree.map(lambda x: np.asarray(x).tolist(), run.variables(state).params)

    first = numbers(build(config))
    assert numbers(build(through_json(config, tmp_path))) == first
    assert first[0]["train_loss"] > 0 and first[0]["uplink_bytes"] == 2 * 4 * (64 * 4 + 4 * 10 + 4 + 10)


def test_patterns_of_digits_stay_texts_where_a_config_is_read_again():
    """Layers of nnx sequences are called 0, 1, ...; rounds of a schedule are whole numbers."""
    config = base_config()
    config.adapter = component("qat", rules={"0": "float32", "1": "e5m2"})
    schedule = component("piecewise_constant_schedule", init_value=0.1, boundaries_and_scales={10: 0.5})
    config.client.optimizer = component("sgd", learning_rate=schedule)
    again = from_plain(json.loads(json.dumps(plain(config))))
    assert again.adapter.rules == {"0": "float32", "1": "e5m2"}
    assert again.client.optimizer.learning_rate.boundaries_and_scales == {10: 0.5}
