"""What naming a component does to the settings that stand there."""

from fedjax8.config import base_config, component, override


def test_naming_the_component_that_is_there_keeps_its_settings_and_another_drops_them():
    config = base_config()
    config.uplink = component("topk", share=0.3)
    override(config, [("uplink.name", "topk")])
    assert (config.uplink.name, config.uplink.share) == ("topk", 0.3)
    override(config, [("uplink.name", "topk"), ("uplink.count", "7")])
    assert (config.uplink.share, config.uplink.count) == (0.3, 7)
    override(config, [("uplink.name", "fp8")])
    assert dict(config.uplink) == {"name": "fp8"}
