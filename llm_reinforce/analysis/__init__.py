"""The gradient's variance, measured, and what it costs: learning curves at an equal budget."""

from llm_reinforce.analysis.classifier_claim import ClassifierFigures, measure_classifier
from llm_reinforce.analysis.measured_episodes import Collected, collect_updates
from llm_reinforce.analysis.constant_claim import ConstantFigures, measure_constants
from llm_reinforce.analysis.gradient_statistics import Measured
from llm_reinforce.analysis.gradient_variance import (
    Estimator,
    EstimatorFigures,
    VarianceFigures,
    estimators_beside,
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
    NUM_TO_MEASURE,
    CoinFigures,
    LengthFigures,
    measure_lengths,
    toss_coins,
)
from llm_reinforce.analysis.recipe_comparison import RecipeComparison, compare
from llm_reinforce.analysis.variance_plots import (
    plot_classifier,
    plot_constant,
    plot_length,
    plot_variance,
)

__all__ = [
    "NUM_TO_MEASURE",
    "ClassifierFigures",
    "CoinFigures",
    "Collected",
    "ComparedRuns",
    "ConstantFigures",
    "Difference",
    "Estimator",
    "EstimatorFigures",
    "LearningCurve",
    "LengthFigures",
    "MeasureName",
    "Measured",
    "RecipeComparison",
    "VarianceFigures",
    "collect_updates",
    "compare",
    "compare_curves",
    "estimators_beside",
    "learning_curve",
    "mean_curve",
    "measure_classifier",
    "measure_constants",
    "measure_lengths",
    "measure_variance",
    "plot_classifier",
    "plot_constant",
    "plot_length",
    "plot_variance",
    "toss_coins",
]
