"""Sections of the run's report and of the model card, from saved results only: nothing is computed anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.scores.summary import percent

if TYPE_CHECKING:
    from shared.pipeline import DataFacts, Evaluation
    from shared.report.html import Report

FORECASTS = {"": "this model", "naive_": "repeat the last value", "seasonal_": "repeat the last season"}
_SCORES = {
    "forecast": "Forecast",
    "mse": "MSE, scaled",
    "mae": "MAE, scaled",
    "mae_orig": "MAE, original units",
    "mase": "MASE",
}
_LEGACY = {
    "forecast": "Forecast",
    "mse_legacy": "MSE as the tables counted",
    "mse": "MSE of all windows",
    "mae_legacy": "MAE as the tables counted",
    "mae": "MAE of all windows",
}
_STEP = {"step": "Step ahead", "mse": "MSE, scaled", "mae": "MAE, scaled", "naive_mse": "MSE, repeat last"}
_CHANNEL = {
    "series": "Series",
    "channel": "Channel",
    "windows": "Windows",
    "mse": "MSE, scaled",
    "mae": "MAE, scaled",
    "naive_mse": "MSE, repeat last",
    "seasonal_mse": "MSE, seasonal naive",
    "mae_orig": "MAE, original units",
    "mase": "MASE",
    "smape": "sMAPE (0–2)",
}
LIMITS = (
    "A forecast continues what the look-back window and the training years show. It knows nothing of what comes new: "
    "strikes, outages, changed prices, a moved sensor. Watch its errors, and train again when they drift.",
    "Intervals promise their coverage only where new windows are like those they were measured on. Neighbouring "
    "windows are not exchangeable and series drift, so the measured coverage by step counts, not the level asked for.",
    "Every channel is scaled by the mean and deviation of its training rows. Far outside that range the model "
    "extrapolates.",
)


def add_sections(report: Report, config: ForecastConfig, evaluation: Evaluation) -> None:
    """Scores beside naive forecasts, coverage by step, pictures, table by channel, notes and limits."""
    metrics = evaluation.metrics
    if metrics.get("windows"):
        report.heading("Scores beside naive forecasts")
        report.table(_beside(metrics, _SCORES), _SCORES, caption=_counted(config, metrics))
        if "mse_legacy" in metrics:
            caption = (
                f"As the published code counted: {metrics['windows_legacy']:,.0f} windows in whole batches of "
                f"{config.evaluate.legacy_drop_last}, the rest dropped. Only these compare with the papers' tables."
            )
            report.table(_beside(metrics, _LEGACY), _LEGACY, caption=caption)
    _steps(report, config, evaluation)
    if evaluation.figures:
        report.heading("Pictures")
        for caption, path in evaluation.figures.items():
            report.figure(path, caption)
    rows = [row for row in evaluation.table if "mse" in row]
    if rows:
        report.heading("Series and channels")
        levels = {
            name: f"Coverage {name.partition('_')[2]} %" for name in rows[0] if name.startswith("coverage_")
        }
        named = {name: title for name, title in _CHANNEL.items() if name in rows[0]} | levels
        worst_first = sorted(rows, key=lambda row: -row["mse"] if row["mse"] == row["mse"] else 0.0)
        report.table(worst_first, named, caption="Largest scaled MSE first.")
    report.heading("How to read the numbers")
    report.items(evaluation.notes)
    report.heading("Limits")
    report.items([*LIMITS, _looks_back(config)])


def _beside(metrics: Mapping[str, float], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per forecast, from flat names such as ``naive_mse``."""
    return [
        {"forecast": name}
        | {key: metrics[f"{prefix}{key}"] for key in columns if f"{prefix}{key}" in metrics}
        for prefix, name in FORECASTS.items()
        if f"{prefix}mse" in metrics
    ]


def _counted(config: ForecastConfig, metrics: Mapping[str, float]) -> str:
    data = config.data
    return (
        f"Means over all {metrics['windows']:,.0f} windows, {data.horizon} steps ahead from {data.input_length} steps, "
        f"{len(data.targets)} channels. Smaller is better; MASE below 1 beats the seasonal naive forecast of the "
        "training rows."
    )


def _steps(report: Report, config: ForecastConfig, evaluation: Evaluation) -> None:
    """Errors and coverage at the steps that people look at."""
    by_step = getattr(evaluation, "by_step", [])
    if not by_step:
        return
    from timeseries.forecast.scores.summary import shown_steps

    columns = dict(_STEP)
    for name in by_step[0]:
        kind, _, level = name.partition("_")
        if kind == "coverage":
            columns |= {name: f"Coverage of {level} %", f"width_{level}": "width, scaled"}
    report.heading("By step ahead")
    rows = [by_step[step - 1] for step in shown_steps(len(by_step))]
    how = {
        "conformal": "Intervals: errors per step and channel of windows that the weights have not seen (conformal).",
        "pinball": "Intervals: quantiles the model was trained for (pinball loss).",
    }.get(config.intervals.method, "")
    report.table(rows, columns, caption=f"All steps are in by_step.csv. {how}".strip())


def _looks_back(config: ForecastConfig) -> str:
    data = config.data
    return (
        f"It looks back on {data.input_length} steps and cannot see a season longer than that; it forecasts "
        f"{data.horizon} steps at once, more only by going on from its own forecasts, whose errors then add up."
    )


# ---------------------------------------------------------------- model card


def card_text(config: ForecastConfig, evaluation: Evaluation, facts: DataFacts) -> str:
    """Purpose, limits and licences for ``card.md``."""
    data = config.data
    if data.path is None:
        from timeseries.forecast.sample import ABOUT

        origin = ABOUT
    else:
        origin = f"{facts.source}; its terms bind the weights as well"
    columns = f"{len(data.targets)} channels: {_listed(data.targets)}"
    for name, others in (("past", data.past_columns), ("future", data.future_columns)):
        columns += f"; known {name} columns: {_listed(others)}" if others else ""
    limits = "".join(f"- {limit}\n" for limit in (*LIMITS, _looks_back(config)))
    return (
        "## What it is for\n\n"
        f"Forecasting the next {data.horizon} steps of series like those it was trained on, with intervals, from their "
        f"last {data.input_length} steps.\n\n"
        f"- Model: {_model(config)}\n"
        f"- Columns: {columns}\n"
        f"- Step: {data.freq or 'numbered rows, no calendar'}; scaled by the mean and deviation of the training rows, "
        "which are in `schema.json`\n"
        f"- Intervals: {_intervals(config, evaluation.metrics)}\n"
        f"- Training data: {origin}\n"
        f"{_verdict(evaluation.metrics)}\n"
        f"## What it is not for\n\n{limits}"
    )


def _model(config: ForecastConfig) -> str:
    model = config.model
    if model.name in ("linear", "nlinear", "dlinear"):
        how = (
            f"exact least squares, ridge {model.ridge:g}"
            if model.solver == "closed-form"
            else "gradient steps"
        )
        own = (
            "weights of its own for every channel"
            if model.individual
            else "the same weights for every channel"
        )
        return f"{model.name} (arXiv 2205.13504), {own}, {how}"
    if model.name == "autoformer":
        return f"autoformer (arXiv 2106.13008), width {model.width}, {model.heads} heads, factor {model.factor:g}"
    if model.name == "naive":
        return (
            f"naive: repeats the value {model.season} steps back"
            if model.season
            else "naive: repeats the last value"
        )
    return f"backbone {model.backbone if isinstance(model.backbone, str) else ''}".strip()


def _intervals(config: ForecastConfig, metrics: Mapping[str, float]) -> str:
    if config.intervals.method == "none":
        return "none"
    measured = [
        f"{100 * metrics[name]:.1f} % of truths inside the {percent(level)} % interval"
        for level in config.intervals.levels
        if (name := f"coverage_{percent(level)}") in metrics
    ]
    return f"{config.intervals.method}; measured: {', '.join(measured) or 'not measured'}"


def _verdict(metrics: Mapping[str, float]) -> str:
    """How it does beside repeating values; said plainly when it does worse."""
    beaten = []
    for prefix, name in list(FORECASTS.items())[1:]:
        if metrics.get(f"{prefix}mse"):
            change = 100 * (metrics["mse"] / metrics[f"{prefix}mse"] - 1)
            beaten.append(f"{abs(change):.0f} % {'below' if change <= 0 else 'ABOVE'} that of “{name}”")
    return f"- MSE {' and '.join(beaten)}\n" if beaten else ""


def _listed(names: tuple[str, ...], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
