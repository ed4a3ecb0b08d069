"""Guidance: denoisers that wrap denoisers."""

from triptych.guidance.classifier_free import ClassifierFree as ClassifierFree
