"""Sources of questions about the worlds of `mmrl.worlds`."""

from mmrl.data.worlds.counterfactuals import Counterfactuals
from mmrl.data.worlds.figures import Figures
from mmrl.data.worlds.kitchens import Kitchens
from mmrl.data.worlds.scenes import Scenes

__all__ = ["Counterfactuals", "Figures", "Kitchens", "Scenes"]
