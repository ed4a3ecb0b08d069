"""Noise schedules: alpha(t) and sigma(t), one file a family."""

from triptych.schedule.base import Schedule as Schedule
from triptych.schedule.discrete import Cosine as Cosine
from triptych.schedule.discrete import Discrete as Discrete
from triptych.schedule.discrete import LinearBeta as LinearBeta
from triptych.schedule.discrete import QuadraticBeta as QuadraticBeta
from triptych.schedule.edm import EDM as EDM
from triptych.schedule.learned import Learned as Learned
from triptych.schedule.rectified import Rectified as Rectified
from triptych.schedule.ve import VE as VE
from triptych.schedule.ve import Geometric as Geometric
from triptych.schedule.vp import VP as VP
from triptych.schedule.vp import SubVP as SubVP
