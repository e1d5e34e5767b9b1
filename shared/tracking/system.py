"""CPU, memory, disk, network and GPU use of a run, sampled by MLflow's own monitors into the run's buffer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 10.0


class SystemSampler:
    """A thread that hands ``system/…`` metrics to `sink` every ten seconds; a failing sensor only ends it."""

    def __init__(
        self,
        run_id: str,
        uri: str,
        started_ms: int,
        sink: Callable[[Mapping[str, float], int], None],
        seconds: float = SAMPLE_SECONDS,
    ) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # Only its sensors are used: its own thread reads the run and writes the store at every sample.
        self._sensors = SystemMetricsMonitor(run_id, tracking_uri=uri)
        self._started_ms = started_ms
        self._sink = sink
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking-system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            import psutil

            sensors = self._sensors
            process = psutil.Process()
            while not self._stop.wait(self._seconds):
                sensors.collect_metrics()
                found = {f"system/{key}": float(value) for key, value in sensors.aggregate_metrics().items()}
                for monitor in sensors.monitors:
                    monitor.clear_metrics()
                found["system/process_memory_megabytes"] = process.memory_info().rss / 1e6
                # Steps count samples since the run began, so that a resumed run's curve goes on.
                step = int((time.time() * 1000 - self._started_ms) / 1000 / self._seconds)
                self._sink(found, step)
        except Exception as err:  # noqa: BLE001 - a sensor's trouble must not end the training
            log.warning("system metrics stopped: %s: %s", type(err).__name__, err)
