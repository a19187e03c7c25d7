"""The run in MLflow: in files of the run's folder, or where MLFLOW_TRACKING_URI says."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from .tracker import Facts, Place

EXPERIMENT = "atss"  # where MLFLOW_EXPERIMENT_NAME names none
PARAMS_AT_ONCE = 100  # a server takes no more
LONGEST_PARAM = 500  # characters that every server takes
# A server that doesn't answer holds the training up for half a minute as the run is opened, and for a minute where it
# falls silent later (the numbers, and the end of the run): once, and not for MLflow's usual quarter of an hour.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class MlflowRun:
    """A `Tracker` of one run of MLflow; a resumed run goes on in the same one.

    Settings are parameters. MLflow changes no parameter, so a setting that a resumed run changes is a tag of its name.
    """

    def __init__(self, place: Place) -> None:
        for name, value in {**PATIENCE, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
            os.environ.setdefault(name, value)
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            # The one local store that mlflow-skinny can write. Newer versions ask for this consent.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (place.out.resolve() / "mlflow").as_uri()
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        if place.run_id:
            self.run_id = place.run_id
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
            self.run_id = self._client.create_run(experiment, run_name=place.out.resolve().name).info.run_id
        self.note = f"MLflow: run {self.run_id} in {uri}"

    def start(self, facts: Facts) -> None:
        """See `Tracker`."""
        from mlflow.entities import Param

        settings = {name: str(value)[:LONGEST_PARAM] for name, value in facts.settings.items()}
        data = self._client.get_run(self.run_id).data
        before = {**data.params, **{name: data.tags[name] for name in settings if name in data.tags}}
        new = [Param(name, value) for name, value in settings.items() if name not in before]
        for first in range(0, len(new), PARAMS_AT_ONCE):
            self._client.log_batch(self.run_id, params=new[first : first + PARAMS_AT_ONCE])
        changed = {name: value for name, value in settings.items() if before.get(name, value) != value}
        for name, text in {**changed, **facts.machine, **facts.files}.items():
            self._client.set_tag(self.run_id, name, str(text))

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(f"{kind}/{name}", value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, finished: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")
