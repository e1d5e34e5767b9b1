"""Tools that turn a built, usually trained, network into a cheaper or other one. Each is one function

    apply(model, data=None, **options) -> (model, report)

known under a name; a configuration lists them in `rewrite`, in order. The model given is left as it was. `data` is a
batch of inputs for those that measure or calibrate with one. The report is a flat mapping of figures, for MLflow.
"""

from shared.rewrite.registry import Report, apply_all, find, names, papers, register

__all__ = ["Report", "apply_all", "find", "names", "papers", "register"]
