"""t2 as an sktime classifier, of the same network, scaling, loss and optimiser as the pipeline.

For those who work with sktime; nothing of the pipeline imports this module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sktime.classification.base import BaseClassifier
from torch import Tensor, nn

from astro.transients.config import TransientsConfig
from astro.transients.grids import inputs_of
from astro.transients.lightcurve import OK, Floats, LightCurve
from astro.transients.losses import TransientLoss
from astro.transients.t2 import Inputs, TransientNetwork, redshift_dropout
from shared.config import resolve
from shared.errors import Diverged, as_value_errors
from shared.nets.backbones.t2 import t2
from shared.training.loader import EpochSampler
from shared.training.optim import optimizer_config
from shared.training.seed import isolated_rng

GRIDDED = ("mean", "sd", "peak")
"""Channels of `TransientNetwork` that differ between series of one grid."""

AT_ONCE = 512
"""Series classified together."""


def panel(
    curves: Sequence[LightCurve],
    survey: str = "lsst",
    times: int = 100,
    *,
    sd: bool = False,
    redshift: bool = False,
) -> Floats:
    """Light curves as `X` for `T2Classifier` or any other sktime classifier, numpy3D (n, variables, times).

    Variables: the Gaussian process's mean flux in each band of `survey`; with `sd` its standard deviations; with
    `redshift` the host's redshift and error, the same at all times, −1 = unknown. Raises `ValueError` where a curve
    cannot be gridded.
    """
    for curve in curves:
        if curve.status != OK or len(curve) < 3:
            raise ValueError(
                f"object {curve.id}: {curve.status}, {len(curve)} points; status ok and at least 3 wanted; leave it out"
            )
    inputs = inputs_of(curves, survey, times)
    z = inputs.redshift.nan_to_num(-1)[:, None].expand(-1, times, -1)
    parts = [inputs.mean, *([inputs.sd] if sd else []), *([z] if redshift else [])]
    return torch.cat(parts, -1).transpose(1, 2).double().numpy()


class T2Classifier(BaseClassifier):
    """The time-series transformer t2 of Allam and McEwen [1]_, or any one-dimensional network in its place.

    Each variable is a band on one grid of times, such as a Gaussian process's mean flux (`panel`). The network's last
    map is averaged over time, and a linear map gives the classes. Trained for `max_epochs` by AdamW with the rate
    decaying to 0 along a cosine.

    Parameters
    ----------
    backbone : str or dict, default="t2"
        The published block (16 heads of 2 channels, 13,390 parameters with 6 bands and 14 classes), another name of
        ``pipelines zoo --for transients``, a YAML file, or its keys.
    channels : tuple of str, default=("mean",)
        What the network sees: "mean", the values; "sd", their standard deviations, which are then the second half of
        the variables of X; "peak", log10 of the highest value, the same at all times.
    flux : "robust", "arcsinh" or "object", default="robust"
        Scaling: by median and interquartile range of each variable over the training set, as published; inverse
        hyperbolic sine, for values over many decades; by each series' highest absolute value.
    redshift : "none", "tokens" or "channels", default="none"
        With "tokens" or "channels" the last two variables of X are the host's redshift and its error, the same at all
        times and negative where unknown; they become steps of their own or channels of every step.
    hide_redshift : float, default=0.3
        Share of the redshifts hidden in training, so that the network also serves without.
    dropout : float, default=0.1
        Before the linear map.
    imbalance : "none", "weights", "adjust" or "legacy", default="none"
        "none": cross-entropy; probabilities are for class rates as in the training set. The others are for classes of
        equal rates: "weights" trains the flat log-loss of the paper's scores; "adjust" shifts logits by the log of the
        rates [2]_; "legacy" is the published code's loss, which changes with the classes a batch happens to have.
    max_epochs, batch_size : int, default=100, 16
        Passes over the training set, and series a step.
    lr : float, default=5e-3
        Highest learning rate.
    clip_norm : float, default=1.0
        Limit of the gradient's norm; 0 = none.
    device : str, default="auto"
        A torch device; "auto" = a GPU if there is one.
    random_state : int, RandomState instance or None, default=None
        First weights, dropout and order of the series. The same number gives the same network on a CPU.

    Attributes
    ----------
    network_ : torch module, on the CPU

    References
    ----------
    .. [1] Allam T Jr, McEwen JD. Paying attention to astronomical transients: introducing the time-series transformer
       for photometric classification. RASTI 3, 209, 2024, arXiv 2105.06178.
    .. [2] Menon AK et al. Long-tail learning via logit adjustment. ICLR 2021, arXiv 2007.07314.

    Examples
    --------
    >>> from sktime.datasets import load_unit_test
    >>> from astro.transients.estimators import T2Classifier
    >>> X, y = load_unit_test(split="train")
    >>> y_proba = T2Classifier(max_epochs=2, random_state=0).fit(X, y).predict_proba(X)
    """

    _tags = {
        "authors": ["domain-pipelines"],
        "maintainers": ["domain-pipelines"],
        "python_dependencies": ["torch", "pytorch-lightning", "scipy"],
        "X_inner_mtype": "numpy3D",
        "capability:multivariate": True,
        "capability:unequal_length": False,
        "capability:missing_values": False,
        "capability:categorical_in_X": False,
        "capability:predict_proba": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
    }

    def __init__(
        self,
        backbone: Any = "t2",
        *,
        channels: Sequence[str] = ("mean",),
        flux: str = "robust",
        redshift: str = "none",
        hide_redshift: float = 0.3,
        dropout: float = 0.1,
        imbalance: str = "none",
        max_epochs: int = 100,
        batch_size: int = 16,
        lr: float = 5e-3,
        clip_norm: float = 1.0,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.backbone = backbone
        self.channels = channels
        self.flux = flux
        self.redshift = redshift
        self.hide_redshift = hide_redshift
        self.dropout = dropout
        self.imbalance = imbalance
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.clip_norm = clip_norm
        self.device = device
        self.random_state = random_state
        super().__init__()

    def _fit(self, X: Floats, y: Any) -> T2Classifier:
        labels = torch.from_numpy(np.searchsorted(self.classes_, y))
        device = self._device
        cards = [device] if device.type == "cuda" else []
        with as_value_errors():
            config, inputs = self._settings(), self._inputs(X)
            with isolated_rng(config.seed), torch.random.fork_rng(cards):
                for card in cards:
                    with torch.cuda.device(card):
                        torch.cuda.manual_seed(config.seed)
                self.network_ = _network(config, self.n_classes_, inputs).to(device)
                _train(self.network_, config, inputs.to(device), labels.to(device))
        self.network_ = self.network_.cpu().eval()
        self._shape = X.shape[1:]
        return self

    def _predict_proba(self, X: Floats) -> Floats:
        if X.shape[1:] != self._shape:
            found, wanted = (f"{m} variables of {t} times" for m, t in (X.shape[1:], self._shape))
            raise ValueError(f"X: {found}; {wanted} wanted, as in fit; bring it to the same grid")
        device, inputs = self._device, self._inputs(X)
        network = self.network_ if device.type == "cpu" else copy.deepcopy(self.network_).to(device)
        with torch.no_grad():
            parts = [
                network(inputs.take(slice(i, i + AT_ONCE)).to(device)).cpu()
                for i in range(0, len(X), AT_ONCE)
            ]
        probability: Floats = torch.cat(parts).double().softmax(-1).numpy()
        return probability

    @property
    def _device(self) -> torch.device:
        return torch.device(
            self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        )

    def _settings(self) -> TransientsConfig:
        constant = [name for name in self.channels if name not in GRIDDED]
        if constant:
            raise ValueError(f"channels {constant[0]!r}; mean, and any of {', '.join(GRIDDED[1:])} wanted")
        layer = {
            "seed": int(check_random_state(self.random_state).randint(2**31 - 1)),
            "model": {
                "backbone": self.backbone,
                "channels": list(self.channels),
                "flux": self.flux,
                "redshift": self.redshift,
                "dropout": self.dropout,
            },
            "train": {
                "epochs": self.max_epochs,
                "batch_size": self.batch_size,
                "lr": self.lr,
                "clip_norm": self.clip_norm,
                "imbalance": self.imbalance,
                "hide_redshift": self.hide_redshift,
            },
        }
        return resolve(TransientsConfig, [(type(self).__name__, layer)])

    def _inputs(self, X: Floats) -> Inputs:
        """(n, variables, times) as the network takes them: every band observed, the duration the number of times."""
        with np.errstate(over="ignore"):
            values = torch.from_numpy(X.transpose(0, 2, 1).astype(np.float32))
        if not values.isfinite().all():
            raise ValueError(
                "X: values that are not finite in single precision; finite ones wanted; scale them"
            )
        n, times, variables = values.shape
        sides, last = 1 + ("sd" in self.channels), 2 * (self.redshift != "none")
        bands, odd = divmod(variables - last, sides)
        if bands < 1 or odd:
            wanted = f"means{', as many deviations' * (sides > 1)}{', redshift and error' * (last > 0)}"
            raise ValueError(f"X: {variables} variables; {wanted} wanted")
        mean, sd, z = values.split([bands, bands * (sides - 1), last], -1)
        return Inputs(
            mean,
            sd if sides > 1 else torch.zeros(()).expand_as(mean),
            torch.ones(n, bands, dtype=torch.bool),
            torch.full((n,), float(times)),
            z[:, 0].where(z[:, 0] >= 0, torch.nan) if last else torch.full((n, 2), torch.nan),
        )

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Settings for sktime's tests.

        Parameters
        ----------
        parameter_set : str, default="default"
            There is one set of settings only.

        Returns
        -------
        list of dict
        """
        return [
            {"max_epochs": 2, "device": "cpu", "random_state": 0},
            {
                "backbone": t2(dim=8, heads=2, ratio=2, layers=2),
                "channels": ("mean", "peak"),
                "flux": "arcsinh",
                "imbalance": "adjust",
                "max_epochs": 1,
                "batch_size": 4,
                "clip_norm": 0.0,
                "device": "cpu",
                "random_state": 0,
            },
        ]


def _network(config: TransientsConfig, classes: int, inputs: Inputs) -> TransientNetwork:
    """With its scaling fitted to `inputs`."""
    model, (_, times, bands) = config.model, inputs.mean.shape
    network = TransientNetwork(
        classes,
        bands,
        backbone=model.backbone,
        length=times,
        channels=model.channels,
        flux=model.flux,
        redshift=model.redshift,
        dropout=model.dropout,
    )
    network.fit_scaling(inputs)
    return network


def _train(network: TransientNetwork, config: TransientsConfig, inputs: Inputs, labels: Tensor) -> None:
    """The pipeline's loss and optimiser without a Trainer, whose start takes longer than a small training. Raises
    `Diverged`."""
    train: Any = config.train
    order = EpochSampler(len(labels), min(train.batch_size, len(labels)), config.seed)
    loss = TransientLoss(labels.bincount().tolist(), train.imbalance).to(labels.device)
    module: Any = network
    made = optimizer_config(module, train, steps=train.epochs * len(order), fused=True)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    network.train()
    for epoch in range(train.epochs):
        norms = torch.zeros((), device=labels.device)
        for rows in torch.from_numpy(order.order(epoch)).reshape(-1, order.batch_size):
            batch = inputs.take(rows)
            if network.redshift != "none":
                batch = redshift_dropout(batch, train.hide_redshift)
            optimizer.zero_grad(set_to_none=True)
            loss(network(batch), labels[rows]).backward()
            norms += nn.utils.clip_grad_norm_(network.parameters(), train.clip_norm or math.inf)
            optimizer.step()
            schedule.step()
        if not norms.isfinite():
            raise Diverged(
                f"gradients are not finite in epoch {epoch + 1}; finite ones wanted; lower lr, or scale X"
            )
