"""What happens beside the loss: averages, numbers, pictures, checkpoints, stops."""

from triptych.callback.checkpoint import Checkpoint as Checkpoint
from triptych.callback.ema import EMA as EMA
from triptych.callback.evaluate import Evaluate as Evaluate
from triptych.callback.guard import Guard as Guard
from triptych.callback.likelihood import Likelihood as Likelihood
from triptych.callback.monitor import Monitor as Monitor
from triptych.callback.power_ema import PowerEMA as PowerEMA
from triptych.callback.progress import ProgressBar as ProgressBar
from triptych.callback.samples import Samples as Samples
from triptych.callback.status import Status as Status
from triptych.callback.stop import Stop as Stop
