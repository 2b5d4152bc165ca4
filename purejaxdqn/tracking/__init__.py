"""Shows a sweep's curves in TensorBoard, Weights & Biases, Trackio or MLflow while it runs.

A tracker is a function that receives each evaluation on the host, between compiled chunks. Every
run (one seed at one setting) is a curve of its own, and the seeds of a setting are grouped in the
way of each library. A sweep that is resumed in the same folder goes on with the same curves.
Users `register` their own trackers as it is done below, from outside the package.
"""

import functools

from purejaxdqn.tracking.libraries import forget as forget
from purejaxdqn.tracking.libraries import open_mlflow, open_tensorboard, open_trackio, open_wandb
from purejaxdqn.tracking.registry import TRACKERS as TRACKERS
from purejaxdqn.tracking.registry import Evaluated as Evaluated
from purejaxdqn.tracking.registry import Tracker as Tracker
from purejaxdqn.tracking.registry import check_name as check_name
from purejaxdqn.tracking.registry import open_tracker as open_tracker
from purejaxdqn.tracking.registry import register as register

register("tensorboard", open_tensorboard)
register("wandb", open_wandb)
register("wandb-offline", functools.partial(open_wandb, offline=True))
register("trackio", open_trackio)
register("mlflow", open_mlflow)
