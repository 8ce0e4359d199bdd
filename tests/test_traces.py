"""The checks for edited weights, each on a network with the edit and on one without.

tests/test_manipulate.py holds them to what manipulate.py writes.
"""

import pytest
import torch
from planted import audit_of
from torch import nn

from defences import traces


@pytest.fixture
def images():
    return torch.rand(40, 1, 12, 12)  # more than one chunk


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5)]
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    model.gradcam_layer = "1"
    return model


def places(model, images, plain=None):
    """{check: where} of all findings."""
    return {finding.check: finding.where for finding in traces.inspect(model, images, plain)}


def test_an_untouched_network_shows_nothing(network, images):
    assert places(network, images, network.state_dict()) == {}


def test_a_kernel_of_zeros_with_a_bias_is_found(network, images):
    network[0].weight[2] = 0
    network[0].bias[2] = 3
    findings = places(network, images)
    assert findings["constant kernel"] == "0"
    assert "constant map" in findings


def test_a_kernel_of_zeros_without_a_bias_is_a_dead_channel_and_no_trace(network, images):
    network[0].weight[2] = 0
    network[0].bias[2] = 0
    assert not {"constant kernel", "constant map"} & places(network, images).keys()


def test_columns_that_all_units_weigh_the_same_are_found(network, images):
    network[3].weight[:, 7:9] = 0.25
    findings = traces.inspect(network, images)
    assert [finding.check for finding in findings] == ["constant columns"]
    assert findings[0].text == "2 of 400 inputs, from 7 on, each of weight 0.25"


def test_a_channel_that_makes_nearly_all_of_gradcam_is_found(network, images):
    network[0].weight[1] = network[0].weight[1].abs() * 1000
    assert "one channel" in places(network, images)


def test_a_dead_channel_that_gradcam_would_count_much_is_found(network, images):
    network[0].bias[1] = -1000
    network[3].weight[:, 100:200] *= 1e6
    assert places(network, images)["dead and heavy"] == traces.GRADCAM_LAYER


def test_weights_that_the_plain_network_does_not_have_are_found(network, images):
    plain = network.state_dict()
    del plain["3.bias"]
    plain["0.weight"] = plain["0.weight"][:3]
    (finding,) = traces.inspect(network, images, plain)
    assert (finding.check, finding.where) == ("unknown parts", "0")
    assert finding.text == "2, of 4: 0.weight, 3.bias"


def test_the_channels_are_looked_at_in_chunks(network, images, monkeypatch):
    whole = traces.channel_statistics(network, images)
    monkeypatch.setattr(traces, "CHUNK_CPU", 7)
    for part, expected in zip(
        vars(traces.channel_statistics(network, images)).values(), vars(whole).values()
    ):
        torch.testing.assert_close(part, expected)


def test_a_table_names_every_check_and_five_findings_of_each():
    findings = [traces.Finding("constant map", "layer", f"number {k}") for k in range(7)]
    lines = traces.table(findings)
    assert all(any(line.startswith(check) for line in lines) for check in traces.CHECKS)
    assert sum("layer: number" in line for line in lines) == 5
    assert any("and 2 more" in line for line in lines)


def test_no_finding_is_no_statement_about_the_training():
    assert traces.table([])[-1].startswith("No trace of an edit. That says nothing about")


def test_inspect_needs_no_gradients(disguised):
    with torch.no_grad():
        assert traces.run(audit_of(disguised, "inspect")).backdoored is False
