"""The models as sktime forecasters; needs sktime, which nothing else here imports."""

from timeseries.forecast.estimators.forecasters import AutoformerForecaster, LTSFLinearForecaster

__all__ = ["AutoformerForecaster", "LTSFLinearForecaster"]
