"""What a worker may be told between two steps, and the actor that the driver tells it through. No torch here: the actor
is a process of its own, beside the driver."""

from enum import Enum


class Notice(Enum):
    """What is to be heeded."""

    SAVE = "a node is about to go: keep a checkpoint of this step"
    STOP = "the run is to end: keep a checkpoint of this step, and end"


class End:
    """An actor: whether the run is to end, and whether there are workers to hear it."""

    def __init__(self):
        self.told = self.heard = False

    def tell(self) -> bool:
        """Whether workers will hear."""
        self.told = True
        return self.heard

    def hear(self) -> bool:
        """Whether it has been told."""
        self.heard = True
        return self.told
