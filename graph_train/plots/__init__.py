"""Pictures of a run. Nothing heavy is imported before a picture is drawn, and no display or global state is used."""

from graph_train.plots.curves import plot_validation
from graph_train.plots.images import plot_detections, plot_labelled
from graph_train.plots.labels import plot_labels
from graph_train.plots.results import plot_results

__all__ = ["plot_detections", "plot_labelled", "plot_labels", "plot_results", "plot_validation"]
