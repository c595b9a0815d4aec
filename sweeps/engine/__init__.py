"""The only package that imports Ray: one Tuner per command, whose Searcher and Scheduler are thin views of the schedule.

Ray places, retries and stops trials; what is true is on disk (Parquet, weights, the studies' journal), so its own state is thrown away.
Why it is built like this: never `Tuner.restore` (crashes with persistent studies), never `OptunaSearch` (pruned trials become COMPLETE),
never two Tuners in threads.
"""

import os

# Ray reads these when it is imported, which the modules of this package do.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # its processes are slow to start on a busy machine: it waits 30 s
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial that is stopped before its first epoch reports nothing
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")  # its state of all trials, written anew every few seconds, is never read
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
