"""Lightning without its advice: tips, banners and warnings about choices that were made on purpose."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
_KNOWN = (
    r".*does not have many workers.*",
    r".*is smaller than the logging interval.*",
    r".*recommended to use `self\.log\(.*sync_dist=True.*",
    r".*`lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",  # a step skipped by the loss scaler
    r".*module\(s\) in eval mode at the start of training.*",  # frozen parts
    r".*Trying to infer the `batch_size`.*",
    r".*The `srun` command is available.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*GPU available but not used.*",
    r".*without a checkpoint callback.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only, from Lightning; warnings of anyone else stay."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _KNOWN:
                warnings.filterwarnings("ignore", message=message)
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\.")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
