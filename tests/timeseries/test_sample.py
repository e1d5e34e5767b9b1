"""The embedded series and the files cut from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from timeseries.forecast.config import ForecastConfig, ForecastDataConfig
from timeseries.forecast.sample import ABOUT, ASSET, embedded, write_sample
from timeseries.forecast.tables.check import check, infer
from timeseries.forecast.tables.read import fingerprint, match_columns, read_dataset

CHANNELS = ("temperature", "dew_point", "humidity", "wind_speed", "pressure")


def test_the_embedded_series_is_the_published_one() -> None:
    series = embedded()
    assert (len(series), series.freq, series.channels) == (8_730, "h", CHANNELS)
    assert (str(series.times[0]), str(series.times[-1])) == ("2013-01-01 06:00:00", "2013-12-30 23:00:00")
    assert np.isnan(series.values).sum(0).tolist() == [24, 24, 24, 27, 855]
    np.testing.assert_allclose(
        np.nanmean(series.values, 0), [54.472, 41.857, 65.205, 11.468, 1018.181], atol=5e-4
    )
    assert (
        ASSET.stat().st_size < 100_000
        and "CC0" in ABOUT
        and "CC0" in (ASSET.parent / "README.md").read_text()
    )


def test_it_has_a_season_worth_forecasting() -> None:
    """Warmest from noon to two in New York (17:00 to 18:00 UTC), by 9 °F and more."""
    series = embedded()
    assert isinstance(series.times, pd.DatetimeIndex)
    summer = series.times.month.isin([6, 7, 8])
    by_hour = pd.Series(series.values[summer, 0]).groupby(series.times[summer].hour).mean()
    assert by_hour.idxmax() in (17, 18) and by_hour.max() - by_hour.min() > 9


def test_nothing_is_wrong_with_it() -> None:
    config = ForecastConfig()
    assert check(config) == []
    found = infer(config)
    assert found == {
        "layout": "wide",
        "date_column": "date",
        "id_column": None,
        "freq": "h",
        "targets": CHANNELS,
    }
    assert (
        match_columns(embedded(), config.model_copy(update={"data": config.data.model_copy(update=found)}))
        is embedded()
    )


def test_samples_are_parts_of_it_that_can_be_read_and_trained_on(tmp_path: Path) -> None:
    paths = write_sample(tmp_path / "a", 4, seed=3)
    assert len({path.name for path in paths}) == 4 and all(path.stat().st_size < 120_000 for path in paths)
    whole = embedded()
    read = read_dataset(tmp_path / "a", ForecastDataConfig())
    assert len({series.times[-1] for series in read}) == 4
    for series in read:
        start = whole.times.get_loc(series.times[0])
        assert (len(series), series.freq, series.channels) == (1_500, "h", CHANNELS)
        np.testing.assert_array_equal(series.values, whole.values[start : start + 1_500])
    faults = check(ForecastConfig(data=ForecastDataConfig(path=tmp_path / "a")))
    assert all(fault.severity == "warning" for fault in faults)
    again = write_sample(tmp_path / "b", 4, seed=3)
    digests = [[hashlib.sha256(path.read_bytes()).hexdigest() for path in some] for some in (paths, again)]
    assert digests[0] == digests[1]
    assert fingerprint(read_dataset(tmp_path / "b", ForecastDataConfig())) == fingerprint(read)
    other = write_sample(tmp_path / "c", 4, seed=4)
    assert [path.name for path in other] != [path.name for path in paths]
