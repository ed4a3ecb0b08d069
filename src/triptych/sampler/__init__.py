"""Samplers: from noise to images, one algorithm a file."""

from triptych.sampler.ancestral import Ancestral as Ancestral
from triptych.sampler.annealed_langevin import AnnealedLangevin as AnnealedLangevin
from triptych.sampler.base import Sampler as Sampler
from triptych.sampler.ddim import DDIM as DDIM
from triptych.sampler.dpm_solver import DPMSolver as DPMSolver
from triptych.sampler.euler_maruyama import EulerMaruyama as EulerMaruyama
from triptych.sampler.heun import Heun as Heun
from triptych.sampler.predictor_corrector import PredictorCorrector as PredictorCorrector
from triptych.sampler.probability_flow import ProbabilityFlow as ProbabilityFlow
from triptych.sampler.reverse_diffusion import ReverseDiffusion as ReverseDiffusion
from triptych.sampler.stochastic_heun import StochasticHeun as StochasticHeun
from triptych.sampler.uni_pc import UniPC as UniPC
