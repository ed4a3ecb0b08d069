"""Many trainings: grids (`train.py -m …`) and search (`sweep.py`), every trial a process group of its own."""
