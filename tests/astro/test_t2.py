"""The classifier around t2: parameter counts, redshift layouts, independence of the batch, explanations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from astro.transients.explain import activation_maps, occlusion
from astro.transients.lightcurve import Floats, LightCurve
from astro.transients.t2 import CHANNELS, Inputs, TransientNetwork, redshift_dropout
from shared.errors import UsageError
from shared.nets.backbones.t2 import t2


def inputs(n: int = 5, bands: int = 6, length: int = 100) -> Inputs:
    g = torch.Generator().manual_seed(3)
    z = torch.rand(n, 2, generator=g)
    z[0] = torch.nan
    return Inputs(
        torch.randn(n, length, bands, generator=g) * 100,
        torch.rand(n, length, bands, generator=g) * 10,
        torch.rand(n, bands, generator=g) > 0.3,
        torch.rand(n, generator=g) * 200,
        z,
    )


def network(**over: Any) -> TransientNetwork:
    torch.manual_seed(0)
    model = TransientNetwork(14, 6, **over).eval()
    model.fit_scaling(inputs(50))
    return model


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("redshift", ["none", "tokens"])
@pytest.mark.parametrize("legacy", [False, True])
def test_the_published_network_has_13390_parameters(redshift: Any, legacy: bool) -> None:
    assert size(network(redshift=redshift, legacy=legacy)) == 13_390


def test_other_published_sizes() -> None:
    assert size(TransientNetwork(14, 2)) == 13_262
    assert size(network(backbone=t2(layers=2))) == 13_390 + 12_704
    # Option "M" puts z and its error beside the six bands of every step.
    assert size(network(redshift="channels", legacy=True)) == 13_390 + 2 * 32


def test_scaling_is_median_and_interquartile_range() -> None:
    data, model = inputs(50), network()
    flat = data.mean.reshape(-1, 6).numpy()
    low, middle, high = np.quantile(flat, [0.25, 0.5, 0.75], axis=0)
    np.testing.assert_allclose(model.flux_centre, middle, rtol=1e-5)
    np.testing.assert_allclose(model.flux_scale, high - low, rtol=1e-5)
    np.testing.assert_allclose(model.z_centre, np.median(data.redshift[1:], axis=0), rtol=1e-5)


def test_deviations_are_scaled_as_small_changes_of_the_mean_are() -> None:
    model, data = network(flux="arcsinh", channels=("mean", "sd")), inputs()
    mean, sd = model.scaled(data)
    step = 1e-3
    above, _ = model.scaled(data._replace(mean=data.mean + step * data.sd))
    torch.testing.assert_close((above - mean) / step, sd, rtol=0.02, atol=1e-3)


def test_redshift_and_error_have_a_token_each() -> None:
    data, model = inputs(), network(redshift="tokens")
    x = model.assemble(data)
    z = (data.redshift - model.z_centre) / model.z_scale
    assert x.shape == (5, 103, 6)
    assert torch.equal(x[1:, 100], z[1:, :1].expand(-1, 6))
    assert torch.equal(x[1:, 101], z[1:, 1:].expand(-1, 6))
    assert torch.equal(x[:, 102, 0], torch.tensor([-1.0, 1, 1, 1, 1]))
    assert torch.equal(x[0, 100:102], torch.zeros(2, 6))


def test_legacy_interleaves_them_in_both_tokens() -> None:
    data, model = inputs(), network(redshift="tokens", legacy=True)
    x = model.assemble(data)
    z = (data.redshift - model.z_centre) / model.z_scale
    assert x.shape == (5, 102, 6)
    for row in (100, 101):
        assert torch.equal(x[1:, row], z[1:].repeat(1, 3))
    beside = network(redshift="channels", legacy=True).assemble(data)
    assert beside.shape == (5, 100, 8)
    assert torch.equal(beside[1:, 57, 6:], z[1:])


@pytest.mark.parametrize("flux", ["robust", "arcsinh", "object"])
@pytest.mark.parametrize("redshift", ["none", "tokens", "channels"])
def test_an_object_alone_is_what_it_is_in_a_batch(flux: Any, redshift: Any) -> None:
    model = network(channels=CHANNELS, flux=flux, redshift=redshift)
    data = inputs(512)
    alone = torch.cat([model(data.take(slice(i, i + 1))).softmax(1) for i in (0, 1, 300, 511)])
    torch.testing.assert_close(alone, model(data).softmax(1)[[0, 1, 300, 511]], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.sum(1), torch.ones(4))


def test_channels_tell_what_the_mean_does_not() -> None:
    data = inputs()
    x = network(channels=CHANNELS).assemble(data)
    assert x.shape == (5, 100, 3 * 6 + 2)
    assert torch.equal(x[:, 7, 12:18], data.bands.float())
    torch.testing.assert_close(x[:, 50, 18], (1 + data.duration).log10())
    torch.testing.assert_close(x[:, 50, 19], data.mean.amax((1, 2)).log10())
    brighter = network(flux="object").assemble(data._replace(mean=data.mean * 1000))
    torch.testing.assert_close(brighter, network(flux="object").assemble(data))


@pytest.mark.parametrize(
    "backbone", ["cct_2_3x2", "poolformer_s12", {"dims": [8], "depths": [1], "mixers": ["mamba"]}]
)
def test_any_backbone_serves(backbone: Any) -> None:
    model = network(backbone=backbone, redshift="channels", channels=("mean", "sd"))
    logits = model(inputs())
    assert logits.shape == (5, 14)
    assert torch.isfinite(logits).all()


def test_unknown_channels_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.channels: found sd; mean and any of sd, bands"):
        network(channels=("sd",))


def test_hiding_redshifts_is_like_having_none() -> None:
    model, data = network(redshift="tokens"), inputs()
    hidden = redshift_dropout(data, 1.0)
    assert torch.isnan(hidden.redshift).all()
    kept = redshift_dropout(inputs(1000), 0.3, torch.Generator().manual_seed(0))
    assert 0.25 < torch.isnan(kept.redshift[1:, 0]).float().mean() < 0.35
    torch.testing.assert_close(model(hidden)[0], model(data)[0])
    assert not torch.allclose(model(hidden)[1], model(data)[1])


def test_activation_maps() -> None:
    model, data = network(redshift="tokens"), inputs()
    maps = activation_maps(model, data)
    assert maps.shape == (5, 103, 14)
    torch.testing.assert_close(maps.sum(1), torch.ones(5, 14))
    assert (maps.amin(1) == 0).all()
    # Before scaling they add up to what the class got.
    raw = model.features(data).transpose(1, 2) @ model.head.weight.T
    torch.testing.assert_close(raw.mean(1) + model.head.bias, model(data), rtol=0, atol=1e-5)
    high, low = raw.amax(1, keepdim=True), raw.amin(1, keepdim=True)
    scaled = (raw - low) / (high - low)
    torch.testing.assert_close(maps, scaled / scaled.sum(1, keepdim=True))


def test_occlusion_finds_the_band_and_the_epoch() -> None:
    time = np.arange(20.0)
    band = np.array(["g", "r"] * 10)
    flux = np.where((band == "r") & (time > 15), 5.0, 0.0)
    curve = LightCurve("a", time, band, flux, np.ones(20), flux > 5)

    def predict(curves: Sequence[LightCurve]) -> Floats:
        p = np.array([min(c.flux.sum() / 10, 1.0) for c in curves])
        return np.stack([1 - p, p], 1)

    found = occlusion(curve, predict, epochs=5)
    assert (found.of, found.probability) == (1, 1.0)
    assert found.bands == {"g": 0.0, "r": 1.0}
    assert [change for *_, change in found.epochs] == [0, 0, 0, 0, 1.0]
    assert found.epochs[-1][:2] == (16.0, 19.0)
    only = occlusion(LightCurve("b", time[:1], band[:1], flux[:1], np.ones(1), flux[:1] > 5), predict)
    assert np.isnan(only.bands["g"])
