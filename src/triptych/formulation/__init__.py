"""Formulations: LightningModules, one paper a file."""

from triptych.formulation.base import Formulation as Formulation
from triptych.formulation.ddpm import DDPM as DDPM
from triptych.formulation.edm import EDM as EDM
from triptych.formulation.flow_matching import FlowMatching as FlowMatching
from triptych.formulation.ncsn import NCSN as NCSN
from triptych.formulation.score_sde import ScoreSDE as ScoreSDE
