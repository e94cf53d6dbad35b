"""Every tracker there is. Adding one: its file, its entry here, and its name in
`RunConfig.trackers`.
"""

from konomi.training.trackers.tensorboard import TensorBoard
from konomi.training.trackers.tracker import Tracker
from konomi.training.trackers.weights_and_biases import WeightsAndBiases

TRACKERS: tuple[type[Tracker], ...] = (TensorBoard, WeightsAndBiases)
