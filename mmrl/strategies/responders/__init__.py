"""Models that answer a strategy's requests; see `ask.Responder`."""

from mmrl.strategies.responders.local import Local, local_model
from mmrl.strategies.responders.pair import local_pair
from mmrl.strategies.responders.scripted import Scripted

__all__ = ["Local", "Scripted", "local_model", "local_pair"]
