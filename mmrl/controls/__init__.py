"""Controls, which tell whether a method works: see `mmrl.controls.placebo`."""
