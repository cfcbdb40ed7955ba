"""Measure the variance of the policy gradient, and compare recipes at an equal token budget.

A recipe contains the settings of a training run. Some measurements test what the article "The Beauty of
Reinforcement Learning (1) – Intro of Policy Based Methods" says about the variance.
"""

from llm_reinforce.analysis.classifier_claim import ClassifierVariance, measure_classifier_claim
from llm_reinforce.analysis.constant_claim import ConstantVariance, measure_constant_claim
from llm_reinforce.analysis.estimators import Estimator, estimators_for
from llm_reinforce.analysis.gradient_statistics import IntervalEstimate
from llm_reinforce.analysis.gradient_variance import (
    EstimatorVariance,
    GradientVariance,
    measure_estimators,
    measure_variance,
)
from llm_reinforce.analysis.learning_curves import (
    ComparedRuns,
    Difference,
    LearningCurve,
    MeasureName,
    compare_curves,
    learning_curve,
    mean_curve,
)
from llm_reinforce.analysis.length_claim import (
    CoinVariance,
    LengthClaim,
    LengthVariance,
    measure_length_claim,
)
from llm_reinforce.analysis.measured_episodes import MeasuredEpisodes, collect_updates
from llm_reinforce.analysis.measurement_files import as_json, measurement_files
from llm_reinforce.analysis.recipe_comparison import RecipeComparison, compare
from llm_reinforce.analysis.recipe_source import RecipeSource
from llm_reinforce.analysis.variance_plots import (
    plot_classifier_claim,
    plot_constant_claim,
    plot_length_claim,
    plot_variance,
)

__all__ = [
    "ClassifierVariance",
    "CoinVariance",
    "ComparedRuns",
    "ConstantVariance",
    "Difference",
    "Estimator",
    "EstimatorVariance",
    "GradientVariance",
    "IntervalEstimate",
    "LearningCurve",
    "LengthClaim",
    "LengthVariance",
    "MeasureName",
    "MeasuredEpisodes",
    "RecipeComparison",
    "RecipeSource",
    "as_json",
    "collect_updates",
    "compare",
    "compare_curves",
    "estimators_for",
    "learning_curve",
    "mean_curve",
    "measure_classifier_claim",
    "measure_constant_claim",
    "measure_estimators",
    "measure_length_claim",
    "measure_variance",
    "measurement_files",
    "plot_classifier_claim",
    "plot_constant_claim",
    "plot_length_claim",
    "plot_variance",
]
